"""SAM's image encoder: timm's vision transformer with SAM's epsilon, LoRA, and padding after the qkv projection."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer_sam import Block, VisionTransformerSAM
from torch import Tensor, nn

from .elementwise import plus
from .lora import LoRALinear
from .recompute import recomputed
from .sam_attention import attention


class SAMEncoder(VisionTransformerSAM):
    """Pictures → image embeddings at a sixteenth of the resolution.

    Args:
        image_size: (height, width) whose grid of tokens the position parameters have, multiples of `patch_size`.
            Pictures of other sizes are taken too, at the price of resizing them in every forward.
        in_chans: channels of the picture.
        lora_rank: rank of LoRA on query and value of every block; 0 for none.
        sizes: `patch_size`, `embed_dim`, `depth`, `num_heads`, `mlp_ratio`, `window_size`, `global_attn_indexes`
            and `neck_chans` (channels of the embeddings), as of timm.
    """

    def __init__(
        self, image_size: tuple[int, int], in_chans: int, *, lora_rank: int = 0, **sizes: Any
    ) -> None:
        super().__init__(
            img_size=image_size,
            in_chans=in_chans,
            num_classes=0,
            global_pool="",
            use_rel_pos=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # timm's own SAM has 1e-5
            block_fn=SAMBlock,
            **sizes,
        )
        dim = self.embed_dim
        if lora_rank:
            for block in self.blocks:
                block.attn.qkv = LoRALinear(
                    dim, 3 * dim, rank=lora_rank, parts={"q": (0, dim), "v": (2 * dim, 3 * dim)}
                )

    def forward_features(self, image: Tensor) -> Tensor:
        """(B, in_chans, H, W), multiples of patch_size → (B, neck_chans, H / patch_size, W / patch_size)."""
        x = self.patch_embed(image)  # (B, h, w, embed_dim)
        x = (
            x.contiguous()
        )  # a convolution leaves channels first in memory, and every block would keep them there
        x = x + resize_positions(self.pos_embed, x.shape[1:3])
        for block in self.blocks:
            again = self.grad_checkpointing and torch.is_grad_enabled()
            x = recomputed(block, x) if again else block(x)
        return self.neck(x.permute(0, 3, 1, 2))


class SAMBlock(Block):
    """timm's block, whose windows are padded after the qkv projection: a padded token's projection is the bias."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) → (B, h, w, C)."""
        attended = attention(self.attn.qkv(self.norm1(x)), self.attn, self.window_size)
        x = plus(self.attn.proj(attended), x)
        return plus(self.mlp(self.norm2(x)), x)


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, h, w, C) → (1, *grid, C), bilinear as in SAMed."""
    if tuple(positions.shape[1:3]) == tuple(grid):
        return positions
    moved = F.interpolate(positions.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False)
    return moved.permute(0, 2, 3, 1)

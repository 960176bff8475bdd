"""SAM's image encoder: timm's vision transformer with SAM's epsilon, LoRA, and padding after the qkv projection."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer_sam import Block, VisionTransformerSAM, get_rel_pos, window_unpartition
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .lora import LoRALinear


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
        x = x + resize_positions(self.pos_embed, x.shape[1:3])
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


class SAMBlock(Block):
    """timm's block, whose windows are padded after the qkv projection: a padded token's projection is the bias."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) → (B, h, w, C)."""
        height, width = x.shape[1:3]
        qkv = self.attn.qkv(self.norm1(x))  # (B, h, w, 3C)
        if self.window_size:
            qkv = _windows(qkv, self.attn.qkv.bias, self.window_size)  # (B windows, 14, 14, 3C)
        attended = _attention(qkv, self.attn)
        if self.window_size:
            padded = tuple(-(-side // self.window_size) * self.window_size for side in (height, width))
            attended = window_unpartition(attended, self.window_size, (height, width), padded)
        x = x + self.attn.proj(attended)
        return x + self.mlp(self.norm2(x))


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, h, w, C) → (1, *grid, C), bilinear as in SAMed."""
    if tuple(positions.shape[1:3]) == tuple(grid):
        return positions
    moved = F.interpolate(positions.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False)
    return moved.permute(0, 2, 3, 1)


def _windows(qkv: Tensor, bias: Tensor, size: int) -> Tensor:
    """(B, h, w, C) → (B × windows, size, size, C); the windows at the bottom and on the right are filled with bias."""
    batch, height, width, channels = qkv.shape
    right, below = -width % size, -height % size
    bias = bias.to(qkv.dtype)
    if right:
        qkv = torch.cat([qkv, bias.expand(batch, height, right, channels)], dim=2)
    if below:
        qkv = torch.cat([qkv, bias.expand(batch, below, width + right, channels)], dim=1)
    rows, columns = (height + below) // size, (width + right) // size
    split = qkv.view(batch, rows, size, columns, size, channels).transpose(2, 3)
    return split.reshape(-1, size, size, channels)


def _attention(qkv: Tensor, attn: nn.Module) -> Tensor:
    """(B, h, w, 3C) → (B, h, w, C): attention within each of the B grids, with SAM's relative positions.

    score(i, j) = s qi·kj + qi·Rh[row i, row j] + qi·Rw[column i, column j], where the two last terms are folded into
    one longer product: [s qi, qi·Rh[row i], qi·Rw[column i]] · [kj, one-hot row j, one-hot column j].
    """
    batch, height, width, channels = qkv.shape
    heads = attn.num_heads
    q, k, v = qkv.view(batch, height, width, 3, heads, channels // 3 // heads).permute(3, 0, 4, 1, 2, 5)
    along_h = get_rel_pos(height, height, attn.rel_pos_h).to(q.dtype)  # (h, h, c)
    along_w = get_rel_pos(width, width, attn.rel_pos_w).to(q.dtype)  # (w, w, c)
    rows = torch.einsum("bnhwc,hkc->bnhwk", q, along_h)
    columns = torch.einsum("bnhwc,wkc->bnhwk", q, along_w)
    q = torch.cat([q * attn.scale, rows.to(q.dtype), columns.to(q.dtype)], dim=-1).flatten(2, 3)
    k = torch.cat([k, *_one_hot(height, width, k)], dim=-1).flatten(2, 3)
    attended = F.scaled_dot_product_attention(q, k, v.flatten(2, 3), scale=1.0)  # (B, heads, h w, c)
    return attended.transpose(1, 2).reshape(batch, height, width, channels // 3)


def _one_hot(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every place of a (B, heads, h, w, c) tensor: (B, heads, h, w, h) and (B, heads, h, w, w)."""
    shape = (*like.shape[:2], height, width)
    rows = torch.eye(height, dtype=like.dtype, device=like.device)[:, None, :]
    columns = torch.eye(width, dtype=like.dtype, device=like.device)[None, :, :]
    return rows.expand(*shape, height), columns.expand(*shape, width)

"""SAM's mask decoder without prompts: one token and one small network a class (Kirillov et al. 2023, SAMed 2023)."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from .lora import LoRALinear


class MaskDecoder(nn.Module):
    """Image embeddings → one map a class at four times their resolution.

    Args:
        num_classes: maps.
        dim: channels of the image embeddings.
        heads, mlp_dim: of the transformer.
        lora_rank: rank of LoRA on query and value of every attention, the transformer being frozen (SAMed_s);
            0 for none.
        silent_token: one more token, without a map.

    A class's parts are named `seg_layers.<class>`: nnU-Net leaves names with `.seg_layers.` out of
    `-pretrained_weights`, since their number depends on the classes. SAM's network that predicts the quality of its
    masks is left out; its token stays, for the others attend to it.
    """

    deep_supervision: bool = False  # set by nnU-Net's trainers; read by SAMed.forward

    def __init__(
        self,
        num_classes: int,
        dim: int,
        heads: int,
        mlp_dim: int,
        *,
        lora_rank: int = 0,
        silent_token: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("position_matrix", torch.randn(2, dim // 2))
        self.no_mask_embed = nn.Parameter(torch.randn(1, dim))
        self.iou_token = nn.Parameter(torch.randn(1, dim))
        self.silent_token = nn.Parameter(torch.randn(1, dim)) if silent_token else None
        self.transformer = TwoWayTransformer(dim, heads, mlp_dim, lora_rank=lora_rank)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2),
            nn.GELU(),
        )
        self.seg_layers = nn.ModuleList([ClassHead(dim) for _ in range(num_classes)])

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, dim, h, w) → (B, num_classes, 4h, 4w)."""
        batch, dim, height, width = embeddings.shape
        own = [self.iou_token] if self.silent_token is None else [self.iou_token, self.silent_token]
        tokens = torch.cat([*own, *(head.token for head in self.seg_layers)]).expand(batch, -1, -1)
        image = embeddings + self.no_mask_embed[..., None, None]
        image = image.flatten(2).transpose(1, 2)  # (B, h w, dim)
        tokens, image = self.transformer(tokens, image, self.positions(height, width))
        upscaled = self.output_upscaling(image.transpose(1, 2).reshape(batch, dim, height, width))
        weights = [head(tokens[:, len(own) + index]) for index, head in enumerate(self.seg_layers)]
        return torch.einsum("bkc,bchw->bkhw", torch.stack(weights, dim=1), upscaled)

    def positions(self, height: int, width: int) -> Tensor:
        """Sines and cosines of random projections of the centre of every place: (h w, dim), in [0, 1]² before."""
        matrix = self.position_matrix
        y = (torch.arange(height, device=matrix.device) + 0.5) / height * 2 - 1
        x = (torch.arange(width, device=matrix.device) + 0.5) / width * 2 - 1
        # products and not a matrix product, which autocast would round to 16 bits
        angles = 2 * math.pi * (x[None, :, None] * matrix[0] + y[:, None, None] * matrix[1])
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(0, 1)


class ClassHead(nn.Module):
    """A class's token, and the network that turns what the token has seen into weights of the upscaled embedding."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, dim))
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim // 8)])

    def forward(self, seen: Tensor) -> Tensor:
        """(B, dim) → (B, dim / 8)."""
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(seen)))))


class TwoWayTransformer(nn.Module):
    """Two layers in which tokens and picture attend to each other, and a last look of the tokens at the picture."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, *, lora_rank: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [TwoWayBlock(dim, heads, mlp_dim, first=first, lora_rank=lora_rank) for first in (True, False)]
        )
        self.final_attn_token_to_image = Attention(dim, dim // 2, heads, lora_rank=lora_rank)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, image: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, n, dim), picture (B, h w, dim) and its positions (h w, dim) → both, changed."""
        start = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, start, positions)
        looked = self.final_attn_token_to_image(tokens + start, image + positions, image)
        return self.norm_final_attn(tokens + looked), image


class TwoWayBlock(nn.Module):
    """Tokens look at each other and at the picture, are thought about, and the picture looks at the tokens."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, *, first: bool, lora_rank: int) -> None:
        super().__init__()
        attention = partial(Attention, dim, dim // 2, heads, lora_rank=lora_rank)
        self.first = first
        self.self_attn = Attention(dim, dim, heads, lora_rank=lora_rank)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = attention()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Perceptron(dim, mlp_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = attention()
        self.norm4 = nn.LayerNorm(dim)

    def forward(
        self, tokens: Tensor, image: Tensor, start: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`start`, the tokens as they entered the transformer, is their position."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + start
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        placed_image = image + positions
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + start, placed_image, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(placed_image, tokens + start, tokens))
        return tokens, image


class Attention(nn.Module):
    """Attention in `inner` channels, back to `dim`; LoRA on query and value."""

    def __init__(self, dim: int, inner: int, heads: int, *, lora_rank: int) -> None:
        super().__init__()
        self.heads = heads
        adapted = partial(LoRALinear, rank=lora_rank, parts={"out": (0, inner)}) if lora_rank else nn.Linear
        self.q_proj = adapted(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = adapted(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, n, dim), keys and values (B, m, dim) → (B, n, dim)."""
        projected = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)  # (B, heads, n, c)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) → (..., dim)."""
        return self.lin2(F.relu(self.lin1(x)))

"""A block of timm's Hiera without the tokens that only fill up its windows: the same numbers for less work."""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from timm.models.hieradet_sam2 import MultiScaleAttention, MultiScaleBlock
from torch import Tensor


def block_without_filling(block: MultiScaleBlock, x: Tensor, normed: Tensor) -> Tensor:
    """(B, H, W, C) and its `block.norm1` → (B, H', W', C'), equal to `block(x)` but for rounding.

    Hiera pads a map to whole windows with zeros before it projects to query, key and value: 22x22 tokens become 32x32
    in windows of 16. Here only real tokens are projected. The padded ones of a window all have the same key and
    value (the biases of the projection), so one of them, its logit raised by the logarithm of their number, takes
    the place of all; and nobody reads the result of their queries.
    """
    side = block.window_size[0]
    if block.pool is not None and side % 2 == 1:  # it pools filled windows, whose halves do not fit together
        return block(x)
    shortcut = x if block.dim == block.dim_out else _pooled(block.proj(normed), block.pool)
    x = shortcut + (_windowed_attention(block.attn, normed, side) if side else block.attn(normed))
    return x + block.mlp(block.norm2(x))


def _windowed_attention(attention: MultiScaleAttention, x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) → (B, H', W', C') with windows of side x side tokens, cut off at the end of the map."""
    batch, height, width, _ = x.shape
    regions = list(
        product(_spans(height, side), _spans(width, side))
    )  # all windows of a region have one shape
    tokens = [_windows(x[:, top:bottom, left:right], side) for (top, bottom), (left, right) in regions]
    projected = attention.qkv(_joined([t.flatten(0, 2) for t in tokens], 0)).split(
        [t[..., 0].numel() for t in tokens]
    )
    heads, step = attention.num_heads, 1 if attention.q_pool is None else 2
    filling = attention.qkv.bias.unflatten(0, (3, heads, -1)).to(projected[0].dtype)

    attended = []
    for qkv, ((top, bottom), (left, right)) in zip(projected, regions, strict=True):
        rows, columns = min(side, bottom - top), min(side, right - left)
        qkv = qkv.unflatten(0, (-1, rows * columns)).unflatten(
            -1, (3, heads, -1)
        )  # (windows, tokens, 3, heads, D)
        q, k, v = qkv.unbind(2)
        if attention.q_pool is not None:
            q = _pooled(q.reshape(len(q), rows, columns, -1), attention.q_pool)
            q = q.reshape(len(q), -1, heads, k.shape[-1])
        out = _attend(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), filling, side**2 - rows * columns
        )
        attended.append(out.transpose(1, 2).reshape(-1, attention.dim_out))

    projected = attention.proj(_joined(attended, 0)).split([len(a) for a in attended])
    maps = [
        _map(values, batch, (bottom - top) // step, (right - left) // step, side // step)
        for values, ((top, bottom), (left, right)) in zip(projected, regions, strict=True)
    ]
    per_row = len(_spans(width, side))
    return _joined([_joined(maps[i : i + per_row], 2) for i in range(0, len(maps), per_row)], 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, filling: Tensor, n_filling: int) -> Tensor:
    """Attention of (windows, heads, queries, D) to their tokens and to `n_filling` tokens with the key and value of
    `filling` (3, heads, D)."""
    if n_filling == 0:
        return F.scaled_dot_product_attention(q, k, v)
    _, key, value = filling[:, None, :, None].expand(-1, len(k), -1, -1, -1)
    k, v = torch.cat([k, key], 2), torch.cat([v, value], 2)
    logit = torch.zeros(k.shape[2], dtype=q.dtype, device=q.device)
    logit[-1] = math.log(n_filling)
    return F.scaled_dot_product_attention(q, k, v, logit.expand(1, 1, q.shape[2], -1))


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)  # cat would copy a single one


def _spans(length: int, side: int) -> list[tuple[int, int]]:
    """Where the whole windows lie, and where the rest does."""
    whole = length - length % side
    return [(start, end) for start, end in ((0, whole), (whole, length)) if start < end]


def _windows(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) → (B, windows, tokens, C), in windows of at most side x side tokens."""
    batch, height, width, channels = x.shape
    rows, columns = min(side, height), min(side, width)
    x = x.reshape(batch, height // rows, rows, width // columns, columns, channels)
    return x.transpose(2, 3).reshape(batch, -1, rows * columns, channels)


def _map(values: Tensor, batch: int, height: int, width: int, side: int) -> Tensor:
    """Tokens in the order of `_windows` → (B, H, W, C)."""
    rows, columns = min(side, height), min(side, width)
    x = values.reshape(batch, height // rows, width // columns, rows, columns, -1)
    return x.transpose(2, 3).reshape(batch, height, width, -1)


def _pooled(x: Tensor, pool: torch.nn.MaxPool2d) -> Tensor:
    """Max pooling of (B, H, W, C)."""
    return pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

"""A block of timm's Hiera without the tokens that only fill up its windows: the same numbers for less work."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.hieradet_sam2 import MultiScaleAttention, MultiScaleBlock
from torch import Tensor

from .chunked_attention import ChunkedAttention, Windows
from .elementwise import plus


def block_without_filling(block: MultiScaleBlock, x: Tensor, normed: Tensor) -> Tensor:
    """(B, H, W, C) and its `block.norm1` → (B, H', W', C'), equal to `block(x)` but for rounding.

    Hiera pads a map to whole windows with zeros before it projects to query, key and value: 22x22 tokens become 32x32
    in windows of 16. The padded ones of a window all have the same key and value (the biases of the projection), so one
    of them, its logit raised by the logarithm of their number, takes the place of all; and nobody reads the result of
    their queries.
    """
    side = block.window_size[0]
    if block.pool is not None and side % 2 == 1:  # it pools filled windows, whose halves do not fit together
        return block(x)
    shortcut = x if block.dim == block.dim_out else _pooled(block.proj(normed), block.pool)
    x = plus(_attention(block.attn, normed, side), shortcut)
    return plus(block.mlp(block.norm2(x)), x)


def _attention(attention: MultiScaleAttention, x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) → (B, H', W', C'), in windows of side x side tokens, or in the whole map where that is 0."""
    trained = attention.qkv.bias.requires_grad and torch.is_grad_enabled()
    if (
        x.device.type == "cpu"
        and attention.q_pool is None
        and not trained
        and not torch.compiler.is_compiling()
    ):
        tokens, heads = attention.qkv(x), attention.num_heads
        sides = (side, side) if side else tuple(x.shape[1:3])
        scale = (tokens.shape[-1] // 3 // heads) ** -0.5
        bias = attention.qkv.bias.detach().to(tokens.dtype)
        make = partial(Windows, side=sides, bias=bias, heads=heads, scale=scale)
        return attention.proj(ChunkedAttention.apply(tokens, sides, heads, make))
    return _windowed_attention(attention, x, side) if side else attention(x)


def _windowed_attention(attention: MultiScaleAttention, x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) → (B, H', W', C'), with windows of side x side tokens, cut off at the end of the map."""
    batch, height, width, _ = x.shape
    heads, step = attention.num_heads, 1 if attention.q_pool is None else 2
    rows, columns = _spans(height, side), _spans(width, side)
    regions = [region for band in _split(x, rows, 1) for region in _split(band, columns, 2)]
    tokens = [_windows(region, side) for region in regions]  # all windows of a region have one shape
    n_filling = [side**2 - t.shape[1] for t in tokens]
    tokens = [F.pad(t, (0, 0, 0, 1)) if n else t for t, n in zip(tokens, n_filling, strict=True)]
    projected = attention.qkv(_joined([t.flatten(0, 1) for t in tokens], 0))

    attended = []
    for qkv, t, n, region in zip(
        _split(projected, [t.shape[:2].numel() for t in tokens], 0), tokens, n_filling, regions, strict=True
    ):
        q, k, v = qkv.unflatten(0, t.shape[:2]).unflatten(-1, (3, heads, -1)).unbind(2)
        q = q[:, : t.shape[1] - 1] if n else q  # (windows, tokens, heads, D)
        if attention.q_pool is not None:
            q = q.reshape(len(q), *(min(side, length) for length in region.shape[1:3]), -1)
            q = _pooled(q, attention.q_pool).reshape(len(q), -1, heads, k.shape[-1])
        out = _attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), n)
        attended.append(out.transpose(1, 2).flatten(2))

    maps = [
        _map(out, batch, region.shape[1] // step, region.shape[2] // step, side // step)
        for out, region in zip(attended, regions, strict=True)
    ]
    per_row = len(columns)
    bands = [_joined(maps[i : i + per_row], 2) for i in range(0, len(maps), per_row)]
    return attention.proj(_joined(bands, 1))


def _attend(q: Tensor, k: Tensor, v: Tensor, n_filling: int) -> Tensor:
    """Attention of (windows, heads, queries, D) to tokens of which the last, if any are filling, stands for all that
    are."""
    if n_filling == 0:
        return F.scaled_dot_product_attention(q, k, v)
    logit = torch.zeros(k.shape[2], dtype=q.dtype, device=q.device)
    logit[-1] = math.log(n_filling)
    return F.scaled_dot_product_attention(q, k, v, logit.expand(1, 1, q.shape[2], -1))


def _split(x: Tensor, lengths: list[int], dim: int) -> tuple[Tensor, ...]:
    """Parts of these lengths. (Split, not sliced: the gradient of a slice is as large as the whole.)"""
    return (x,) if len(lengths) == 1 else x.split(lengths, dim)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)  # cat would copy a single one


def _spans(length: int, side: int) -> list[int]:
    """The length that whole windows cover, and that of the rest."""
    return [span for span in (length - length % side, length % side) if span]


def _windows(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) → (B·windows, tokens, C), in windows of at most side x side tokens."""
    batch, height, width, channels = x.shape
    rows, columns = min(side, height), min(side, width)
    x = x.reshape(batch, height // rows, rows, width // columns, columns, channels)
    return x.transpose(2, 3).reshape(-1, rows * columns, channels)


def _map(values: Tensor, batch: int, height: int, width: int, side: int) -> Tensor:
    """Tokens in the order of `_windows` → (B, H, W, C)."""
    rows, columns = min(side, height), min(side, width)
    x = values.reshape(batch, height // rows, width // columns, rows, columns, -1)
    return x.transpose(2, 3).reshape(batch, height, width, -1)


def _pooled(x: Tensor, pool: torch.nn.MaxPool2d) -> Tensor:
    """Max pooling of (B, H, W, C)."""
    return pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

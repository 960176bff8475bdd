"""Attention with SAM's decomposed relative positions: a plain form, and one for CPUs that keeps no scores."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer_sam import get_rel_pos
from torch import Tensor, nn

SCORES_AT_ONCE = 1 << 21  # of float32, 8 MB: they stay in the cache between the steps that use them


def attention(qkv: Tensor, attn: nn.Module, window: int) -> Tensor:
    """Attention within each window of the grid, or within the whole grid where `window` is 0.

    score(i, j) = s qi·kj + qi·Rh[row i, row j] + qi·Rw[column i, column j]. The last two terms are folded into one
    longer product, which needs no matrix of biases: [s qi, qi·Rh[row i], qi·Rw[column i]] · [kj, 1 at row j, 1 at
    column j].

    Args:
        qkv: (B, h, w, 3C), the projection of the tokens.
        attn: the layer, with num_heads, scale, qkv.bias, rel_pos_h and rel_pos_w. Windows that stick out of the grid
            at the bottom and on the right are filled with the bias: the projection of SAM's zeros.

    Returns:
        (B, h, w, C), before the output projection.
    """
    height, width = qkv.shape[1:3]
    side = (window, window) if window else (height, width)
    along_h = get_rel_pos(side[0], side[0], attn.rel_pos_h).to(qkv.dtype)  # (rows, rows, c)
    along_w = get_rel_pos(side[1], side[1], attn.rel_pos_w).to(qkv.dtype)
    bias = attn.qkv.bias.to(qkv.dtype)
    trained = any(x.requires_grad for x in (bias, along_h, along_w))
    if qkv.device.type == "cpu" and not trained and not torch.compiler.is_compiling():
        return ChunkedAttention.apply(qkv, bias, along_h, along_w, attn.num_heads, attn.scale, side)
    q, k, v = windows(filled(qkv, bias, side), side, 3, attn.num_heads)
    q, k = folded_queries(q, along_h, along_w, attn.scale), folded_keys(k)
    q, k = (
        F.pad(x, (0, -x.shape[-1] % 8)) for x in (q, k)
    )  # CUDA's fused kernels take multiples of 8 channels
    q, k, v = (x.flatten(-3, -2).flatten(0, 2) for x in (q, k, v))  # (B rows columns, heads, places, c)
    out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    rows, columns = -(-height // side[0]), -(-width // side[1])
    out = out.view(-1, rows, columns, attn.num_heads, *side, out.shape[-1]).permute(0, 1, 4, 2, 5, 3, 6)
    return out.reshape(-1, rows * side[0], columns * side[1], qkv.shape[-1] // 3)[:, :height, :width]


def filled(x: Tensor, fill: Tensor, side: tuple[int, int]) -> Tensor:
    """(B, h, w, C) → (B, H, W, C): filled at the bottom and on the right to whole windows."""
    batch, height, width, channels = x.shape
    below, right = -height % side[0], -width % side[1]
    if right:
        x = torch.cat([x, fill.expand(batch, height, right, channels)], dim=2)
    if below:
        x = torch.cat([x, fill.expand(batch, below, width + right, channels)], dim=1)
    return x


def windows(x: Tensor, side: tuple[int, int], parts: int, heads: int) -> Tensor:
    """(B, H, W, parts × heads × c) → a view (parts, B, rows, columns, heads, *side, c) of its windows."""
    batch, height, width, _ = x.shape
    x = x.view(batch, height // side[0], side[0], width // side[1], side[1], parts, heads, -1)
    return x.permute(5, 0, 1, 3, 6, 2, 4, 7)


def folded_queries(q: Tensor, along_h: Tensor, along_w: Tensor, scale: float) -> Tensor:
    """(..., h, w, c) → (..., h, w, c + h + w)."""
    rows = q @ along_h.mT  # (h, w, c) @ (h, c, h)
    columns = (q.transpose(-3, -2) @ along_w.mT).transpose(-3, -2)
    return torch.cat([q * scale, rows, columns], dim=-1)


def folded_keys(k: Tensor) -> Tensor:
    """(..., h, w, c) → (..., h, w, c + h + w)."""
    height, width = k.shape[-3:-1]
    row = torch.eye(height, dtype=k.dtype, device=k.device)[:, None, :]
    column = torch.eye(width, dtype=k.dtype, device=k.device)[None, :, :]
    shape = k.shape[:-1]
    return torch.cat([k, row.expand(*shape, height), column.expand(*shape, width)], dim=-1)


class ChunkedAttention(torch.autograd.Function):
    """The same numbers with frozen positions: scores of a few heads at a time, in one buffer, computed again backward.

    Scores of a whole layer are hundreds of megabytes, which on CPUs are spent on page faults and main memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        bias: Tensor,
        along_h: Tensor,
        along_w: Tensor,
        heads: int,
        scale: float,
        side: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(qkv, bias, along_h, along_w)
        ctx.sizes = heads, scale, side
        height, width, channels = qkv.shape[1], qkv.shape[2], qkv.shape[3] // 3
        out = qkv.new_empty(*qkv.shape[:3], channels)
        for picture, target in zip(qkv.split(1), out, strict=True):
            whole = filled(picture, bias, side)
            q, k, v = windows(whole, side, 3, heads)
            folded_q, folded_k = _flat(folded_queries(q, along_h, along_w, scale)), _flat(folded_keys(k))
            v = _flat(v)
            attended = torch.empty_like(v)
            for some, p in _chunks(folded_q, 1):
                _probabilities(folded_q[some], folded_k[some], p)
                torch.bmm(p, v[some], out=attended[some])
            joined = torch.empty_like(whole[..., :channels], memory_format=torch.contiguous_format)
            windows(joined, side, 1, heads)[0].copy_(attended.view(q.shape))
            target.copy_(joined[0, :height, :width])
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        qkv, bias, along_h, along_w = ctx.saved_tensors
        heads, scale, side = ctx.sizes
        height, width, channels = grad_out.shape[1:]
        grad, zeros = torch.empty_like(qkv), torch.zeros_like(bias[:channels])
        for picture, grad_picture, target in zip(qkv.split(1), grad_out.split(1), grad, strict=True):
            whole = filled(picture, bias, side)
            q, k, v = windows(whole, side, 3, heads)
            g = _flat(windows(filled(grad_picture.contiguous(), zeros, side), side, 1, heads)[0])
            folded_q, folded_k = _flat(folded_queries(q, along_h, along_w, scale)), _flat(folded_keys(k))
            v = _flat(v)
            scaled_q = folded_q[..., : v.shape[-1]]
            grad_q, grad_k, grad_v = torch.empty_like(folded_q), torch.empty_like(v), torch.empty_like(v)
            for some, p, grad_s in _chunks(folded_q, 2):
                _probabilities(folded_q[some], folded_k[some], p)
                torch.bmm(p.mT, g[some], out=grad_v[some])
                torch.bmm(g[some], v[some].mT, out=grad_s)
                torch._softmax_backward_data(grad_s, p, -1, p.dtype, grad_input=grad_s)
                torch.bmm(grad_s, folded_k[some], out=grad_q[some])
                torch.bmm(grad_s.mT, scaled_q[some], out=grad_k[some])
            grad_whole = torch.empty_like(whole)
            joined = windows(grad_whole, side, 3, heads)
            joined[0].copy_(_unfolded(grad_q.view(*q.shape[:-1], -1), along_h, along_w, scale))
            joined[1].copy_(grad_k.view(q.shape))
            joined[2].copy_(grad_v.view(q.shape))
            target.copy_(grad_whole[0, :height, :width])
        return grad, None, None, None, None, None, None


def _flat(x: Tensor) -> Tensor:
    """(1, rows, columns, heads, h, w, c) → (rows columns heads, h w, c), contiguous."""
    return x.contiguous().flatten(-3, -2).flatten(0, -3)


def _chunks(q: Tensor, n_buffers: int) -> list[tuple[Any, ...]]:
    """Slices of the first dimension, and for each the parts of the buffers that take its scores."""
    places = q.shape[1]
    step = max(1, SCORES_AT_ONCE // places**2)
    buffers = [q.new_empty(min(step, len(q)), places, places) for _ in range(n_buffers)]
    starts = range(0, len(q), step)
    return [
        (slice(start, start + step), *(buffer[: len(q) - start] for buffer in buffers)) for start in starts
    ]


def _probabilities(q: Tensor, k: Tensor, out: Tensor) -> None:
    """Softmax of the scores, into `out`."""
    torch.bmm(q, k.mT, out=out)
    torch.softmax(out, dim=-1, out=out)


def _unfolded(grad: Tensor, along_h: Tensor, along_w: Tensor, scale: float) -> Tensor:
    """The gradient of `folded_queries`: (..., h, w, c + h + w) → (..., h, w, c)."""
    height, width, channels = len(along_h), len(along_w), along_h.shape[-1]
    own, rows, columns = grad.split([channels, height, width], dim=-1)
    total = own * scale
    total += rows @ along_h
    total += (columns.transpose(-3, -2) @ along_w).transpose(-3, -2)
    return total

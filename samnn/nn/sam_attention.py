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
    side_h, side_w = (window, window) if window else qkv.shape[1:3]
    along_h = get_rel_pos(side_h, side_h, attn.rel_pos_h).to(qkv.dtype)  # (rows, rows, c)
    along_w = get_rel_pos(side_w, side_w, attn.rel_pos_w).to(qkv.dtype)
    bias = attn.qkv.bias.to(qkv.dtype)
    if qkv.device.type == "cpu" and not (along_h.requires_grad or torch.compiler.is_compiling()):
        return ChunkedAttention.apply(qkv, bias, along_h, along_w, attn.num_heads, attn.scale, window)
    windows, grid = to_windows(qkv, bias, window)
    q, k, v = windows.unflatten(-1, (3, attn.num_heads, -1)).permute(
        3, 0, 4, 1, 2, 5
    )  # (n, heads, rows, columns, c)
    q, k = folded_queries(q, along_h, along_w, attn.scale), folded_keys(k)
    out = F.scaled_dot_product_attention(q, k, v.flatten(2, 3), scale=1.0)  # (n, heads, places, c)
    out = out.transpose(1, 2).reshape(len(out), side_h, side_w, -1)
    return from_windows(out, grid, qkv.shape[1:3])


def to_windows(x: Tensor, fill: Tensor, window: int) -> tuple[Tensor, tuple[int, int]]:
    """(B, h, w, C) → (B rows columns, window, window, C) and (rows, columns); no window: x and (1, 1)."""
    if not window:
        return x, (1, 1)
    batch, height, width, channels = x.shape
    right, below = -width % window, -height % window
    if right:
        x = torch.cat([x, fill.expand(batch, height, right, channels)], dim=2)
    if below:
        x = torch.cat([x, fill.expand(batch, below, width + right, channels)], dim=1)
    rows, columns = (height + below) // window, (width + right) // window
    x = x.view(batch, rows, window, columns, window, channels).transpose(2, 3)
    return x.reshape(-1, window, window, channels), (rows, columns)


def from_windows(x: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(B rows columns, window, window, C) → (B, h, w, C), without what sticks out."""
    rows, columns = grid
    height, width, channels = x.shape[1:]
    x = x.view(-1, rows, columns, height, width, channels).transpose(2, 3)
    return x.reshape(-1, rows * height, columns * width, channels)[:, : size[0], : size[1]]


def folded_queries(q: Tensor, along_h: Tensor, along_w: Tensor, scale: float) -> Tensor:
    """(n, heads, h, w, c) → (n, heads, h w, c + h + w)."""
    rows = torch.einsum("nihwc,hkc->nihwk", q, along_h)
    columns = torch.einsum("nihwc,wkc->nihwk", q, along_w)
    return torch.cat([q * scale, rows, columns], dim=-1).flatten(2, 3)


def folded_keys(k: Tensor) -> Tensor:
    """(n, heads, h, w, c) → (n, heads, h w, c + h + w)."""
    height, width = k.shape[2:4]
    row = torch.eye(height, dtype=k.dtype, device=k.device)[:, None, :]
    column = torch.eye(width, dtype=k.dtype, device=k.device)[None, :, :]
    shape = k.shape[:-1]
    return torch.cat([k, row.expand(*shape, height), column.expand(*shape, width)], dim=-1).flatten(2, 3)


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
        window: int,
    ) -> Tensor:
        ctx.save_for_backward(qkv, bias, along_h, along_w)
        ctx.sizes = heads, scale, window
        out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
        for index in range(len(qkv)):
            q, k, v, grid = _split(qkv[index : index + 1], bias, heads, window)
            attended = torch.empty_like(v)
            folded_q, folded_k = _flat(folded_queries(q, along_h, along_w, scale)), _flat(folded_keys(k))
            for some, scores in _chunks(folded_q):
                p = _probabilities(folded_q[some], folded_k[some], scores)
                torch.bmm(p, v[some], out=attended[some])
            out[index] = _joined([attended], q, grid, qkv.shape[1:3])
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        qkv, bias, along_h, along_w = ctx.saved_tensors
        heads, scale, window = ctx.sizes
        grad = torch.empty_like(qkv)
        zeros = torch.zeros_like(bias[: grad_out.shape[-1]])
        for index in range(len(qkv)):
            q, k, v, grid = _split(qkv[index : index + 1], bias, heads, window)
            g = to_windows(grad_out[index : index + 1], zeros, window)[0]
            g = g.unflatten(-1, (heads, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1).contiguous()
            folded_q, folded_k = _flat(folded_queries(q, along_h, along_w, scale)), _flat(folded_keys(k))
            scaled_q = folded_q[..., : v.shape[-1]]
            grad_q, grad_k, grad_v = torch.empty_like(folded_q), torch.empty_like(v), torch.empty_like(v)
            for some, scores in _chunks(folded_q):
                p = _probabilities(folded_q[some], folded_k[some], scores)
                torch.bmm(p.mT, g[some], out=grad_v[some])
                grad_p = torch.bmm(g[some], v[some].mT)
                grad_s = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
                torch.bmm(grad_s, folded_k[some], out=grad_q[some])
                torch.bmm(grad_s.mT, scaled_q[some], out=grad_k[some])
            grad[index] = _joined(
                [_unfolded(grad_q, q, along_h, along_w, scale), grad_k, grad_v], q, grid, qkv.shape[1:3]
            )
        return grad, None, None, None, None, None, None


def _split(
    qkv: Tensor, bias: Tensor, heads: int, window: int
) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """(1, h, w, 3C) → queries and keys (n, heads, rows, columns, c), values (n heads, places, c), and the windows' grid."""
    windows, grid = to_windows(qkv, bias, window)
    q, k, v = windows.unflatten(-1, (3, heads, -1)).permute(3, 0, 4, 1, 2, 5)
    return q, k, _flat(v.flatten(2, 3)), grid


def _flat(x: Tensor) -> Tensor:
    """(n, heads, places, c) → (n heads, places, c)."""
    return x.flatten(0, 1).contiguous()


def _chunks(q: Tensor) -> list[tuple[slice, Tensor]]:
    """Slices of the first dimension, and for each the part of one buffer that takes its scores."""
    places = q.shape[1]
    step = max(1, SCORES_AT_ONCE // places**2)
    buffer = q.new_empty(min(step, len(q)), places, places)
    starts = range(0, len(q), step)
    return [(slice(start, start + step), buffer[: len(q) - start]) for start in starts]


def _probabilities(q: Tensor, k: Tensor, scores: Tensor) -> Tensor:
    torch.bmm(q, k.mT, out=scores)
    return torch.softmax(scores, dim=-1, out=scores)


def _unfolded(grad: Tensor, q: Tensor, along_h: Tensor, along_w: Tensor, scale: float) -> Tensor:
    """The gradient of `folded_queries`: (n heads, places, c + h + w) → (n heads, places, c)."""
    n, heads, height, width, channels = q.shape
    own, rows, columns = grad.view(n, heads, height, width, -1).split([channels, height, width], dim=-1)
    total = own * scale
    total += torch.einsum("nihwk,hkc->nihwc", rows, along_h)
    total += torch.einsum("nihwk,wkc->nihwc", columns, along_w)
    return total.view(n * heads, height * width, channels)


def _joined(parts: list[Tensor], like: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Parts (n heads, places, c) in the windows of `like` → (h, w, parts × heads × c)."""
    n, heads, height, width, channels = like.shape
    shaped = torch.stack([part.view(n, heads, height, width, channels) for part in parts])
    shaped = shaped.permute(1, 3, 4, 0, 2, 5).reshape(n, height, width, -1)
    return from_windows(shaped, grid, size)[0]

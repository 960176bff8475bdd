"""Attention with SAM's decomposed relative positions: a plain form, and one for CPUs that keeps no scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
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
    """(..., h, w, c), positions (h, rows, c) and (w, columns, c) → (..., h, w, c + rows + columns)."""
    rows = q @ along_h.mT  # (h, w, c) @ (h, c, rows)
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

    Scores of a whole layer are hundreds of megabytes, which on CPUs are spent on page faults and main memory. Tokens that
    fill up windows have keys and values, but no queries: nobody reads their results.
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
        out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
        for place in _places(qkv.shape, side):
            folded = _Folded(qkv[place], bias, along_h, along_w, heads, scale)
            q, k, v = folded.q, folded.k, folded.v
            attended = v.new_empty(*q.shape[:2], v.shape[-1])
            chunks = _chunks(q, k, 1)
            for picture, target in zip(qkv[place].split(1), out[place].split(1), strict=True):
                folded.take(picture)
                for some, p in chunks:
                    _probabilities(q[some], k[some], p)
                    torch.bmm(p, v[some], out=attended[some])
                to = windows(target, folded.size, 1, heads)
                to.copy_(attended.view(to.shape))
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        qkv, bias, along_h, along_w = ctx.saved_tensors
        heads, scale, side = ctx.sizes
        grad, grad_out = torch.empty_like(qkv), grad_out.contiguous()
        for place in _places(qkv.shape, side):
            folded = _Folded(qkv[place], bias, along_h, along_w, heads, scale)
            q, k, v = folded.q, folded.k, folded.v
            grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, v, v))
            chunks = _chunks(q, k, 2)
            pictures = zip(*(x[place].split(1) for x in (qkv, grad_out, grad)), strict=True)
            for picture, grad_picture, target in pictures:
                folded.take(picture)
                g = windows(grad_picture, folded.size, 1, heads).reshape(*q.shape[:2], -1)
                for some, p, grad_s in chunks:
                    _probabilities(q[some], k[some], p)
                    torch.bmm(p.mT, g[some], out=grad_v[some])
                    torch.bmm(g[some], v[some].mT, out=grad_s)
                    torch._softmax_backward_data(grad_s, p, -1, p.dtype, grad_input=grad_s)
                    torch.bmm(grad_s, k[some], out=grad_q[some])
                    torch.bmm(grad_s.mT, q[some][..., : g.shape[-1]], out=grad_k[some])
                folded.give(grad_q, grad_k, grad_v, target)
        return grad, None, None, None, None, None, None


class _Folded:
    """Folded queries `q` and keys `k`, and values `v`, of the windows of one size: buffers for picture after picture.

    Args:
        region: (B, h, w, 3C), of which they are the windows.
        bias: (3C), what keys and values are filled up with to whole windows.
        along_h, along_w: positions (rows, rows, c) and (columns, columns, c) of a whole window, query's by key's place.
        heads, scale: as of the layer.

    `q` is (windows heads, h w, c + rows + columns), `k` (windows heads, rows columns, the same), and `v` ends in c.
    """

    def __init__(
        self, region: Tensor, bias: Tensor, along_h: Tensor, along_w: Tensor, heads: int, scale: float
    ) -> None:
        rows, columns, channels = len(along_h), len(along_w), along_h.shape[-1]
        self.size = height, width = min(rows, region.shape[1]), min(columns, region.shape[2])
        self.heads, self.scale, self.parts = heads, scale, [channels, rows, columns]
        grid = 1, region.shape[1] // height, region.shape[2] // width, heads
        n = math.prod(grid)
        self.q = region.new_empty(n, height * width, sum(self.parts))
        self.k = region.new_zeros(n, rows * columns, sum(self.parts))
        self.v = region.new_empty(n, rows * columns, channels)
        self.whole = *grid, rows, columns, channels
        self.own_k, row, column = self.k.view(*self.whole[:-1], -1).split(self.parts, dim=-1)
        self.own_v = self.v.view(self.whole)
        for own, fill in zip((self.own_k, self.own_v), bias.chunk(3)[1:], strict=True):
            own.copy_(fill.view(heads, 1, 1, channels))
        row.diagonal(dim1=-3, dim2=-1).fill_(1)
        column.diagonal(dim1=-2, dim2=-1).fill_(1)
        # what is along depends on how far the key's place is from the query's alone: from far before to far behind
        self.along = torch.cat([along_h[-1], along_h[0, 1:], along_w[-1], along_w[0, 1:]])
        self.products = region.new_empty(n * height * width, len(self.along))

    def take(self, picture: Tensor) -> None:
        """Fill the buffers from the region of a picture, (1, h, w, 3C)."""
        q, k, v = windows(picture, self.size, 3, self.heads)
        own, *by_place = self.q.split(self.parts, dim=-1)
        own.view(q.shape).copy_(q)
        torch.mm(own.flatten(0, 1), self.along.T, out=self.products)
        for part, products in zip(by_place, self._products_by_place(), strict=True):
            part.view(products.shape).copy_(products)
        own.mul_(self.scale)
        self._without_filling(self.own_k).copy_(k)
        self._without_filling(self.own_v).copy_(v)

    def give(self, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, target: Tensor) -> None:
        """Write the gradients of the buffers' contents as that of the region, (1, h, w, 3C)."""
        q, k, v = windows(target, self.size, 3, self.heads)
        own, *by_place = grad_q.split(self.parts, dim=-1)
        self.products.zero_()
        for part, products in zip(by_place, self._products_by_place(), strict=True):
            products.copy_(part.view(products.shape))
        q.copy_(torch.addmm(own.flatten(0, 1), self.products, self.along, beta=self.scale).view(q.shape))
        k.copy_(self._without_filling(grad_k.view(self.whole)))
        v.copy_(self._without_filling(grad_v.view(self.whole)))

    def _without_filling(self, x: Tensor) -> Tensor:
        return x[..., : self.size[0], : self.size[1], :]

    def _products_by_place(self) -> tuple[Tensor, Tensor]:
        """Views of `products` by the key's row, (windows heads, h, w, rows), and by its column, the same with columns.

        A query one row below finds the products with the same rows one place earlier.
        """
        (height, width), (_, rows, columns) = self.size, self.parts
        n, step = len(self.q), self.products.shape[1]
        strides = height * width * step, width * step, step
        return (
            self.products.as_strided(
                (n, height, width, rows), (*strides[:1], strides[1] - 1, step, 1), rows - 1
            ),
            self.products.as_strided(
                (n, height, width, columns), (*strides[:2], step - 1, 1), 2 * rows - 1 + columns - 1
            ),
        )


def _places(shape: Sequence[int], side: tuple[int, int]) -> list[tuple[slice, ...]]:
    """Where the (B, h, w, ...) has whole windows, and where those cut off on the right, at the bottom, and at both."""
    spans = []
    for length, step in zip(shape[1:3], side, strict=True):
        whole = length - length % step
        spans.append([slice(*span) for span in ((0, whole), (whole, length)) if span[0] < span[1]])
    return [(slice(None), *place) for place in itertools.product(*spans)]


def _chunks(q: Tensor, k: Tensor, n_buffers: int) -> list[tuple[Any, ...]]:
    """Slices of the first dimension, and for each the parts of the buffers that take its scores."""
    scores = q.shape[1], k.shape[1]
    step = max(1, SCORES_AT_ONCE // (scores[0] * scores[1]))
    buffers = [q.new_empty(min(step, len(q)), *scores) for _ in range(n_buffers)]
    starts = range(0, len(q), step)
    return [
        (slice(start, start + step), *(buffer[: len(q) - start] for buffer in buffers)) for start in starts
    ]


def _probabilities(q: Tensor, k: Tensor, out: Tensor) -> None:
    """Softmax of the scores, into `out`."""
    torch.bmm(q, k.mT, out=out)
    torch.softmax(out, dim=-1, out=out)

"""Attention with SAM's decomposed relative positions: a plain form, and one for CPUs."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer_sam import get_rel_pos
from torch import Tensor, nn

from .chunked_attention import ChunkedAttention, Windows, windows


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
        fold = partial(
            Folded, bias=bias, along_h=along_h, along_w=along_w, heads=attn.num_heads, scale=attn.scale
        )
        return ChunkedAttention.apply(qkv, side, attn.num_heads, fold)
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


class Folded(Windows):
    """Windows whose queries and keys are folded with positions, and filled up token by token, since each has its own.

    Args:
        region, bias, heads, scale: as of `Windows`.
        along_h, along_w: positions (rows, rows, c) and (columns, columns, c) of a whole window, query's by key's place.

    `q` is (windows heads, h w, c + rows + columns), `k` (windows heads, rows columns, the same), and `v` ends in c.
    """

    def __init__(
        self, region: Tensor, bias: Tensor, along_h: Tensor, along_w: Tensor, heads: int, scale: float
    ) -> None:
        rows, columns, channels = len(along_h), len(along_w), along_h.shape[-1]
        self.size = height, width = min(rows, region.shape[1]), min(columns, region.shape[2])
        self.heads, self.scale, self.parts = heads, scale, [channels, rows, columns]
        grid = len(region), region.shape[1] // height, region.shape[2] // width, heads
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

    def take(self, region: Tensor) -> None:
        """Fill the buffers from pictures of the shape of the first."""
        q, k, v = windows(region, self.size, 3, self.heads)
        own, *by_place = self.q.split(self.parts, dim=-1)
        own.view(q.shape).copy_(q)
        torch.mm(own.flatten(0, 1), self.along.T, out=self.products)
        for part, products in zip(by_place, self._products_by_place(), strict=True):
            part.view(products.shape).copy_(products)
        own.mul_(self.scale)
        self._without_filling(self.own_k).copy_(k)
        self._without_filling(self.own_v).copy_(v)

    def give(self, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, target: Tensor) -> None:
        """Write the gradients of the buffers' contents as those of the pictures, (B, h, w, 3C)."""
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

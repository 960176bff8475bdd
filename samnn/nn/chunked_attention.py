"""Attention within windows for CPUs: no scores are kept, and tokens that only fill up windows have no queries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

SCORES_AT_ONCE = 1 << 21  # of float32, 8 MB: they stay in the cache between the steps that use them


class Windows:
    """Queries `q`, keys `k` and values `v` of all heads of the windows of one size: buffers for picture after picture.

    Args:
        region: (B, h, w, 3C) of pictures: whole windows, or those that are cut off where the picture ends.
        side: (rows, columns) of a whole window.
        bias: (3C), the key and value of the tokens that fill up windows to whole ones; they all have the same.
        heads: of c = C / heads channels each.
        scale: of the product of query and key.

    `q`, (windows heads, h w, channels), `k`, (windows heads, h w and one that stands for all that fill up, channels),
    and `v`, (windows heads, the same, c). The logit of the one is raised by the logarithm of their number: in the last of
    the channels, which are c + 1 where there is filling, and c elsewhere.
    """

    def __init__(self, region: Tensor, side: tuple[int, int], bias: Tensor, heads: int, scale: float) -> None:
        self.size = min(side[0], region.shape[1]), min(side[1], region.shape[2])
        self.heads, self.scale = heads, scale
        n = region.shape[:3].numel() // math.prod(self.size) * heads
        tokens, self.channels = math.prod(self.size), region.shape[3] // 3 // heads
        n_filling = math.prod(side) - tokens
        extra = 1 if n_filling else 0
        self.q = region.new_ones(n, tokens, self.channels + extra)
        self.k = region.new_zeros(n, tokens + extra, self.channels + extra)
        self.v = region.new_empty(n, tokens + extra, self.channels)
        if n_filling:
            fill_k, fill_v = bias.view(3, 1, heads, -1)[1:]
            self.k[:, -1, :-1].unflatten(0, (-1, heads)).copy_(fill_k)
            self.k[:, -1, -1] = math.log(n_filling)
            self.v[:, -1].unflatten(0, (-1, heads)).copy_(fill_v)

    def take(self, region: Tensor) -> None:
        """Fill the buffers from pictures of the shape of the first."""
        q, k, v = windows(region, self.size, 3, self.heads)
        torch.mul(q, self.scale, out=self._own(self.q).view(q.shape))
        self._own(self.k).view(k.shape).copy_(k)
        self._own(self.v).view(v.shape).copy_(v)

    def give(self, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, target: Tensor) -> None:
        """Write the gradients of the buffers' contents as those of the pictures, (B, h, w, 3C)."""
        q, k, v = windows(target, self.size, 3, self.heads)
        torch.mul(self._own(grad_q).view(q.shape), self.scale, out=q)
        k.copy_(self._own(grad_k).view(k.shape))
        v.copy_(self._own(grad_v).view(v.shape))

    def _own(self, x: Tensor) -> Tensor:
        return x[:, : math.prod(self.size), : self.channels]


class ChunkedAttention(torch.autograd.Function):
    """Projections of tokens → what they attend to: (B, h, w, 3C) → (B, h, w, C); the projection's bias is frozen.

    Scores of a few heads at a time are computed into one buffer, and again in the backward pass: those of a whole layer
    are hundreds of megabytes, which on CPUs are spent on page faults and main memory.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, side: tuple[int, int], heads: int, make: Callable[[Tensor], Windows]
    ) -> Tensor:
        """`make` gets a region of `qkv` and makes the buffers for its windows of `side` or less."""
        ctx.save_for_backward(qkv)
        ctx.how = side, heads, make
        out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
        for some_windows, chunks, target in _taken(qkv, side, heads, make, 1, out):
            q, k, v = some_windows.q, some_windows.k, some_windows.v
            attended = v.new_empty(*q.shape[:2], v.shape[2])
            for some, p in chunks:
                _probabilities(q[some], k[some], p)
                torch.bmm(p, v[some], out=attended[some])
            to = windows(target, some_windows.size, 1, heads)
            to.copy_(attended.view(to.shape))
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        (qkv,) = ctx.saved_tensors
        grad = torch.empty_like(qkv)
        for some_windows, chunks, grad_region, target in _taken(
            qkv, *ctx.how, 2, grad_out.contiguous(), grad
        ):
            q, k, v = some_windows.q, some_windows.k, some_windows.v
            g = windows(grad_region, some_windows.size, 1, some_windows.heads).reshape(*q.shape[:2], -1)
            grad_q, grad_k, grad_v = torch.empty_like(q), v.new_empty(v.shape), torch.empty_like(v)
            for some, p, grad_s in chunks:
                _probabilities(q[some], k[some], p)
                torch.bmm(p.mT, g[some], out=grad_v[some])
                torch.bmm(g[some], v[some].mT, out=grad_s)
                torch._softmax_backward_data(grad_s, p, -1, p.dtype, grad_input=grad_s)
                torch.bmm(grad_s, k[some], out=grad_q[some])
                torch.bmm(grad_s.mT, q[some][..., : v.shape[2]], out=grad_k[some])
            some_windows.give(grad_q, grad_k, grad_v, target)
        return grad, None, None, None


def windows(x: Tensor, side: tuple[int, int], parts: int, heads: int) -> Tensor:
    """(B, H, W, parts × heads × c) → a view (parts, B, rows, columns, heads, *side, c) of its windows."""
    batch, height, width, _ = x.shape
    x = x.view(batch, height // side[0], side[0], width // side[1], side[1], parts, heads, -1)
    return x.permute(5, 0, 1, 3, 6, 2, 4, 7)


def _taken(
    qkv: Tensor,
    side: tuple[int, int],
    heads: int,
    make: Callable[[Tensor], Windows],
    n_buffers: int,
    *others: Tensor,
) -> Iterator[tuple[Any, ...]]:
    """Filled buffers, their `_chunks`, and the same regions of other maps; of as many pictures at once as are few scores."""
    for place in _places(qkv.shape, side):
        scores = heads * math.prod(side) * qkv[:1][place].shape[:3].numel()
        at_once = max(1, SCORES_AT_ONCE // scores)
        made = None
        for pictures, *rest in zip(*(x[place].split(at_once) for x in (qkv, *others)), strict=True):
            if made is None or len(pictures) != at_once:  # the last ones may be fewer
                made = make(pictures)
                chunks = _chunks(made.q, made.k, n_buffers)
            made.take(pictures)
            yield made, chunks, *rest


def _places(shape: Sequence[int], side: tuple[int, int]) -> list[tuple[slice, ...]]:
    """Where (B, h, w, …) has whole windows, and where those cut off on the right, at the bottom, and at both."""
    spans = []
    for length, step in zip(shape[1:3], side, strict=True):
        whole = length - length % step
        spans.append([slice(*span) for span in ((0, whole), (whole, length)) if span[0] < span[1]])
    return [(slice(None), *place) for place in itertools.product(*spans)]


def _chunks(q: Tensor, k: Tensor, n_buffers: int) -> list[tuple[Any, ...]]:
    """Slices of the first dimension, and for each the parts of the buffers that take its scores."""
    scores = q.shape[1], k.shape[1]
    step = max(1, SCORES_AT_ONCE // math.prod(scores))
    buffers = [q.new_empty(min(step, len(q)), *scores) for _ in range(n_buffers)]
    starts = range(0, len(q), step)
    return [
        (slice(start, start + step), *(buffer[: len(q) - start] for buffer in buffers)) for start in starts
    ]


def _probabilities(q: Tensor, k: Tensor, out: Tensor) -> None:
    """Softmax of the scores, into `out`."""
    torch.bmm(q, k.mT, out=out)
    torch.softmax(out, dim=-1, out=out)

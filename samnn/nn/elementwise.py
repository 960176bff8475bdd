"""Sums, PReLU and dropout at less cost on CPUs, where they take much of a training step of thin layers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def plus(change: Tensor, shortcut: Tensor) -> Tensor:
    """Their sum, in the place of `change`, so a forward hook that keeps `change` has to copy it.

    Under autocast a shortcut may have more bits, and keeps them; what a backward hook watches is left as it is.
    """
    if change.dtype != shortcut.dtype or change._base is not None:
        return shortcut + change
    return change.add_(shortcut)


class PReLU(nn.PReLU):
    """PReLU with one slope for all channels (He et al. 2015, arXiv 1502.01852): torch's numbers but for rounding.

    Where no gradient is wanted its input may be overwritten. Gradients of gradients there are none on CPUs.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """(…) → (…)."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
            return super().forward(x)
        if not torch.is_grad_enabled():
            return F.leaky_relu_(x, float(self.weight))
        return _PReLU.apply(x, self.weight)


class _PReLU(torch.autograd.Function):
    """Torch's own backward pass on CPUs goes through the values one by one, and writes the slope's gradient for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.leaky_relu(x, float(slope))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, slope = ctx.saved_tensors
        grad_x = grad_slope = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.ops.aten.leaky_relu_backward(grad, x, float(slope), False)
        if ctx.needs_input_grad[1]:
            below = x.clamp_max(0)
            as_x = torch.empty_like(below).copy_(grad) if grad.stride() != below.stride() else grad
            places = (below.numel(),), (1,)  # in memory; a clamped tensor has no gaps
            grad_slope = torch.dot(below.as_strided(*places), as_x.as_strided(*places)).reshape(1)
        return grad_x, grad_slope


class Dropout(nn.Dropout):
    """Dropout that draws the places of its zeros, not a number for every value; the distribution is torch's.

    A value is hit Poisson(-log(1 - p)) times, each value independently of the others, hence not at all with probability
    1 - p. As many hits as Poisson(-n log(1 - p)) says, each at a uniformly drawn one of n places, are just that.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…) → (…)."""
        cheaper = 0 < self.p <= 0.5 and x.numel() and x.device.type == "cpu" and not self.inplace
        if not self.training or not cheaper or torch.compiler.is_compiling():
            return super().forward(x)
        mean = torch.tensor(-x.numel() * math.log1p(-self.p), dtype=torch.float64)
        places = torch.randint(x.numel(), (int(torch.poisson(mean)),))
        return _Dropped.apply(x, places, 1 / (1 - self.p))


class _Dropped(torch.autograd.Function):
    """Zeros at some places, counted along the memory of the output; elsewhere what comes in, scaled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, scale: float) -> Tensor:
        out = x * scale
        ctx.save_for_backward(places)
        ctx.scale, ctx.strides = scale, out.stride()
        out.as_strided((out.numel(),), (1,)).index_fill_(0, places, 0)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        grad_x = torch.empty_strided(grad.shape, ctx.strides, dtype=grad.dtype)
        torch.mul(grad, ctx.scale, out=grad_x)
        grad_x.as_strided((grad_x.numel(),), (1,)).index_fill_(0, places, 0)
        return grad_x, None, None

"""Computing again in the backward pass what would otherwise be kept for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(compute: Callable[[Tensor], Any], x: Tensor) -> Any:
    """`compute(x)`, of which only `x` is kept for the backward pass."""
    return checkpoint(compute, x, use_reentrant=False, preserve_rng_state=False)


def recomputed_with_batch_norm(module: nn.Module, x: Tensor) -> Any:
    """`module(x)`, of which only `x` is kept; batch norm counts it once in its running statistics.

    While it is compiled everything is kept that the compiler wants to keep.
    """
    if torch.compiler.is_compiling():
        return module(x)
    return checkpoint(
        module,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _StatisticsKept(module)),
    )


class _StatisticsKept:
    """A context, entered again at every backward pass, in which batch norm leaves its running statistics alone."""

    def __init__(self, module: nn.Module) -> None:
        self.norms = [
            m for m in module.modules() if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None
        ]

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, n_batches) in zip(self.norms, self.before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(n_batches)

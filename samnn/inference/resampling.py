"""Logits on the original grid, some planes of one class at a time: what nnU-Net's resampling gives, in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

VOXELS_AT_ONCE = 1 << 22  # of one class; a handful of float32 arrays of this size live at the same time


class OriginalGrid:
    """Logits (classes, *predicted shape) as (classes, *shape before resampling), computed where asked for.

    nnU-Net's default resampling is linear along each axis, or nearest along the coarse one of a very anisotropic image;
    both need a few planes alone. Any other resampling in the plans is called for one whole class at a time.
    """

    def __init__(
        self,
        logits: Tensor | np.ndarray,
        plans: PlansManager,
        configuration: ConfigurationManager,
        properties: dict[str, Any],
    ) -> None:
        self.logits = torch.from_numpy(logits) if isinstance(logits, np.ndarray) else logits
        self.shape = tuple(int(n) for n in properties["shape_after_cropping_and_before_resampling"])
        spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
        planned = list(configuration.spacing)
        current = planned if len(planned) == len(self.shape) else [spacing[0], *planned]
        self.function = configuration.resampling_fn_probabilities
        self.spacings = current, spacing
        self.axes = None
        if self.logits.shape[1:] == self.shape:
            self.axes = [None] * len(self.shape)
        elif _is_default(self.function):
            options = self.function.keywords
            separate, axis = determine_do_sep_z_and_axis(
                options.get("force_separate_z", False), current, spacing
            )
            self.axes = [
                None if old == new else _taps(old, new, nearest=separate and place == axis)
                for place, (old, new) in enumerate(zip(self.logits.shape[1:], self.shape, strict=True))
            ]

    @property
    def n_classes(self) -> int:
        return len(self.logits)

    def slabs(self) -> list[slice]:
        """Ranges of planes along the first axis to ask for together."""
        n_planes, per_plane = self.shape[0], max(1, int(np.prod(self.shape[1:])))
        step = n_planes if self.axes is None else max(1, VOXELS_AT_ONCE // per_plane)
        return [slice(start, min(start + step, n_planes)) for start in range(0, n_planes, step)]

    def planes(self, index: int, slab: slice) -> Tensor:
        """Those planes of one class, float32, to be changed at will."""
        if self.axes is None:  # one slab holds all
            whole = self.function(self.logits[index : index + 1].float().numpy(), self.shape, *self.spacings)
            return torch.as_tensor(whole)[0].float()
        first, *others = self.axes
        if first is None:
            block = self.logits[index, slab].to(torch.float32, copy=True)
        else:
            low, high, share = (values[slab] for values in first)
            start = int(low[0])
            block = self.logits[index, start : int(high[-1]) + 1].float()
        for place, taps in enumerate(others, start=1):
            block = block if taps is None else _along(block, place, *taps)
        return block if first is None else _along(block, 0, low - start, high - start, share)


def _is_default(function: Any) -> bool:
    options = function.keywords if isinstance(function, partial) else {}
    return (
        isinstance(function, partial)
        and function.func is resample_data_or_seg_to_shape
        and (options.get("is_seg", False), options.get("order", 3), options.get("order_z", 0))
        == (False, 1, 0)
        and not options.keys() - {"is_seg", "order", "order_z", "force_separate_z"}
    )


def _taps(old: int, new: int, *, nearest: bool) -> tuple[Tensor, Tensor, Tensor]:
    """For each new place the two old places around it, and the share of the second. Ends are continued."""
    centre = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1)
    low = np.floor(centre + 0.5 if nearest else centre).astype(np.int64).clip(0, old - 1)
    high = low if nearest else np.minimum(low + 1, old - 1)
    share = np.zeros(new) if nearest else centre - low
    return torch.from_numpy(low), torch.from_numpy(high), torch.from_numpy(share.astype(np.float32))


def _along(block: Tensor, axis: int, low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    first = block.index_select(axis, low)
    if torch.equal(low, high):
        return first
    return first.lerp_(
        block.index_select(axis, high), share.view([-1 if a == axis else 1 for a in range(block.ndim)])
    )


def spatial(box: Sequence[Sequence[int]]) -> tuple[slice, ...]:
    """nnU-Net's bounding box as slices."""
    return tuple(slice(int(start), int(stop)) for start, stop in box)

"""What a trainer class declares about the configuration that `samnn plan` makes for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Planned:
    """The configuration `2d_<name>` of a trainer; the planner reads nothing else of a method.

    Args:
        name: of the configuration, after `2d_`.
        batch_size: of the published recipe.
        multiple: the sides of what the network computes on are multiples of this, in pixels, or it fills them up to
            such, as a whole or in its windows.
        token: side of what becomes a token or, in a convolutional encoder, a place of its first maps, in pixels.
        resizes: patches are resized to the network's argument `image_size`; otherwise they are taken as they are.
        outputs: maps at full resolution that the network returns with deep supervision.
        savings: arguments of the network that save memory at the price of time, tried in this order, the first being
            what is preferred where memory is plenty.
    """

    name: str
    batch_size: int
    multiple: int
    token: int
    resizes: bool = False
    outputs: int = 1
    savings: tuple[Mapping[str, Any], ...] = ({},)

    @property
    def configuration(self) -> str:
        """Its name in the plans."""
        return f"2d_{self.name}"

    @property
    def strides(self) -> list[list[int]]:
        """What nnU-Net's own trainers derive the targets of deep supervision from: one a map, all at full resolution.

        They leave the last one out and give the one before it no weight.
        """
        return [[1, 1]] * (self.outputs + 2)

"""What tiles add up to: sums in 32 bits, weighted by a Gaussian where tiles overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Slicer = tuple[slice | int, ...]  # of a tile, the channels first


class Canvas:
    """Logits of a whole volume, (classes, *shape): the weighted mean of those of its tiles.

    Args:
        shape: of the volume.
        tiles: slicers of all tiles, sorted along the first axis; together they cover the volume.
        gaussian: weight of each voxel of a tile; None for equal weights.
        device: where sums are kept. The result is on the CPU; planes that no later tile touches are copied there while
            others are computed.
        passes: how often the tiles are added, once by each fold.
    """

    def __init__(
        self,
        n_classes: int,
        shape: Sequence[int],
        tiles: Sequence[Slicer],
        gaussian: Tensor | None,
        device: torch.device,
        *,
        passes: int = 1,
    ) -> None:
        self.sums = self.result = torch.zeros((n_classes, *shape), device=device)
        self.copies = None
        if device.type == "cuda":
            self.result = torch.empty((n_classes, *shape), pin_memory=True)
            self.copies = torch.cuda.Stream(device)
        self.tiles, self.passes = tiles, passes
        self.n_added, self.n_planes = 0, 0  # planes that are finished
        self.gaussian = self.weights = None
        if sum(map(_n_voxels, tiles)) > math.prod(shape):  # some voxels lie in several tiles
            patch = self.sums[tiles[0]].shape[1:]
            self.gaussian = torch.ones(patch) if gaussian is None else gaussian
            self.gaussian = self.gaussian.to(device)
            self.weights = torch.zeros(tuple(shape), device=device)
            for tile in tiles:
                self.weights[tile[1:]] += self.gaussian

    def add(self, logits: Tensor) -> None:
        """Add those of the next tiles: (tiles, classes, *patch)."""
        for one in logits.to(self.sums.device):
            target = self.sums[self.tiles[self.n_added % len(self.tiles)]]
            if self.gaussian is not None:
                target.addcmul_(one, self.gaussian)
            elif self.passes > 1:
                target += one
            else:
                target.copy_(one)
            self.n_added += 1
        next_tile = self.n_added - (self.passes - 1) * len(self.tiles)
        if next_tile > 0:
            self._finish(
                _first_plane(self.tiles[next_tile]) if next_tile < len(self.tiles) else self.sums.shape[1]
            )

    def finished(self) -> Tensor:
        """The logits, on the CPU, once all tiles are added."""
        if self.copies is not None:
            self.copies.synchronize()
        return self.result

    def _finish(self, end: int) -> None:
        """Make means of the sums of all planes before `end`, and send them home."""
        planes = slice(self.n_planes, end)
        if end <= self.n_planes:
            return
        self.n_planes = end
        block = self.sums[:, planes]
        if self.weights is not None:
            block /= self.weights[planes]
        if self.passes > 1:
            block /= self.passes
        if self.copies is not None:
            self.copies.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.copies):
                for ours, home in zip(block, self.result[:, planes], strict=True):  # each in one piece
                    home.copy_(ours, non_blocking=True)


def _n_voxels(tile: Slicer) -> int:
    return math.prod(along.stop - along.start for along in tile[1:] if isinstance(along, slice))


def _first_plane(tile: Slicer) -> int:
    return tile[1].start if isinstance(tile[1], slice) else tile[1]

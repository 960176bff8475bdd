"""Bringing a label map onto an image's grid: as it is, its axes turned, or by nearest neighbour on request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samnn.geometry import Grid

NO_NOISE_MM = (
    1e-4  # float32 headers differ by less; above it labels are written anew under the image's header
)


@dataclass(frozen=True)
class Turn:
    """Axes permuted, then flipped: axis i of the result is axis `axes[i]`, backwards where `flipped[i]`."""

    axes: tuple[int, ...]
    flipped: tuple[bool, ...]

    @property
    def is_none(self) -> bool:
        return self.axes == tuple(range(len(self.axes))) and not any(self.flipped)

    def of_voxels(self, voxels: np.ndarray) -> np.ndarray:
        """A view of `voxels` with its axes turned."""
        backwards = tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return voxels.transpose(self.axes)[backwards]

    def of_grid(self, grid: Grid) -> Grid:
        """The grid of the turned voxels: each voxel stays where it is in the patient."""
        columns = np.reshape(grid.direction, (grid.n_dims, grid.n_dims))[:, self.axes]
        first = np.zeros(grid.n_dims)  # the voxel that comes first after turning
        for axis, flip in zip(self.axes, self.flipped, strict=True):
            first[axis] = grid.shape[axis] - 1 if flip else 0
        origin_mm = (grid.affine @ [*first, 1])[: grid.n_dims]
        return Grid(
            tuple(grid.shape[axis] for axis in self.axes),
            tuple(grid.spacing_mm[axis] for axis in self.axes),
            tuple(origin_mm.tolist()),
            tuple((columns * np.where(self.flipped, -1, 1)).ravel().tolist()),
        )

    def __str__(self) -> str:
        """The axes as they lay, e.g. (z, -x, y)."""
        return (
            "("
            + ", ".join(
                f"{'-' if flip else ''}{'xyz'[axis]}"
                for axis, flip in zip(self.axes, self.flipped, strict=True)
            )
            + ")"
        )


@dataclass(frozen=True)
class Fit:
    """How labels come onto an image's grid; `differences` is empty where no resampling is needed."""

    turn: Turn
    differences: list[str]
    is_exact: bool  # the header can stay as it is


def fit(image: Grid, labels: Grid) -> Fit:
    """Compare two grids of three dimensions, whatever the order and sense of their axes."""
    cosines = np.reshape(image.direction, (3, 3)).T @ np.reshape(labels.direction, (3, 3))
    turns = np.rint(cosines).astype(int)  # row: axis of the image, column: axis of the labels
    if (np.abs(turns).sum(axis=0) != 1).any() or (np.abs(turns).sum(axis=1) != 1).any():
        return Fit(Turn((0, 1, 2), (False,) * 3), image.differences(labels), False)
    axes = np.abs(turns).argmax(axis=1)
    turn = Turn(tuple(axes.tolist()), tuple((turns[range(3), axes] < 0).tolist()))
    turned = turn.of_grid(labels)
    is_exact = turn.is_none and not image.differences(turned, tolerance_mm=NO_NOISE_MM)
    return Fit(turn, image.differences(turned), is_exact)

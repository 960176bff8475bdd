"""Grid: where the voxels of a volume lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """A regular voxel grid. Everything is in (x, y, z) index order, world axes as in ITK (LPS), in millimetres.

    The centre of voxel (i, j, k) lies at `origin_mm + direction @ (spacing_mm * (i, j, k))`.
    A 2D image is a grid with two entries each.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    direction: tuple[float, ...]  # row-major rotation matrix, n·n entries

    @property
    def n_dims(self) -> int:
        return len(self.shape)

    @property
    def affine(self) -> np.ndarray:
        """The matrix from voxel indices to world positions in mm, with n + 1 rows and columns."""
        n = self.n_dims
        affine = np.eye(n + 1)
        affine[:n, :n] = np.reshape(self.direction, (n, n)) * np.asarray(self.spacing_mm)
        affine[:n, n] = self.origin_mm
        return affine

    def differences(self, other: Grid, *, tolerance_mm: float = 1e-2) -> list[str]:
        """Say in words how `other` differs; an empty list means the same grid.

        Shapes must be equal. Geometry may differ by no more than `tolerance_mm` anywhere in the volume: compared
        are the world positions of the corner voxels, so that a tiny spacing error on many slices counts for what
        it moves.
        """
        if self.shape != other.shape:
            return [f"shape {_numbers(self.shape)} against {_numbers(other.shape)}"]
        shift_mm = float(np.abs(self._corners_mm() - other._corners_mm()).max())
        if shift_mm <= tolerance_mm:
            return []
        parts = [
            f"{name} {_numbers(mine)} against {_numbers(theirs)}"
            for name, mine, theirs in [
                ("spacing (mm)", self.spacing_mm, other.spacing_mm),
                ("origin (mm)", self.origin_mm, other.origin_mm),
                ("direction", self.direction, other.direction),
            ]
            if not np.allclose(mine, theirs, rtol=0, atol=1e-6)
        ]
        return [*parts, f"corners up to {shift_mm:.3g} mm apart"]

    def first_axes(self, n: int) -> Grid:
        """The grid of the first `n` axes, as of 4-D data with the place in its first three."""
        matrix = np.asarray(self.direction).reshape(self.n_dims, self.n_dims)[:n, :n]
        return Grid(self.shape[:n], self.spacing_mm[:n], self.origin_mm[:n], tuple(matrix.ravel().tolist()))

    def touches(self, other: Grid) -> bool:
        """Whether the boxes around both grids, along the world axes, have a point in common."""
        (mine_low, mine_high), (low, high) = (
            (corners.min(axis=0), corners.max(axis=0))
            for corners in (self._corners_mm(), other._corners_mm())
        )
        return bool((mine_low <= high).all() and (low <= mine_high).all())

    def _corners_mm(self) -> np.ndarray:
        n = self.n_dims
        ends = np.stack(np.meshgrid(*[(0, size - 1) for size in self.shape], indexing="ij"), -1).reshape(
            -1, n
        )
        return ends @ self.affine[:n, :n].T + self.affine[:n, n]


def _numbers(values: tuple[float, ...]) -> str:
    # plus zero: no -0
    return "(" + ", ".join(f"{value + 0.0:.9g}" for value in values) + ")"

"""Calibration: how often what was given a probability came true, for one class, bin by bin."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

N_BINS = 15  # of equal width, from 0 to 1, as Guo et al. 2017 have them
SMALLEST = 1e-7  # a probability below this counts as this in the logarithm: 16.1 nats at most


@dataclass(frozen=True)
class Calibration:
    """Sums over voxels, for one class against all others; those of several cases add up.

    p is the probability of the class in a voxel, y is 1 where the reference holds the class and 0 elsewhere. Bin b
    holds the voxels with b / N_BINS ≤ p < (b + 1) / N_BINS, the last one also p = 1.
    """

    n: tuple[int, ...]  # voxels, bin by bin
    sum_p: tuple[float, ...]
    sum_y: tuple[int, ...]
    sum_squared_error: float  # of p − y, over all voxels
    sum_log_loss: float  # −ln of the probability given to what the reference says, in nats

    def __add__(self, other: Calibration) -> Calibration:
        n, sum_p, sum_y = (
            tuple(a + b for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(astuple(self)[:3], astuple(other)[:3], strict=True)
        )
        return Calibration(
            n,
            sum_p,
            sum_y,
            self.sum_squared_error + other.sum_squared_error,
            self.sum_log_loss + other.sum_log_loss,
        )

    @property
    def n_voxels(self) -> int:
        return sum(self.n)

    @property
    def bins(self) -> dict[str, list[Any]]:
        """What a reliability plot shows, bin by bin: null in an empty bin, edges one more than bins."""

        def over_n(sums: tuple[float, ...]) -> list[float | None]:
            return [total / n if n else None for total, n in zip(sums, self.n, strict=True)]

        return {
            "edges": [b / N_BINS for b in range(N_BINS + 1)],
            "n": list(self.n),
            "mean_probability": over_n(self.sum_p),
            "observed_fraction": over_n(self.sum_y),
        }


NOTHING = Calibration((0,) * N_BINS, (0.0,) * N_BINS, (0,) * N_BINS, 0.0, 0.0)


def measure(p: np.ndarray, y: np.ndarray) -> Calibration:
    """Sum up voxels: their probabilities from 0 to 1, and whether the reference holds the class; both flat."""
    p = p.astype(np.float64)
    bins = np.minimum((p * N_BINS).astype(np.intp), N_BINS - 1)
    given = np.where(y, p, 1 - p)
    return Calibration(
        tuple(np.bincount(bins, minlength=N_BINS).tolist()),
        tuple(np.bincount(bins, p, minlength=N_BINS).tolist()),
        tuple(np.bincount(bins[y], minlength=N_BINS).tolist()),
        float(np.square(1 - given).sum()),
        float(-np.log(np.maximum(given, SMALLEST)).sum()),
    )

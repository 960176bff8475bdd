"""How large the slices of a dataset are once they are preprocessed, from nnU-Net's fingerprint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from samnn.errors import SamnnError

COVERED = 95  # percent of the training cases whose slices a patch holds whole


@dataclass(frozen=True)
class Slices:
    """Of the training cases: `sides` (cases, 2), pixels (height, width); `counts` (cases,), slices."""

    sides: np.ndarray
    counts: np.ndarray

    def covering(self, multiple: int) -> tuple[int, int]:
        """Sides, multiples of `multiple`, of a patch that holds the slices of 95 % of the cases whole."""
        sides = np.percentile(self.sides, COVERED, axis=0, method="inverted_cdf")
        height, width = (-(-int(side) // multiple) * multiple for side in sides)
        return height, width

    def one_tile(self, patch: tuple[int, int]) -> float:
        """Share of the cases whose slices a patch holds whole."""
        return float((self.sides <= patch).all(axis=1).mean())

    def used(self, patch: tuple[int, int]) -> float:
        """Mean share of a patch that is picture: nnU-Net pads slices that are smaller."""
        return float(np.average((np.minimum(self.sides, patch) / patch).prod(axis=1), weights=self.counts))

    def pixels(self) -> float:
        """Of all slices together."""
        return float((self.sides.prod(axis=1) * self.counts).sum())


def read_slices(folder: Path, plans: PlansManager, configuration: ConfigurationManager) -> Slices:
    """From the fingerprint in a dataset's preprocessed folder.

    Raises:
        SamnnError: it is not there, or is none.
    """
    path = folder / "dataset_fingerprint.json"
    try:
        fingerprint: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        shapes, spacings = (np.array(fingerprint[key], float) for key in ("shapes_after_crop", "spacings"))
        axes = plans.transpose_forward
        shapes, spacings = shapes[:, axes], spacings[:, axes]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise SamnnError(
            f"{path}: cannot be read ({error}). Make it: nnUNetv2_extract_fingerprint -d {int(folder.name[7:10])}, or add "
            "--preprocess."
        ) from error
    sides = np.round(shapes[:, 1:] * spacings[:, 1:] / configuration.spacing).astype(int)
    return Slices(sides, shapes[:, 0])

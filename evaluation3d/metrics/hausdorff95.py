"""Robust Hausdorff distance: as Hausdorff, without the farthest 5 % of each surface's area.

Formula: max(P95 d(S_R → S_P), P95 d(S_P → S_R))

S_R, S_P: the surfaces of reference and prediction; P95: the smallest distance within which 95 % of the surface
area lies, for each direction by itself.
"""

from __future__ import annotations

import math

import numpy as np

from ..masks import MaskPair
from ..metric import SURFEL_WEIGHTED, UNDEFINED, Metric

METRIC = Metric(
    unit="mm",
    better="lower",
    range=(0, math.inf),
    source="Nikolov et al. 2018, arXiv:1809.04430",
    if_both_empty=UNDEFINED,
    if_reference_empty=UNDEFINED,
    if_prediction_empty=UNDEFINED,
    definition=SURFEL_WEIGHTED,
)


def compute(pair: MaskPair) -> float:
    surface = pair.surface
    return max(
        _percentile_95(surface.reference_to_prediction_mm, surface.reference_areas_mm2),
        _percentile_95(surface.prediction_to_reference_mm, surface.prediction_areas_mm2),
    )


def _percentile_95(distances_mm: np.ndarray, areas_mm2: np.ndarray) -> float:
    within = np.cumsum(areas_mm2) / np.sum(areas_mm2)
    return distances_mm[min(np.searchsorted(within, 0.95), len(distances_mm) - 1)]

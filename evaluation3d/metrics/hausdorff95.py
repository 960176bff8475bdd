"""Robust Hausdorff distance: as Hausdorff, without the farthest 5 % of each surface's area.

Formula: max(P95 d(S_R → S_P), P95 d(S_P → S_R))
Formula on border voxels: P95 of d(S_R → S_P) and d(S_P → S_R) together

S_R, S_P: the surfaces of reference and prediction; P95: the smallest distance within which 95 % of the surface
area lies, for each direction by itself. Among border voxels it is interpolated between the two nearest ranks, over
both directions together, as in medpy's `hd95`.
"""

from __future__ import annotations

import math

import numpy as np

from ..masks import MaskPair
from ..metric import UNDEFINED, Metric

METRIC = Metric(
    unit="mm",
    better="lower",
    range=(0, math.inf),
    source="Nikolov et al. 2018, arXiv:1809.04430",
    if_both_empty=UNDEFINED,
    if_reference_empty=UNDEFINED,
    if_prediction_empty=UNDEFINED,
    of_surfaces=True,
)


def compute(pair: MaskPair) -> float:
    surface = pair.surface
    return max(
        _percentile_95(surface.reference_to_prediction_mm, surface.reference_sizes),
        _percentile_95(surface.prediction_to_reference_mm, surface.prediction_sizes),
    )


def compute_on_voxels(pair: MaskPair) -> float:
    surface = pair.surface
    both_mm = np.concatenate([surface.reference_to_prediction_mm, surface.prediction_to_reference_mm])
    return float(np.percentile(both_mm, 95))


def _percentile_95(distances_mm: np.ndarray, areas_mm2: np.ndarray) -> float:
    order = np.lexsort((areas_mm2, distances_mm))
    within = np.cumsum(areas_mm2[order]) / np.sum(areas_mm2[order])
    return distances_mm[order[min(np.searchsorted(within, 0.95), len(order) - 1)]]

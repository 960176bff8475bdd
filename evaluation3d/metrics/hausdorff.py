"""Hausdorff distance: how far the worst point of either surface is from the other surface.

Formula: max(max d(S_R → S_P), max d(S_P → S_R))

S_R, S_P: the surfaces of reference and prediction; d(A → B): the distances from A's elements to B.
"""

from __future__ import annotations

import math

from ..masks import MaskPair
from ..metric import UNDEFINED, Metric

METRIC = Metric(
    unit="mm",
    better="lower",
    range=(0, math.inf),
    source="Huttenlocher et al. 1993, doi:10.1109/34.232073",
    if_both_empty=UNDEFINED,
    if_reference_empty=UNDEFINED,
    if_prediction_empty=UNDEFINED,
    of_surfaces=True,
)


def compute(pair: MaskPair) -> float:
    surface = pair.surface
    return max(surface.reference_to_prediction_mm.max(), surface.prediction_to_reference_mm.max())

"""Average symmetric surface distance: the mean distance over the area of both surfaces.

Formula: (Σ a·d(S_R → S_P) + Σ a·d(S_P → S_R)) / (area(S_R) + area(S_P))

S_R, S_P: the surfaces of reference and prediction; d(A → B): the distances from A's elements to B, a their areas.
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
    source="Heimann et al. 2009, doi:10.1109/TMI.2009.2013851",
    if_both_empty=UNDEFINED,
    if_reference_empty=UNDEFINED,
    if_prediction_empty=UNDEFINED,
    of_surfaces=True,
)


def compute(pair: MaskPair) -> float:
    surface = pair.surface
    weighted_mm3 = np.sum(surface.reference_to_prediction_mm * surface.reference_sizes) + np.sum(
        surface.prediction_to_reference_mm * surface.prediction_sizes
    )
    return weighted_mm3 / (surface.reference_sizes.sum() + surface.prediction_sizes.sum())

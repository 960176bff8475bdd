"""Mean average surface distance: the mean of the two directions' mean distances, however large each surface is.

Formula: (Σ a·d(S_R → S_P) / area(S_R) + Σ a·d(S_P → S_R) / area(S_P)) / 2

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
    source="Maier-Hein, Reinke et al. 2024, doi:10.1038/s41592-023-02151-z",
    if_both_empty=UNDEFINED,
    if_reference_empty=UNDEFINED,
    if_prediction_empty=UNDEFINED,
    of_surfaces=True,
)


def compute(pair: MaskPair) -> float:
    surface = pair.surface
    there_mm = np.average(surface.reference_to_prediction_mm, weights=surface.reference_sizes)
    back_mm = np.average(surface.prediction_to_reference_mm, weights=surface.prediction_sizes)
    return (there_mm + back_mm) / 2

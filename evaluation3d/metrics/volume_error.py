"""Volume error: how much larger the predicted volume is than the reference; negative where it is smaller.

Formula: (FP − FN)·v / 1000

v: the volume of a voxel in mm³. Undefined in two dimensions, where there is no volume.
"""

from __future__ import annotations

import math

from ..masks import MaskPair
from ..metric import BY_FORMULA, UNDEFINED, Metric

METRIC = Metric(
    unit="ml",
    better="zero",
    range=(-math.inf, math.inf),
    source="Taha and Hanbury 2015, doi:10.1186/s12880-015-0068-x (volumetric distance, there without sign)",
    if_both_empty=UNDEFINED,
    if_reference_empty=BY_FORMULA,
    if_prediction_empty=BY_FORMULA,
)


def compute(pair: MaskPair) -> float:
    if len(pair.spacing_mm) < 3:
        return UNDEFINED
    return (pair.fp - pair.fn) * math.prod(pair.spacing_mm) / 1000

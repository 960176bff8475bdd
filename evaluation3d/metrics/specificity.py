"""Specificity: how much of what lies outside the reference was left outside.

Formula: TN / (TN + FP)

Counts every voxel of the image, so it grows with the margin around the organ. Undefined where the reference
fills the whole image.
"""

from __future__ import annotations

from ..masks import MaskPair
from ..metric import BY_FORMULA, UNDEFINED, Metric

METRIC = Metric(
    unit="fraction",
    better="higher",
    range=(0, 1),
    source="Taha and Hanbury 2015, doi:10.1186/s12880-015-0068-x",
    if_both_empty=UNDEFINED,
    if_reference_empty=BY_FORMULA,
    if_prediction_empty=BY_FORMULA,
)


def compute(pair: MaskPair) -> float:
    outside = pair.tn + pair.fp
    return pair.tn / outside if outside else UNDEFINED

"""Volumetric similarity: how alike the two volumes are in size, wherever they lie.

Formula: 1 − abs(FN − FP) / (2·TP + FP + FN)
"""

from __future__ import annotations

from ..masks import MaskPair
from ..metric import UNDEFINED, Metric

METRIC = Metric(
    unit="fraction",
    better="higher",
    range=(0, 1),
    source="Taha and Hanbury 2015, doi:10.1186/s12880-015-0068-x",
    if_both_empty=UNDEFINED,
    if_reference_empty=0,
    if_prediction_empty=0,
)


def compute(pair: MaskPair) -> float:
    return 1 - abs(pair.fn - pair.fp) / (2 * pair.tp + pair.fp + pair.fn)

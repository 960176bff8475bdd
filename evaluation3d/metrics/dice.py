"""Dice coefficient: twice the common volume over the sum of both volumes.

Formula: 2·TP / (2·TP + FP + FN)
"""

from __future__ import annotations

from ..masks import MaskPair
from ..metric import UNDEFINED, Metric

METRIC = Metric(
    unit="fraction",
    better="higher",
    range=(0, 1),
    source="Dice 1945, doi:10.2307/1932409",
    if_both_empty=UNDEFINED,
    if_reference_empty=0,
    if_prediction_empty=0,
)


def compute(pair: MaskPair) -> float:
    return 2 * pair.tp / (2 * pair.tp + pair.fp + pair.fn)

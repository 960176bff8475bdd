"""Intersection over union (Jaccard index): the common volume over the joint volume.

Formula: TP / (TP + FP + FN)
"""

from __future__ import annotations

from ..masks import MaskPair
from ..metric import UNDEFINED, Metric

METRIC = Metric(
    unit="fraction",
    better="higher",
    range=(0, 1),
    source="Jaccard 1912, doi:10.1111/j.1469-8137.1912.tb05611.x",
    if_both_empty=UNDEFINED,
    if_reference_empty=0,
    if_prediction_empty=0,
)


def compute(pair: MaskPair) -> float:
    return pair.tp / (pair.tp + pair.fp + pair.fn)

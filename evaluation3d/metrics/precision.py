"""Precision (positive predictive value): how much of the prediction is right.

Formula: TP / (TP + FP)

Undefined without a prediction: nothing was claimed that could be wrong.
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
    if_prediction_empty=UNDEFINED,
)


def compute(pair: MaskPair) -> float:
    return pair.tp / (pair.tp + pair.fp)

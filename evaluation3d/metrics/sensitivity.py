"""Sensitivity (recall): how much of the reference was found.

Formula: TP / (TP + FN)

Undefined without a reference: there is nothing to find.
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
    if_reference_empty=UNDEFINED,
    if_prediction_empty=0,
)


def compute(pair: MaskPair) -> float:
    return pair.tp / (pair.tp + pair.fn)

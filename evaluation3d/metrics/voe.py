"""Volumetric overlap error: the part of the joint volume that is not common.

Formula: 1 − TP / (TP + FP + FN)

A fraction here; the source gives it in percent.
"""

from __future__ import annotations

from ..masks import MaskPair
from ..metric import UNDEFINED, Metric

METRIC = Metric(
    unit="fraction",
    better="lower",
    range=(0, 1),
    source="Heimann et al. 2009, doi:10.1109/TMI.2009.2013851",
    if_both_empty=UNDEFINED,
    if_reference_empty=1,
    if_prediction_empty=1,
)


def compute(pair: MaskPair) -> float:
    return 1 - pair.tp / (pair.tp + pair.fp + pair.fn)

"""Normalised surface Dice: how much of both surfaces lies within the tolerance of the other one.

Formula: (area(S_R within τ of S_P) + area(S_P within τ of S_R)) / (area(S_R) + area(S_P))

S_R, S_P: the surfaces of reference and prediction; τ: the tolerance in mm; "within" includes τ itself.
"""

from __future__ import annotations

from ..masks import MaskPair
from ..metric import UNDEFINED, Metric

METRIC = Metric(
    unit="fraction",
    better="higher",
    range=(0, 1),
    source="Nikolov et al. 2018, arXiv:1809.04430",
    if_both_empty=UNDEFINED,
    if_reference_empty=0,
    if_prediction_empty=0,
    of_surfaces=True,
)


def compute(pair: MaskPair) -> float:
    surface = pair.surface
    reference_near = surface.reference_sizes[surface.reference_to_prediction_mm <= pair.tolerance_mm]
    prediction_near = surface.prediction_sizes[surface.prediction_to_reference_mm <= pair.tolerance_mm]
    whole = surface.reference_sizes.sum() + surface.prediction_sizes.sum()
    return (reference_near.sum() + prediction_near.sum()) / whole

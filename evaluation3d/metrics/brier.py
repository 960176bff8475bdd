"""Brier score: the mean squared error of the probabilities of the class.

Formula: mean of (p − y)²

p: the probability of the class in a voxel; y: 1 where the reference holds the class, else 0; over all voxels but those
to ignore. Brier's own score is the sum of this over all classes, background included.
"""

from __future__ import annotations

from ..calibration import Calibration
from ..metric import BY_FORMULA, UNDEFINED, Metric

METRIC = Metric(
    unit="fraction",
    better="lower",
    range=(0, 1),
    source="Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2",
    if_both_empty=BY_FORMULA,
    if_reference_empty=BY_FORMULA,
    if_prediction_empty=BY_FORMULA,
    needs="probabilities",
)


def compute(calibration: Calibration) -> float:
    n = calibration.n_voxels
    return calibration.sum_squared_error / n if n else UNDEFINED

"""Negative log-likelihood: the mean surprise at what the reference says, for the class against all others.

Formula: −mean of (y·ln p + (1 − y)·ln(1 − p))

p: the probability of the class in a voxel; y: 1 where the reference holds the class, else 0; over all voxels but those
to ignore. A probability below 1e-7 counts as 1e-7, so a voxel costs 16.1 nats at most.
"""

from __future__ import annotations

import math

from ..calibration import SMALLEST, Calibration
from ..metric import BY_FORMULA, UNDEFINED, Metric

METRIC = Metric(
    unit="nats",
    better="lower",
    range=(0, -math.log(SMALLEST)),
    source="Hastie et al. 2009, doi:10.1007/978-0-387-84858-7; Guo et al. 2017, arXiv:1706.04599",
    if_both_empty=BY_FORMULA,
    if_reference_empty=BY_FORMULA,
    if_prediction_empty=BY_FORMULA,
    needs="probabilities",
)


def compute(calibration: Calibration) -> float:
    n = calibration.n_voxels
    return calibration.sum_log_loss / n if n else UNDEFINED

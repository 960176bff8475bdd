"""Expected calibration error: how far the probabilities of the class are from how often it is there.

Formula: Σ_b n_b / N · abs(mean of y in b − mean of p in b)

p: the probability of the class in a voxel; y: 1 where the reference holds the class, else 0; b: 15 bins of p, equally
wide, of n_b voxels each; N: all voxels but those to ignore. Sure background counts as well calibrated, so the value
falls as the margin around the organ grows: compare it on the same images only.
"""

from __future__ import annotations

from ..calibration import Calibration
from ..metric import BY_FORMULA, UNDEFINED, Metric

METRIC = Metric(
    unit="fraction",
    better="lower",
    range=(0, 1),
    source="Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602; Guo et al. 2017, arXiv:1706.04599; "
    "one class against all others: Nixon et al. 2019, arXiv:1904.01685",
    if_both_empty=BY_FORMULA,
    if_reference_empty=BY_FORMULA,
    if_prediction_empty=BY_FORMULA,
    needs="probabilities",
)


def compute(calibration: Calibration) -> float:
    gaps = (abs(y - p) for y, p in zip(calibration.sum_y, calibration.sum_p, strict=True))
    return sum(gaps) / calibration.n_voxels if calibration.n_voxels else UNDEFINED

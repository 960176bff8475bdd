"""Metric: what a metric file declares about itself, beside the function that computes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

UNDEFINED = math.nan  # the metric has no value here: counted apart, left out of means
BY_FORMULA = None  # the formula holds for an empty mask too: compute it

OnEmpty = float | None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The declaration of one metric; its name is the name of its file, its formula is in the file's docstring.

    The `if_*_empty` values are the policy for empty masks: a number, `UNDEFINED`, or `BY_FORMULA`. The policy is
    applied in one place, `metrics.FoundMetric.value`, so `compute` never sees a mask pair whose value is declared.
    """

    unit: Literal["fraction", "ml", "mm", "nats"]
    better: Literal["higher", "lower", "zero"]
    range: tuple[float, float]
    source: str
    if_both_empty: OnEmpty
    if_reference_empty: OnEmpty  # a false organ
    if_prediction_empty: OnEmpty  # a missed organ
    of_surfaces: bool = False  # measured on surfaces, of which `surface.DEFINITIONS` has two definitions
    needs: Literal["masks", "probabilities"] = "masks"  # `compute` gets a MaskPair, or a Calibration

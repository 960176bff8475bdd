"""ClassResult: what was found for one class of one case."""

from __future__ import annotations

from dataclasses import dataclass

from .calibration import Calibration
from .masks import Outcome


@dataclass(frozen=True)
class ClassResult:
    """One class of one case: its label values ("2", regions "1+2"), who holds it, and each metric's value."""

    label: str
    outcome: Outcome
    values: dict[str, float]
    calibration: Calibration | None = None  # where the prediction is saved probabilities

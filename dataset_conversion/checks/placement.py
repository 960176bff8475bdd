"""Placement: label maps that lie on other tissue than in the other cases, though the headers agree.

A class has about the same brightness everywhere, told by ranks: the mean and the standard deviation of the part of the
image that is darker than its voxels, which need no unit and no normalisation. A mask that was shifted or flipped
against its image has others. The score of a case is the mean over its classes and both numbers of the robust z among
all cases. The highest score of an untouched case of the test data (901, 904) is 2.7; docs/data.md says what is found.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ._facts import Data
from ._finding import Finding, warning

LEAST_CASES = 8
MOST_SCORE = 4.0
LEAST_SPREAD = 0.02  # of ranks


def find(data: Data) -> Iterator[Finding]:
    """Label maps that lie on tissue of other brightness than in the other cases."""
    cases = [facts for facts in data.with_labels() if any(r.brightness for r in facts.regions.values())]
    scores: dict[int, list[float]] = {}
    for value in sorted({value for facts in cases for value in facts.regions}):
        holding = [number for number, facts in enumerate(cases) if value in facts.regions]
        if len(holding) < LEAST_CASES:
            continue
        numbers = np.array([cases[number].regions[value].brightness for number in holding])
        middle = np.median(numbers, axis=0)
        spread = np.maximum(1.4826 * np.median(np.abs(numbers - middle), axis=0), LEAST_SPREAD)
        for number, deviations in zip(holding, np.abs(numbers - middle) / spread, strict=True):
            scores.setdefault(number, []).extend(deviations.tolist())
    for number, deviations in scores.items():
        if np.mean(deviations) > MOST_SCORE:
            yield warning(
                cases[number].case.labels,
                f"its classes lie on other tissue than in the other cases (score {np.mean(deviations):.1f}; "
                f"up to {MOST_SCORE:g} is usual)",
                "Is it shifted or flipped against its image, or of another patient? Look at both",
            )

"""Classes: missing where all others have them, nearly empty, or of a volume unlike in all others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ._facts import CaseFacts, Data
from ._finding import Finding, warning

FEW_VOXELS = 10
USUAL_VOXELS = 100  # a class whose median is below this is small everywhere
LEAST_CASES = 8  # fewer say nothing about what is usual
NEARLY_ALL = 0.9
MOST_DEVIATIONS = 4.0  # robust z of the logarithm of the volume
MOST_FACTOR = 2.0  # and this times the median, or its inverse
LEAST_SPREAD = 0.1  # of the logarithm: classes of nearly one volume are not outliers of each other


def find(data: Data) -> Iterator[Finding]:
    """Label maps that lack a class, hold little or much of it, or hold nothing."""
    labelled = [facts for facts in data.with_labels() if _is_clean(facts)]
    for facts in labelled:
        if not facts.regions:
            yield warning(facts.case.labels, "holds background only", "Is it the right file?")
    filled = [facts for facts in labelled if facts.regions]
    any_training = any(not facts.case.test for facts in labelled)
    for name, values in data.classes.items():
        holding = [facts for facts in filled if facts.regions.keys() & values]
        if any_training and all(facts.case.test for facts in holding):
            yield warning(
                data.dataset.json,
                f"class {name!r} is in no training case",
                "Take it out of the labels: a network cannot learn it",
            )
        yield from _absent(name, filled, holding)
        yield from _volumes(name, values, holding)


def _is_clean(facts: CaseFacts) -> bool:
    labels = facts.labels
    odd = labels.broken_values or labels.too_many_values or labels.n_nan or labels.n_infinite
    return not odd and labels.n_channels == 1


def _absent(name: str, labelled: list[CaseFacts], holding: list[CaseFacts]) -> Iterator[Finding]:
    if len(labelled) < LEAST_CASES or len(holding) < NEARLY_ALL * len(labelled):
        return
    have_it = {id(facts) for facts in holding}
    for facts in labelled:
        if id(facts) not in have_it:
            yield warning(
                facts.case.labels,
                f"holds no {name!r}; {len(holding)} of {len(labelled)} label maps do",
                "Was it forgotten?",
            )


def _volumes(name: str, values: tuple[int, ...], holding: list[CaseFacts]) -> Iterator[Finding]:
    if not holding:
        return
    own = [[value for value in values if value in facts.regions] for facts in holding]
    n_voxels = np.array([sum(f.regions[v].n_voxels for v in vs) for f, vs in zip(holding, own, strict=True)])
    volumes = np.array([sum(f.labels.volume(v) for v in vs) for f, vs in zip(holding, own, strict=True)])
    logs = np.log(volumes)
    middle = np.median(logs)
    spread = max(1.4826 * float(np.median(np.abs(logs - middle))), LEAST_SPREAD)
    for facts, n, volume, log in zip(holding, n_voxels, volumes, logs, strict=True):
        deviations = (log - middle) / spread
        unit = "ml" if facts.labels.grid.n_dims == 3 else "mm²"
        if n < FEW_VOXELS and (len(holding) == 1 or np.median(n_voxels) >= USUAL_VOXELS):
            yield warning(
                facts.case.labels, f"holds {n} voxels of {name!r}", "Is it a slip, or was it cut off?"
            )
        elif (
            len(holding) >= LEAST_CASES
            and abs(deviations) > MOST_DEVIATIONS
            and abs(log - middle) > np.log(MOST_FACTOR)
        ):
            yield warning(
                facts.case.labels,
                f"holds {volume:.3g} {unit} of {name!r}; the median of {len(holding)} label maps is "
                f"{np.exp(middle):.3g} {unit} (robust z {deviations:+.1f})",
                "Look at it: is the class whole, and nothing else in it?",
            )

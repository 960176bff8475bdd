"""Compare methods case by case: load them, make sure that they can be compared, and find the patients of the cases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samnn.errors import Problems, SamnnError

from .comparison import Comparison
from .methods import Method, load_methods

METRICS = ("dice", "nsd", "hausdorff95")


def compare(
    sources: Sequence[Path],
    *,
    reference: Path | None = None,
    names: Sequence[str] | None = None,
    metrics: Sequence[str] = METRICS,
    group: str | None = None,
    tolerance_mm: float = 1.0,
    labels: Path | None = None,
    workers: int | None = 1,
    out: Path | None = None,
    show_progress: bool = False,
) -> Comparison:
    """Load and check the methods; metrics are kept in `out`/metrics, and taken from there while no file has changed.

    `sources`: results folders, folders of predictions, metrics.csv files. `group`: a regular expression for case
    names; its first group, or else the whole match, names the patient. Tables are computed when first asked for.

    Raises:
        SamnnError: what is wrong, or in what the methods differ.
    """
    pattern = None if group is None else _pattern(group)
    methods = load_methods(
        sources,
        reference=reference,
        names=names,
        tolerance_mm=tolerance_mm,
        labels=labels,
        workers=workers,
        cache_folder=None if out is None else Path(out) / "metrics",
        show_progress=show_progress,
    )
    _refuse_metrics(methods, metrics)
    comparison = Comparison(methods, tuple(metrics), group, None)
    if pattern is None:
        return comparison
    return Comparison(methods, tuple(metrics), group, _groups(comparison.cases, pattern))


def _refuse_metrics(methods: Sequence[Method], metrics: Sequence[str]) -> None:
    """Every metric must be there in every method, by the same definition."""
    problems = [] if metrics else ["no metric was asked for."]
    for metric in metrics:
        definitions = {method.name: method.summary["definitions"].get(metric) for method in methods}
        first_name, first = next(iter(definitions.items()))
        for name, definition in definitions.items():
            if definition is None:
                known = ", ".join(next(m for m in methods if m.name == name).summary["definitions"])
                problems.append(f"{name}: has no metric {metric!r}. It has: {known}.")
            elif first is not None and (
                differing := sorted(k for k in first if first[k] != definition.get(k))
            ):
                problems.append(
                    f"{name}: defines {metric} differently from {first_name}: "
                    + "; ".join(f"{key} is {definition.get(key)!r}, not {first[key]!r}" for key in differing)
                )
        if list(metrics).count(metric) > 1:
            problems.append(f"the metric {metric!r} was asked for twice.")
    if problems:
        raise Problems("The metrics cannot be compared.", list(dict.fromkeys(problems)))


def _pattern(group: str) -> re.Pattern[str]:
    try:
        return re.compile(group)
    except re.error as error:
        raise SamnnError(f"--group {group!r}: is no regular expression ({error}).") from error


def _groups(cases: list[str], pattern: re.Pattern[str]) -> np.ndarray:
    matches = {case: pattern.search(case) for case in cases}
    found = {case: match and (match[1] if pattern.groups else match[0]) for case, match in matches.items()}
    if without := [case for case, patient in found.items() if not patient]:
        raise SamnnError(
            f"--group {pattern.pattern!r}: finds no patient in {len(without)} cases: {', '.join(without[:8])}. "
            "Give an expression that matches every case's name."
        )
    return np.array(list(found.values()))

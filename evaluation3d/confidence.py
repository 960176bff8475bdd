"""Confidence: how sure a method was and how often it was right, from the .npz that nnU-Net saves beside label maps."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from samnn.atomic import write_json
from samnn.errors import SamnnError
from samnn.labels import LabelSet
from samnn.workers import sensible_workers

from .calibration import NOTHING, Calibration
from .cases import NPZ, Case, CaseSet, find_cases
from .content import key_of_cases
from .evaluate import progress_bar, read_case, run_cases
from .metrics import find_metrics
from .probabilities import Channels

NAMES_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Confidence:
    """Class → the bins of all cases together ("reliability"), and the mean over the cases of "ece", "brier", "nll".

    No class where there are no saved probabilities, or none that can be used: `note` says why then. `key` names
    the content.
    """

    classes: dict[str, dict[str, Any]]
    note: str = ""

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps([self.classes, self.note]).encode()).hexdigest()


def confidence_of_summary(summary: dict[str, Any]) -> Confidence:
    """What an evaluation of saved probabilities wrote down; no class where label maps were evaluated."""
    if not summary.get("from_probabilities"):
        return Confidence({})
    try:
        return Confidence(
            {
                name: {"reliability": entry["reliability"]}
                | {metric: entry["metrics"][metric]["mean"] for metric in _metrics()}
                for name, entry in summary["classes"].items()
            }
        )
    except (KeyError, TypeError) as error:
        raise SamnnError(
            f"The summary.json of {summary['prediction']} says it is of probabilities, but lacks {error}. Evaluate again."
        ) from error


def confidence_beside(
    name: str,
    case_set: CaseSet,
    *,
    labels: Path | None,
    workers: int | None,
    folder: Path,
    show_progress: bool,
) -> Confidence:
    """Measure the .npz beside the label maps of `case_set`, one case a worker in memory; or take what `folder` has kept.

    What is found is kept under a hash of every file. Label maps are never read here, and the .pkl beside them neither.
    Files that are missing, or are no probabilities of these cases, are no error: the label maps are what is compared.
    """
    if not any(
        any(place.glob(f"*{NPZ[0]}")) for place in {case.prediction.parent for case in case_set.cases}
    ):
        return Confidence({})
    try:
        saved = find_cases(
            case_set.reference,
            case_set.prediction,
            labels_file=labels,
            allow_missing=True,
            probabilities=True,
        )
    except SamnnError as error:
        return Confidence({}, note=_one_line(error))
    found = {case.name for case in saved.cases}
    if lacking := [case.name for case in case_set.cases if case.name not in found]:
        return Confidence(
            {},
            note=f"{_some(lacking)}: no .npz beside the label map; {len(lacking)} of {len(case_set.cases)} cases have "
            "none. Predict them with --npz or --save_probabilities.",
        )
    kept = folder / f"{key_of_cases(saved)[:16]}.json"
    if (confidence := _read(kept, saved.labels.classes)) is None:
        if show_progress:
            Console(stderr=True).print(f"{name}, saved probabilities:", highlight=False, markup=False)
        confidence = _measure(saved, workers=workers, show_progress=show_progress)
        if confidence.classes:
            write_json(kept, {"classes": confidence.classes})
    return confidence


def _measure(saved: CaseSet, *, workers: int | None, show_progress: bool) -> Confidence:
    workers = workers or sensible_workers(len(saved.cases), sum(case.n_voxels for case in saved.cases))
    try:
        with progress_bar(show_progress) as progress:
            found = run_cases(
                progress,
                "Reading probabilities",
                _calibrations,
                saved,
                saved.labels,
                saved.channels,
                workers=workers,
            )
    except SamnnError as error:
        return Confidence({}, note=_one_line(error))
    by_class = {name: [found[case.name][name] for case in saved.cases] for name in saved.labels.classes}
    return Confidence(
        {
            name: {"reliability": sum(several, NOTHING).bins}
            | {metric: _mean([compute(one) for one in several]) for metric, compute in _metrics().items()}
            for name, several in by_class.items()
        }
    )


def _calibrations(case: Case, labels: LabelSet, channels: Channels) -> dict[str, Calibration]:
    return read_case(case, labels, channels)[2]


def _metrics() -> dict[str, Callable[[Calibration], float]]:
    """The metrics that need probabilities; none is measured on surfaces."""
    found = find_metrics(probabilities=True).values()
    return {
        metric.name: metric.functions["surfel"]
        for metric in found
        if metric.declared.needs == "probabilities"
    }


def _mean(values: list[float]) -> float | None:
    defined = [value for value in values if not math.isnan(value)]
    return statistics.fmean(defined) if defined else None


def _read(kept: Path, classes: Collection[str]) -> Confidence | None:
    """What an earlier run kept; None where there is nothing, or it is damaged."""
    try:
        found = Confidence(**json.loads(kept.read_text(encoding="utf-8")))
        if found.classes and set(found.classes) != set(classes):
            return None
        for entry in found.classes.values():
            if not set(entry) >= {"reliability", *_metrics()}:
                return None
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return found


def _one_line(error: SamnnError) -> str:
    return " ".join(line.strip() for line in str(error).splitlines())


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")

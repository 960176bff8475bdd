"""Evaluate predictions against references: one case in memory, or a whole folder of files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from samnn.errors import Problems, SamnnError
from samnn.io import read_labels
from samnn.labels import MAX_VALUE, LabelSet
from samnn.workers import each_case, sensible_workers

from .cases import Case, CaseSet, find_cases
from .masks import Outcome, mask_pairs
from .metrics import find_metrics

if TYPE_CHECKING:
    import pandas

MAX_CLASSES_FOUND = 1000  # more different values than this: an image, not a label map


@dataclass(frozen=True)
class ClassResult:
    """One class of one case: its label values ("2", regions "1+2"), who holds it, and each metric's value."""

    label: str
    outcome: Outcome
    values: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """The results of a folder, case by case and class by class, and how they came about."""

    case_set: CaseSet
    labels: LabelSet
    tolerance_mm: float
    results: dict[str, dict[str, ClassResult]]  # case → class → result

    @property
    def table(self) -> pandas.DataFrame:
        """One row a case, class and metric: `case, label, class, metric, value, unit`. NaN: undefined."""
        import pandas

        units = {name: metric.declared.unit for name, metric in find_metrics().items()}
        rows = [
            (case, result.label, name, metric, value, units[metric])
            for case, classes in self.results.items()
            for name, result in classes.items()
            for metric, value in result.values.items()
        ]
        return pandas.DataFrame(rows, columns=["case", "label", "class", "metric", "value", "unit"])


def evaluate_case(
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing_mm: tuple[float, ...],
    labels: LabelSet | Mapping[str, Any],
    tolerance_mm: float = 1.0,
    names: tuple[object, object] = ("the reference", "the prediction"),
) -> dict[str, ClassResult]:
    """Evaluate two label maps of one shape, 2D or 3D; `spacing_mm` belongs to the array axes in their order.

    `labels` is a LabelSet or nnU-Net's mapping of class name to value (or list of values). Where the reference
    holds the ignore value, a voxel counts for nothing. `names` are used in messages.

    Raises:
        SamnnError: shapes, spacing, tolerance or voxels are not as described, or a value is not in `labels`.
    """
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    _check_tolerance(tolerance_mm)
    if reference.shape != prediction.shape or reference.ndim not in (2, 3):
        raise SamnnError(
            f"{names[0]} has shape {reference.shape} and {names[1]} {prediction.shape}; "
            "expected two maps of one shape, 2D or 3D."
        )
    if len(spacing_mm) != reference.ndim or not all(0 < step < math.inf for step in spacing_mm):
        raise SamnnError(
            f"The spacing is {spacing_mm} mm; expected a positive number for each of {reference.ndim} axes."
        )
    for name, voxels in zip(names, (reference, prediction), strict=True):
        if voxels.dtype.kind not in "biu":
            raise SamnnError(f"{name} holds {voxels.dtype}; a label map needs whole numbers.")
    if not isinstance(labels, LabelSet):
        labels = LabelSet.from_mapping(labels)
    pairs = mask_pairs(
        reference,
        prediction,
        spacing_mm=tuple(spacing_mm),
        labels=labels,
        tolerance_mm=tolerance_mm,
        names=names,
    )
    return {
        name: ClassResult(
            label="+".join(map(str, pair.values)),
            outcome=pair.outcome,
            values={metric.name: metric.value(pair) for metric in find_metrics().values()},
        )
        for name, pair in pairs.items()
    }


def evaluate_folder(
    reference: Path | None,
    prediction: Path,
    *,
    labels: Path | None = None,
    tolerance_mm: float = 1.0,
    allow_missing: bool = False,
    workers: int | None = 1,
    show_progress: bool = False,
) -> Evaluation:
    """Evaluate a folder of label maps, or the validation predictions in an nnU-Net results folder.

    `reference` may be None for a results folder, fold or `validation` folder: the dataset's labels then.
    `labels` is a dataset.json; without one it is looked for beside both folders. `workers` None: as many as pay.

    Raises:
        SamnnError: what is wrong with the input; several files' problems come together.
    """
    find_metrics()  # a broken metric file is found before the long work
    _check_tolerance(tolerance_mm)
    if workers is not None and workers < 1:
        raise SamnnError(f"{workers} workers cannot work; expected 1 or more.")
    case_set = find_cases(reference, prediction, labels_file=labels, allow_missing=allow_missing)
    cases = case_set.cases
    workers = workers or sensible_workers(len(cases), sum(case.n_voxels for case in cases))
    with _progress(show_progress) as progress:
        label_set = case_set.labels
        if label_set is None:
            found = _run(progress, "Finding classes", _values_of, case_set, workers=workers)
            label_set = _numbered(set().union(*found.values()), case_set)
        results = _run(
            progress, "Evaluating", _evaluate_files, case_set, label_set, tolerance_mm, workers=workers
        )
    return Evaluation(case_set, label_set, tolerance_mm, {case.name: results[case.name] for case in cases})


def _run(
    progress: Progress, task: str, function: Any, case_set: CaseSet, *arguments: Any, workers: int
) -> dict:
    """Run `function` on every case; if some fail, finish the others, then name all that failed."""
    results, problems = {}, []
    cases = case_set.cases
    with closing(each_case(function, cases, *arguments, workers=workers)) as finished:
        for case, result, problem in progress.track(finished, total=len(cases), description=task):
            if problem is None:
                results[case.name] = result
            else:
                problems += problem.splitlines()
    if problems:
        raise Problems(
            f"{case_set.prediction}: cannot be evaluated against {case_set.reference}.", sorted(set(problems))
        )
    return results


def _evaluate_files(case: Case, labels: LabelSet, tolerance_mm: float) -> dict[str, ClassResult]:
    reference = read_labels(case.reference)
    prediction = read_labels(case.prediction)
    return evaluate_case(
        reference.voxels,
        prediction.voxels,
        spacing_mm=reference.grid.spacing_mm,
        labels=labels,
        tolerance_mm=tolerance_mm,
        names=(case.reference, case.prediction),
    )


def _values_of(case: Case) -> set[int]:
    values = set(np.unique(read_labels(case.reference).voxels).tolist())
    if len(values) > MAX_CLASSES_FOUND or not all(0 <= value <= MAX_VALUE for value in values):
        raise SamnnError(
            f"{case.reference}: holds {len(values)} different values from {min(values)} to {max(values)}. "
            "Is it an image? Else name its classes with --labels FILE."
        )
    return values


def _numbered(values: set[int], case_set: CaseSet) -> LabelSet:
    """Classes named by their value, for label maps of which no dataset.json says more."""
    if not values - {0}:
        raise SamnnError(
            f"{case_set.reference}: every voxel of every reference is 0, and no dataset.json says which "
            "classes there are. Give --labels FILE."
        )
    return LabelSet.from_mapping({str(value): value for value in sorted(values - {0})})


def _check_tolerance(tolerance_mm: float) -> None:
    if not 0 <= tolerance_mm < math.inf:
        raise SamnnError(f"The tolerance is {tolerance_mm} mm; expected a number from 0 upwards.")


def _progress(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not show,
    )

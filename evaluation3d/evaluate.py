"""Evaluate predictions against references: one case in memory, or a whole folder of files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from samnn.errors import Problems, SamnnError
from samnn.io import Volume, read_labels, resample_labels
from samnn.labels import MAX_VALUE, LabelSet
from samnn.workers import each_case, sensible_workers

from .calibration import Calibration
from .cases import Case, CaseSet, find_cases
from .journal import Journal
from .masks import mask_pairs
from .metrics import find_metrics
from .probabilities import Channels, read_probabilities
from .result import ClassResult
from .surface import DEFINITIONS, Definition

if TYPE_CHECKING:
    import pandas

MAX_CLASSES_FOUND = 1000  # more different values than this: an image, not a label map


@dataclass(frozen=True)
class Evaluation:
    """The results of a folder, case by case and class by class, and how they came about."""

    case_set: CaseSet
    labels: LabelSet
    tolerance_mm: float
    surface: Definition
    results: dict[str, dict[str, ClassResult]]  # case → class → result

    @property
    def table(self) -> pandas.DataFrame:
        """One row a case, class and metric: `case, label, class, metric, value, unit`. NaN: undefined."""
        import pandas

        metrics = find_metrics(probabilities=True, surface=self.surface)
        units = {name: metric.declared.unit for name, metric in metrics.items()}
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
    surface: Definition = "surfel",
    names: tuple[object, object] = ("the reference", "the prediction"),
    calibrations: Mapping[str, Calibration] | None = None,
) -> dict[str, ClassResult]:
    """Evaluate two label maps of one shape, 2D or 3D; `spacing_mm` belongs to the array axes in their order.

    `labels` is a LabelSet or nnU-Net's mapping of class name to value (or list of values). Where the reference
    holds the ignore value, a voxel counts for nothing. `surface` is one of `surface.DEFINITIONS`. `names` are used
    in messages. With `calibrations`, class by class, the metrics of probabilities are computed, too.

    Raises:
        SamnnError: shapes, spacing, tolerance or voxels are not as described, or a value is not in `labels`.
    """
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    _check_settings(tolerance_mm, surface)
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
        surface=surface,
        names=names,
    )
    metrics = find_metrics(probabilities=calibrations is not None, surface=surface)
    calibration_of = calibrations or dict.fromkeys(pairs)
    return {
        name: ClassResult(
            label="+".join(map(str, pair.values)),
            outcome=pair.outcome,
            values={key: metric.value(pair, calibration_of[name]) for key, metric in metrics.items()},
            calibration=calibration_of[name],
        )
        for name, pair in pairs.items()
    }


def evaluate_folder(
    reference: Path | None,
    prediction: Path,
    *,
    labels: Path | None = None,
    tolerance_mm: float = 1.0,
    surface: Definition = "surfel",
    allow_missing: bool = False,
    probabilities: bool = False,
    resample: bool = False,
    workers: int | None = 1,
    show_progress: bool = False,
    keep_in: Path | None = None,
) -> Evaluation:
    """Evaluate a folder of predictions, or the validation predictions in an nnU-Net results folder.

    `reference` may be None for a results folder, fold or `validation` folder: the dataset's labels then.
    `labels` is a dataset.json; without one it is looked for beside both folders. `probabilities`: the predictions are
    saved probabilities. `resample`: label maps on other grids are brought onto those of their references. `workers`
    None: as many as pay. In the folder `keep_in` finished cases are kept until `write_outputs` has written there, so
    that the same call goes on where an earlier one was ended.

    Raises:
        SamnnError: what is wrong with the input; several files' problems come together.
    """
    find_metrics()  # a broken metric file is found before the long work
    _check_settings(tolerance_mm, surface)
    if workers is not None and workers < 1:
        raise SamnnError(f"{workers} workers cannot work; expected 1 or more.")
    case_set = find_cases(
        reference,
        prediction,
        labels_file=labels,
        allow_missing=allow_missing,
        probabilities=probabilities,
        resample=resample,
    )
    cases = case_set.cases
    workers = workers or sensible_workers(len(cases), sum(case.n_voxels for case in cases))
    with progress_bar(show_progress) as progress:
        label_set = case_set.labels
        if label_set is None:
            found = run_cases(progress, "Finding classes", _values_of, case_set, workers=workers)
            label_set = _numbered(set().union(*found.values()), case_set)
        arguments = (label_set, tolerance_mm, surface, case_set.channels)
        settings = {
            "labels": asdict(label_set),
            "tolerance_mm": tolerance_mm,
            "surface": surface,
            "channels": case_set.channels and asdict(case_set.channels),
            "resample": resample,
        }
        with Journal(keep_in, settings) if keep_in is not None else nullcontext() as journal:
            results = run_cases(
                progress,
                "Evaluating",
                _evaluate_files,
                case_set,
                *arguments,
                workers=workers,
                journal=journal,
            )
    return Evaluation(
        case_set, label_set, tolerance_mm, surface, {case.name: results[case.name] for case in cases}
    )


def run_cases(
    progress: Progress,
    task: str,
    function: Any,
    case_set: CaseSet,
    *arguments: Any,
    workers: int,
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Run `function` on every case that `journal` lacks; if some fail, finish the others, then name all that failed."""

    def tell(message: str) -> None:
        progress.console.print(message, markup=False, highlight=False, soft_wrap=True)

    earlier = {case.name: journal.result_of(case) for case in case_set.cases} if journal else {}
    results = {name: found for name, found in earlier.items() if found is not None}
    if results:
        tell(f"{len(results)} of {len(case_set.cases)} cases were finished by an earlier run.")
    cases = [case for case in case_set.cases if case.name not in results]
    problems = []

    bar = progress.add_task(task, total=len(case_set.cases), completed=len(results))
    with closing(each_case(function, cases, *arguments, workers=workers, tell=tell)) as finished:
        for case, result, problem in finished:
            progress.advance(bar)
            if problem is not None:
                problems += problem.splitlines()
                continue
            results[case.name] = result
            if journal is not None:
                journal.add(case, result)
    if problems:
        headline = f"{case_set.prediction}: cannot be evaluated against {case_set.reference}."
        if journal is not None and results:
            headline += (
                f" {len(results)} of {len(case_set.cases)} cases are finished and kept in {journal.path}: "
                "the same command goes on from there."
            )
        raise Problems(headline, sorted(set(problems)))
    return results


def read_case(
    case: Case, labels: LabelSet, channels: Channels | None
) -> tuple[Volume, np.ndarray, dict[str, Calibration] | None]:
    """Read the reference of a case, its prediction on the same grid and, from probabilities, their calibrations."""
    reference = read_labels(case.reference)
    if channels is not None:
        return reference, *read_probabilities(
            case.prediction, reference.voxels, labels=labels, channels=channels
        )
    found = read_labels(case.prediction)
    return reference, (resample_labels(found, reference.grid) if case.differences else found).voxels, None


def _evaluate_files(
    case: Case, labels: LabelSet, tolerance_mm: float, surface: Definition, channels: Channels | None
) -> dict[str, ClassResult]:
    reference, prediction, calibrations = read_case(case, labels, channels)
    return evaluate_case(
        reference.voxels,
        prediction,
        spacing_mm=reference.grid.spacing_mm,
        labels=labels,
        tolerance_mm=tolerance_mm,
        surface=surface,
        names=(case.reference, case.prediction),
        calibrations=calibrations,
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


def _check_settings(tolerance_mm: float, surface: str) -> None:
    if surface not in DEFINITIONS:
        raise SamnnError(f"The surface is {surface!r}; expected one of {', '.join(DEFINITIONS)}.")
    if not 0 <= tolerance_mm < math.inf:
        raise SamnnError(f"The tolerance is {tolerance_mm} mm; expected a number from 0 upwards.")


def progress_bar(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not show,
    )

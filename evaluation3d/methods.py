"""Methods to be compared: their metrics, from predictions or from a metrics.csv, and proof that they can be compared."""

from __future__ import annotations

import glob
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from samnn.atomic import whole_folder
from samnn.errors import Problems, SamnnError

from .cases import Case, CaseSet, find_cases
from .confidence import Confidence, confidence_beside, confidence_of_summary
from .content import key_of_cases, key_of_code, key_of_file
from .evaluate import evaluate_folder
from .results import Results, find_results, reference_labels
from .summary import write_outputs
from .written import read_evaluation

if TYPE_CHECKING:
    import pandas

NAMES_SHOWN = 8


@dataclass(frozen=True, eq=False)  # a table has no truth value
class Method:
    """One method: its values (metric → table of cases × classes), its summary, and its files where they were given.

    `key` names the content: it changes when a prediction, a reference or a definition does.
    """

    name: str
    source: Path
    summary: dict[str, Any]
    values: dict[str, pandas.DataFrame]
    key: str
    cases: dict[str, Case] | None  # None: a metrics.csv was given
    results: Results | None
    confidence: Confidence  # from saved probabilities; of no class where there are none

    @property
    def case_names(self) -> list[str]:
        return self.summary["cases"]

    @property
    def classes(self) -> list[str]:
        return list(self.summary["classes"])


def load_methods(
    sources: Sequence[Path],
    *,
    reference: Path | None,
    names: Sequence[str] | None,
    tolerance_mm: float,
    labels: Path | None,
    workers: int | None,
    cache_folder: Path | None,
    show_progress: bool,
) -> list[Method]:
    """Load every method and make sure that all have the same cases, reference, classes and settings.

    Raises:
        Problems: everything in which they differ, at once.
    """
    sources = [
        path / "metrics.csv" if (path / "metrics.csv").is_file() else path for path in map(Path, sources)
    ]
    method_names = _names(sources, names)
    reference = reference or _dataset_labels(sources)
    case_sets = {}
    for name, source in zip(method_names, sources, strict=True):
        if not source.is_file():
            case_sets[name] = _held_out_cases(source, reference, labels)
    tables = {
        name: read_evaluation(source)
        for name, source in zip(method_names, sources, strict=True)
        if name not in case_sets
    }
    case_names = {name: [case.name for case in case_set.cases] for name, case_set in case_sets.items()}
    case_names |= {name: summary["cases"] for name, (summary, _) in tables.items()}
    _refuse_other_cases({name: case_names[name] for name in method_names})
    folders = {name: case_set.reference for name, case_set in case_sets.items()}
    folders |= {name: Path(summary["reference"]) for name, (summary, _) in tables.items()}
    if reference is not None:
        folders["--reference"] = Path(reference)
    _refuse_other_references(folders, next(iter(case_names.values())))

    methods = []
    for name, source in zip(method_names, sources, strict=True):
        if name in tables:
            summary, values = tables[name]
            key = key_of_file(source) + key_of_file(source.with_name("summary.json")) + key_of_code()
            confidence = confidence_of_summary(summary)
            methods.append(Method(name, source, summary, values, key, None, None, confidence))
            continue
        case_set = case_sets[name]
        key = key_of_cases(case_set, tolerance_mm=tolerance_mm)
        options = {"labels": labels, "workers": workers, "show_progress": show_progress}
        with nullcontext(cache_folder) if cache_folder else tempfile.TemporaryDirectory() as folder:
            summary, values = _evaluated(
                name,
                case_set,
                Path(folder) / key[:16],
                is_kept=cache_folder is not None,
                tolerance_mm=tolerance_mm,
                **options,
            )
            confidence = confidence_of_summary(summary)
            if case_set.channels is None:
                confidence = confidence_beside(name, case_set, folder=Path(folder), **options)
        cases = {case.name: case for case in case_set.cases}
        methods.append(Method(name, source, summary, values, key, cases, find_results(source), confidence))
    _refuse_differences(methods)
    return methods


def _evaluated(
    name: str, case_set: CaseSet, folder: Path, *, is_kept: bool, show_progress: bool, **options: Any
) -> tuple[dict[str, Any], dict[str, pandas.DataFrame]]:
    """Take what an earlier run has put into `folder`, or evaluate; if that is kept, so are cases that were finished."""
    console = Console(stderr=True)
    if folder.exists():
        try:
            return read_evaluation(folder / "metrics.csv")
        except SamnnError as error:
            said = f"{error} It was kept by an earlier run, is damaged, and is computed again."
            console.print(said, highlight=False, markup=False, soft_wrap=True)
    if show_progress:
        console.print(f"{name}:", highlight=False, markup=False)
    place = hashlib.sha256(bytes(case_set.prediction.absolute())).hexdigest()[:16]
    unfinished = folder.with_name(f"unfinished-{place}") if is_kept else None
    evaluation = evaluate_folder(
        case_set.reference,
        case_set.prediction,
        allow_missing=find_results(case_set.prediction) is None,
        show_progress=show_progress,
        keep_in=unfinished,
        **options,
    )
    with whole_folder(folder, overwrite=True) as part:
        write_outputs(evaluation, part)
    if unfinished is not None:
        shutil.rmtree(unfinished)
    return read_evaluation(folder / "metrics.csv")


def _names(sources: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    """The names that were given, else those of the folders, without the plans and configuration that all share."""
    if names is not None and len(names) != len(sources):
        raise SamnnError(f"{len(names)} names for {len(sources)} methods: give one each, in the same order.")
    found = list(names) if names is not None else [_default_name(source) for source in sources]
    trainers, *shared = zip(*(name.partition("__")[::2] for name in found), strict=True)
    if names is None and len(set(trainers)) == len(found) > 1 and len(set(shared[0])) == 1:
        found = list(trainers)
    for name in found:
        if not name.strip() or not name.isprintable():
            raise SamnnError(f"{name!r} cannot name a method. Give names that can be read: --names A,B")
        if found.count(name) > 1:
            raise SamnnError(f"Two methods are named {name!r}. Name them apart: --names A,B")
    return found


def _default_name(source: Path) -> str:
    if source.is_dir() and (results := find_results(source)):
        folds = [validation.parent.name for validation in results.validations]
        whole = source.resolve() == results.folder.resolve()
        return results.folder.name if whole else f"{results.folder.name} {folds[0]}"
    return source.absolute().parent.name if source.suffix == ".csv" else source.absolute().name


def _dataset_labels(sources: Sequence[Path]) -> Path | None:
    """The labels of the dataset that one of the results folders was trained on."""
    for source in sources:
        if source.is_dir() and (results := find_results(source)):
            return reference_labels(results)
    return None


def _held_out_cases(source: Path, reference: Path | None, labels: Path | None) -> CaseSet:
    """Find the cases of a folder; in a results folder every one must be held out from its fold's training."""
    results = find_results(source) if source.is_dir() else None
    if results and any(validation.parent.name == "fold_all" for validation in results.validations):
        raise SamnnError(_trained_on_all(source))
    if reference is None and source.is_dir():
        raise SamnnError(
            f"{source}: is no nnU-Net results folder, so its labels are not known. Give --reference."
        )
    case_set = find_cases(reference, source, labels_file=labels, allow_missing=results is None)
    if results:
        known = set(results.expected.values())  # the folds whose split was found
        trained_on = [
            f"{case.prediction}: nnU-Net's splits do not hold this case out from the training of that fold."
            for case in case_set.cases
            if case.prediction.parent in known and results.expected.get(case.name) != case.prediction.parent
        ]
        if trained_on:
            raise Problems(f"{source}: validation and training cases are mixed.", trained_on)
    return case_set


def _trained_on_all(source: Path) -> str:
    return (
        f"{source}: fold_all validates on its own training cases, which says nothing about new ones. "
        "Name numbered folds, or predictions of cases that were not trained on."
    )


def _refuse_other_cases(cases: dict[str, list[str]]) -> None:
    every = sorted(set().union(*cases.values()))
    problems = []
    for name, found in cases.items():
        if lacking := sorted(set(every) - set(found)):
            shown = ", ".join(lacking[:NAMES_SHOWN]) + (", …" if len(lacking) > NAMES_SHOWN else "")
            problems.append(f"{name}: lacks {len(lacking)} of {len(every)} cases: {shown}")
    if problems:
        advice = "A comparison needs the same cases. Predict them, or name the folds that all have: RESULTS/fold_0."
        raise Problems(advice, problems)


def _refuse_other_references(folders: dict[str, Path], cases: list[str]) -> None:
    """All references must be the same folder, or hold the same bytes for every case."""
    first_name, first = next(iter(folders.items()))
    problems = []
    for name, folder in folders.items():
        if folder.absolute() == first.absolute():
            continue
        for missing in [path for path in (first, folder) if not path.is_dir()]:
            problems.append(
                f"{missing}: is gone, so that it cannot be compared with the reference of another method. "
                "Put it back, or evaluate again."
            )
            break
        else:
            differing = [case for case in cases if not _same_label_map(case, first, folder)]
            if differing:
                problems.append(
                    f"{name}: its reference {folder} differs from {first} of {first_name} in {len(differing)} of "
                    f"{len(cases)} cases: {', '.join(differing[:NAMES_SHOWN])}"
                )
    if problems:
        raise Problems("The methods were not evaluated against the same reference.", problems)


def _refuse_differences(methods: Sequence[Method]) -> None:
    """Settings and classes must be those of the first method, and so must be where the reference holds a class."""
    first, problems = methods[0], []
    for method in methods:
        for setting in ("tolerance_mm", "ignore_label"):
            if method.summary[setting] != first.summary[setting]:
                problems.append(
                    f"{method.name}: {setting} is {method.summary[setting]}, "
                    f"in {first.name} {first.summary[setting]}. Evaluate again with one value."
                )
        for source in Path(method.summary["prediction"]).parts:
            if source == "fold_all":
                problems.append(_trained_on_all(method.source))
        labels = [
            {name: entry["label"] for name, entry in m.summary["classes"].items()} for m in (first, method)
        ]
        if labels[0] != labels[1]:
            problems.append(f"{method.name}: its classes are {labels[1]}, in {first.name} {labels[0]}.")
            continue
        for name in method.classes:
            here, there = (_held_by_reference(m, name) for m in (method, first))
            if here != there:
                problems.append(
                    f"{method.name}: its reference does not hold {name} in the same cases as that of {first.name}: "
                    f"{', '.join(sorted(here ^ there)[:NAMES_SHOWN])}."
                )
    if problems:
        raise Problems("The methods cannot be compared.", problems)


def _held_by_reference(method: Method, class_name: str) -> set[str]:
    entry = method.summary["classes"][class_name]
    return set(method.case_names) - set(entry["false"]) - set(entry["absent"])


def _same_label_map(case: str, *folders: Path) -> bool:
    """Whether all folders hold a file of that case, with the same bytes."""
    files = [
        sorted(folder.glob(f"{glob.escape(case)}.*"), key=lambda path: len(path.name)) for folder in folders
    ]
    return all(files) and len({key_of_file(found[0]) for found in files}) == 1

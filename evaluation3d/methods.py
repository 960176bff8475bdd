"""Methods to be compared: their metrics, from predictions or from a metrics.csv, and proof that they can be compared."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from samnn.atomic import whole_folder
from samnn.errors import Problems, SamnnError

from .cases import Case, CaseSet, find_cases
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
    cache_folder: Path,
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
            key = _sha256(source) + _sha256(source.with_name("summary.json")) + _code_hash()
            methods.append(Method(name, source, *tables[name], key, None, None))
            continue
        case_set = case_sets[name]
        key = _content_key(case_set, tolerance_mm)
        folder = cache_folder / key[:16]
        if not folder.exists():
            if show_progress:
                Console(stderr=True).print(f"{name}:", highlight=False, markup=False)
            evaluation = evaluate_folder(
                case_set.reference,
                source,
                labels=labels,
                tolerance_mm=tolerance_mm,
                allow_missing=find_results(source) is None,
                workers=workers,
                show_progress=show_progress,
            )
            with whole_folder(folder) as part:
                write_outputs(evaluation, part)
        summary, values = read_evaluation(folder / "metrics.csv")
        cases = {case.name: case for case in case_set.cases}
        methods.append(Method(name, source, summary, values, key, cases, find_results(source)))
    _refuse_differences(methods)
    return methods


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


def _content_key(case_set: CaseSet, tolerance_mm: float) -> str:
    """A hash of everything the metrics depend on: every file by its bytes, the settings, and the code of this room."""
    source = case_set.labels_source
    content = {
        "code": _code_hash(),
        "tolerance_mm": tolerance_mm,
        "labels": _sha256(source) if source else None,
        "paths": [str(case_set.reference.absolute()), str(case_set.prediction.absolute())],
        "cases": [(case.name, _sha256(case.reference), _sha256(case.prediction)) for case in case_set.cases],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@cache
def _code_hash() -> str:
    room = Path(__file__).parent
    files = sorted(room.rglob("*.py"))
    return hashlib.sha256("".join(_sha256(file) for file in files).encode()).hexdigest()


def _same_label_map(case: str, *folders: Path) -> bool:
    """Whether all folders hold a file of that case, with the same bytes."""
    files = [
        sorted(folder.glob(f"{glob.escape(case)}.*"), key=lambda path: len(path.name)) for folder in folders
    ]
    return all(files) and len({_sha256(found[0]) for found in files}) == 1


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

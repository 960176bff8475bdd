"""From cases to a dataset, the same for all converters: checked, refused or written, reported."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from samnn.errors import Problems, SamnnError

from . import _layout, _splits
from ._label_names import LabelNames, names_for
from ._options import Job
from ._report import print_report
from ._writing import Dataset, Plan, each, flat

_MOST_NAMED = 10
COLOURS = ("R", "G", "B")


def new_target(job: Job, source: Path, files: Iterable[Path]) -> Path:
    """Where the dataset goes; no source may lie in it, links followed.

    Raises:
        SamnnError: it cannot be written there.
    """
    root = _layout.raw_root(job.output)
    target = _layout.dataset_folder(root, job.dataset_id, job.name, source=source, overwrite=job.overwrite)
    for path in files:
        _layout.refuse_overlap(path, target)
    return target


def convert(
    cases: Sequence[Any],
    inspect: Callable[..., Plan],
    *arguments: Any,
    target: Path,
    job: Job,
    conversion: Mapping[str, Any],
    names: Callable[[set[int]], LabelNames] = names_for,
    channels: Sequence[str] | None = None,
    splits: _splits.Splits | None = None,
    remarks: Sequence[str] = (),
    link: bool = False,
    dataset_type: Callable[..., Dataset] = Dataset,
    file_ending: str = ".nii.gz",
) -> None:
    """Inspect each case (`inspect(case, *arguments)`), write those that fit, print the report.

    `names` gives names to the values found in all masks. Without `channels`, those found get names. Without `splits`,
    folds keep patients together where cases name theirs.

    Raises:
        SamnnError: nothing can be written.
        Problems: cases are refused, all listed.
        typer.Exit: cases were refused, and the others written.
    """
    refused: dict[str, list[str]] = {}
    plans = list(each("Checking", inspect, cases, *arguments, workers=job.n_workers, refused=refused))
    plans.sort(key=lambda plan: plan.name)
    if not plans:
        raise Problems(f"Nothing was converted, all {len(refused)} cases are refused:", flat(refused))
    try:
        label_names = names({value for plan in plans for value in plan.values})
    except SamnnError as error:
        raise Problems(str(error), _where(plans)) from error
    plans = _fitting(plans, label_names, channels, refused, colours_mix=file_ending == ".png")
    for plan in plans:
        for path in plan.sources:
            _layout.refuse_overlap(path, target)
    if splits is None:
        splits = _folds_of_patients(plans)
    if splits is not None:
        _splits.refuse_other_folds(target, splits, overwrite=job.overwrite)
    if refused and not (job.dry_run or job.skip_refused):
        raise Problems(
            f"Nothing was converted, {len(refused)} of {len(cases)} cases refused. Mend them, or add --skip-refused:",
            flat(refused),
        )
    remarks = list(remarks)
    if channels is None:
        n_channels = max(plan.n_channels for plan in plans)
        if file_ending == ".png":
            channels = COLOURS if n_channels == len(COLOURS) else ["grey"]
        else:
            channels = [f"channel_{number}" for number in range(n_channels)]
            remarks.append(
                f"Channels are named {', '.join(channels)}; for CT say --channels CT: nnU-Net scales by it"
            )
    entries, outcome = {}, f"{len(plans)} cases checked, nothing written"
    if not job.dry_run:
        dataset = dataset_type(
            plans, label_names, channels, splits, refused, link, dict(conversion), file_ending=file_ending
        )
        entries = dataset.write(
            target, workers=job.n_workers, overwrite=job.overwrite, skip_refused=job.skip_refused
        )
        splits, outcome = dataset.splits, f"{len(entries)} cases written to {target}"
    # printed last: a table that nobody takes must not cost the dataset
    print_report(plans, entries, label_names, splits, refused, [*remarks, outcome])
    if refused:
        raise typer.Exit(1)


def patients_by_name(names: Sequence[str], pattern: str | None) -> dict[str, str | None]:
    """The patient that a pattern finds in each name; None for all without a pattern.

    Raises:
        SamnnError: it is not a regular expression.
        Problems: it finds no patient in some names.
    """
    if pattern is None:
        return dict.fromkeys(names)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SamnnError(f"--patient {pattern}: is not a regular expression ({error}).") from error
    found = {name: _splits.patient_of(name, compiled) for name in names}
    if without := [name for name, patient in found.items() if not patient]:
        raise Problems(f"--patient {pattern}: finds no patient in", without)
    return found


def _fitting(
    plans: Sequence[Plan],
    names: LabelNames,
    channels: Sequence[str] | None,
    refused: dict[str, list[str]],
    *,
    colours_mix: bool,
) -> list[Plan]:
    """The plans that fit the labels and channels of the dataset; the others go to `refused`."""
    fitting = []
    expected = len(channels or ()) or plans[0].n_channels
    for plan in plans:
        problems = []
        if unknown := names.unknown(plan.values):
            problems.append(f"{plan.sources[-1]}: holds value(s) {unknown}; the labels are {names.values}.")
        if plan.n_channels != expected and not colours_mix:  # a grey picture can be written in colour
            where = "the dataset has" if channels else f"{plans[0].called} has"
            problems.append(f"{plan.sources[0]}: has {plan.n_channels} channel(s); {where} {expected}.")
        if problems:
            refused[plan.name] = problems
        else:
            fitting.append(plan)
    if not any(plan.has_labels and not plan.is_test for plan in fitting):
        if not refused:
            raise SamnnError("Nothing was converted: there is no training case with a mask.")
        raise Problems("Nothing was converted, no training case with a mask is left:", flat(refused))
    return fitting


def _folds_of_patients(plans: Sequence[Plan]) -> _splits.Splits | None:
    """Folds that keep patients together, where cases name theirs.

    Raises:
        Problems: some name theirs and others do not.
    """
    patients = {plan.name: plan.patient for plan in plans if not plan.is_test}
    if not any(patients.values()):
        return None
    if without := sorted(name for name, patient in patients.items() if not patient):
        raise Problems("Nothing was converted: other cases say whose they are, these do not:", without)
    return _splits.grouped_splits(patients)


def _where(plans: Sequence[Plan]) -> list[str]:
    """In which cases the first values occur."""
    found = []
    for value in sorted({value for plan in plans for value in plan.values} - {0})[:_MOST_NAMED]:
        cases = [plan.called for plan in plans if value in plan.values]
        more = f" and {len(cases) - _MOST_NAMED} more" if len(cases) > _MOST_NAMED else ""
        found.append(f"{value} is in {', '.join(cases[:_MOST_NAMED])}{more}")
    return found

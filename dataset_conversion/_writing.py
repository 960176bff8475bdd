"""Writing a dataset case by case: what a stopped run has done is kept, and all appears at once."""

from __future__ import annotations

import errno
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import track

from samnn import __version__
from samnn.atomic import write_json
from samnn.errors import Problems, SamnnError
from samnn.workers import each_case_in_threads

from . import _layout, _splits
from ._label_names import LabelNames

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RECORDS = ".cases"  # in the folder being written: a file for each case that is done


class Plan(Protocol):
    """What will be done with one case, of whatever kind of source."""

    values: set[int]  # in its label map, as stored at the source
    changes: list[str]  # what the user should know
    ignored: list[str]

    @property
    def name(self) -> str:
        """The case in the dataset."""

    @property
    def called(self) -> str:
        """The case at the source."""

    @property
    def patient(self) -> str | None: ...

    @property
    def is_test(self) -> bool: ...

    @property
    def has_labels(self) -> bool: ...

    @property
    def n_channels(self) -> int: ...

    @property
    def sources(self) -> list[Path]:
        """Every file that is read, the first image first and the label map last."""

    def asked(self) -> dict[str, Any]:
        """What, besides its sources, its files depend on, as JSON: a case done for the same is not done again."""

    def to_do(self, names: LabelNames) -> dict[str, Any]:
        """How its images and mask will be made, in the form of its entry in conversion.json."""

    def write(
        self, dataset: _layout.RawDataset, names: LabelNames, *, n_channels: int, link: bool
    ) -> dict[str, Any]:
        """Write its files and return its entry in conversion.json, with the size of each under `files`."""


@dataclass
class Dataset:
    """All that is written."""

    plans: Sequence[Plan]
    names: LabelNames
    channel_names: Sequence[str]
    splits: _splits.Splits | None
    refused: dict[str, list[str]]  # problems by case; those found while writing are added
    link: bool
    conversion: dict[str, Any]  # of conversion.json: the converter, and what holds for all cases
    file_ending: str = ".nii.gz"

    def write(self, target: Path, *, workers: int, overwrite: bool, skip_refused: bool) -> dict[str, Any]:
        """Write every case that an earlier run has not, then what describes them; return the entries by case.

        Raises:
            Problems: cases were refused while writing. The others are kept for the next run.
        """
        with _layout.new_dataset(
            target, overwrite=overwrite, resume=True, file_ending=self.file_ending
        ) as dataset:
            records = dataset.folder / RECORDS
            records.mkdir(exist_ok=True)
            asked = {plan.name: self._asked(plan) for plan in self.plans}
            entries = {name: entry for name in asked if (entry := _kept(dataset.folder, name, asked[name]))}
            waiting = [plan for plan in self.plans if plan.name not in entries]
            failed: dict[str, list[str]] = {}
            arguments = (dataset, self.names, len(self.channel_names), self.link)
            for name, entry in each("Writing", _write, waiting, *arguments, workers=workers, refused=failed):
                record = json.dumps({"asked": asked[name], "entry": entry})
                (records / f"{name}.json").write_text(record, encoding="utf-8")  # half of one counts as none
                entries[name] = entry
            self.refused |= failed
            if not entries:  # nothing to keep for the next run
                for path in dataset.folder.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if failed and not (skip_refused and any("mask" in entry for entry in entries.values())):
                kept = f" The {len(entries)} others are kept for the next run." if entries else ""
                raise Problems(
                    f"{target} was not written: {len(failed)} of {len(self.plans)} cases refused.{kept} Mend these, or "
                    "add --skip-refused:",
                    flat(failed),
                )
            _remove_strangers(dataset.folder, entries)
            self._describe(dataset, entries)
            shutil.rmtree(records)
        if self.splits is not None:
            _splits.write_preprocessed(target, self.splits)
        return entries

    def _asked(self, plan: Plan) -> dict[str, Any]:
        """What a case is made of: it is kept from an earlier run where all of this is the same."""
        return {
            "sources": [[str(path), *state_of(path)] for path in plan.sources],
            "plan": plan.asked(),
            "values": [[old, new] for old, new in self.names.new_values.items()],
            "link": self.link,
            "samnn_version": __version__,
        }

    def _describe(self, dataset: _layout.RawDataset, entries: dict[str, Any]) -> None:
        if self.splits is not None:
            self.splits = [
                {part: [case for case in fold[part] if case in entries] for part in fold}
                for fold in self.splits
            ]
            for number, fold in enumerate(self.splits):
                if empty := [part for part, cases in fold.items() if not cases]:
                    raise SamnnError(
                        f"Fold {number} has no case left for {' and '.join(empty)}: they are among the refused. Mend those."
                    )
            write_json(dataset.folder / _splits.FILE_NAME, self.splits)
        dataset.finish(
            channel_names=self.channel_names,
            **self.names.description(),
            conversion=self.record(entries),
        )

    def record(self, entries: dict[str, Any]) -> dict[str, Any]:
        """What conversion.json says."""
        return self.conversion | {
            "samnn_version": __version__,
            "values_renumbered": {str(old): new for old, new in self.names.changed.items()},
            "refused": self.refused,
            "cases": {name: entries[name] for name in sorted(entries)},
        }


def each(
    title: str,
    function: Callable[..., Any],
    cases: Sequence[Any],
    *arguments: Any,
    workers: int,
    refused: dict[str, list[str]],
) -> Iterator[Any]:
    """The results of `function` of each case, as they finish; what is refused goes to `refused`."""
    console = Console(stderr=True)
    with (
        warnings.catch_warnings(),
        closing(each_case_in_threads(function, cases, *arguments, workers=workers)) as finished,
    ):
        warnings.simplefilter("ignore")  # pydicom's, of values that are not used here
        for case, result, problem in track(finished, title, len(cases), console=console, transient=True):
            if problem is None:
                yield result
            else:
                lines = problem.splitlines()
                refused[case.name] = [line.removeprefix("  - ") for line in lines[1:] or lines]


def flat(refused: dict[str, list[str]]) -> list[str]:
    return [problem for name in sorted(refused) for problem in refused[name]]


def _write(
    plan: Plan, dataset: _layout.RawDataset, names: LabelNames, n_channels: int, link: bool
) -> tuple[str, dict[str, Any]]:
    try:
        return plan.name, plan.write(dataset, names, n_channels=n_channels, link=link)
    except SamnnError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _DISK_FULL:
            raise error.__cause__ from error  # no fault of the case, and the next would have no room either
        raise


def state_of(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns of a file; of one that is gone, none there are."""
    try:
        state = path.stat()
    except OSError:
        return -1, -1
    return state.st_size, state.st_mtime_ns


def _kept(folder: Path, name: str, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The entry of a case that an earlier run has done in the same way, its files still whole."""
    try:
        record = json.loads((folder / RECORDS / f"{name}.json").read_text(encoding="utf-8"))
        sizes = {path: (folder / path).stat().st_size for path in record["entry"]["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record["entry"] if record["asked"] == asked and sizes == record["entry"]["files"] else None


def _remove_strangers(folder: Path, entries: dict[str, Any]) -> None:
    """Remove what earlier runs with other cases, killed ones too, have left."""
    ours = {folder / path for entry in entries.values() for path in entry["files"]}
    for path in folder.rglob("*"):
        if path.is_file() and path not in ours and path.parent.name != RECORDS:
            path.unlink()
    for path in folder.iterdir():
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()

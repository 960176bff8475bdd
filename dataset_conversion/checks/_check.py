"""One check of a dataset: every file decoded once, every kind of finding asked, and what can be mended mended."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.progress import track

from samnn.errors import SamnnError
from samnn.workers import each_case, sensible_workers

from ._dataset import Dataset, find_folder, read_dataset
from ._facts import CaseFacts, Data, measure
from ._finding import Finding, Severity
from ._read import choose_reader


@dataclass
class Report:
    """What was found, by the name of the check that found it, and what was mended of it."""

    data: Data
    findings: list[tuple[str, Finding]]
    fixed: list[tuple[str, Finding]] = field(default_factory=list)
    not_fixed: list[str] = field(default_factory=list)  # why a change could not be made

    def count(self, severity: Severity) -> int:
        """How many findings of a severity are left."""
        return sum(finding.severity is severity for _, finding in self.findings)

    @property
    def mendable(self) -> list[tuple[str, Finding]]:
        """What `mend` would mend, in its order: names last."""
        return sorted(
            (entry for entry in self.findings if entry[1].fix), key=lambda entry: entry[1].fix.renames
        )


def check(folder_or_id: str, *, workers: int | None = None, show_progress: bool = False) -> Report:
    """Check a raw dataset, a folder or as in nnU-Net's commands a number; nothing is changed.

    Each process holds one label map and at most two images at a time.

    Raises:
        SamnnError: there is no such folder, or a worker process died.
    """
    dataset = read_dataset(find_folder(folder_or_id))
    cases = sorted(
        _measured(dataset, workers, show_progress), key=lambda facts: (facts.case.test, facts.name)
    )
    data = Data(dataset, cases)
    return Report(data, [(name, finding) for name, find in checks().items() for finding in find(data)])


def checks() -> dict:
    """The function `find` of every module beside this one whose name does not start with _."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return {name: import_module(f".{name}", __package__).find for name in names if not name.startswith("_")}


def mend(report: Report) -> None:
    """Make the changes that lose nothing. Each file is written beside its old self, then put in its place.

    A link is replaced by a file; what it points to stays. What cannot be changed stays in the report.
    """
    for entry in report.mendable:
        finding = entry[1]
        try:
            finding.fix.make()
        except (
            SamnnError,
            OSError,
            ValueError,
        ) as problem:  # ValueError: NaN or half a letter in dataset.json
            report.not_fixed.append(f"{finding.path}: {problem}")
            continue
        report.findings.remove(entry)
        report.fixed.append(entry)


def _measured(dataset: Dataset, workers: int | None, show_progress: bool) -> Iterator[CaseFacts]:
    cases = [case for case in dataset.cases if case.files]
    first = next((path for case in cases for path in case.images.values()), None)
    named = dataset.description.get("overwrite_image_reader_writer")
    reader = choose_reader(dataset.file_ending, named, first) if cases else None
    if reader is None:
        return
    # before the files are read their bytes stand for their voxels: a compressed CT has about one a voxel
    n_bytes = sum(os.path.getsize(path) for case in cases for path in case.files if os.path.isfile(path))
    workers = workers or sensible_workers(len(cases), n_bytes)
    console = Console(stderr=True, quiet=not show_progress)

    def tell(message: str) -> None:
        console.print(message, markup=False, highlight=False, soft_wrap=True)

    with closing(each_case(measure, cases, reader, workers=workers, tell=tell)) as finished:
        for case, facts, problem in track(
            finished, "Checking", total=len(cases), console=console, transient=True
        ):
            if facts is None:
                raise SamnnError(problem or f"{case.name}: could not be checked.")
            yield facts

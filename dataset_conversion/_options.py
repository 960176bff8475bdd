"""The options that all converters share, and what they ask for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from samnn.workers import MOST_WORKERS

DatasetId = Annotated[int, typer.Option("--dataset-id", "-d", help="Number of the new dataset, 1 to 999.")]
Name = Annotated[str, typer.Option(help="Name of the new dataset, after its number.")]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=VALUE,…|FILE.json",
        help="Names of the values in the masks; `ignore` is nnU-Net's.  [default: label_VALUE]",
    ),
]
Patient = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="Finds the patient in a case's name (the first group, or all); folds keep patients together.",
    ),
]
SkipRefused = Annotated[
    bool, typer.Option("--skip-refused", help="Write the dataset without the cases that are refused.")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of raw datasets.  [default: $nnUNet_raw]")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the dataset if it exists.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Read and check, say what would be done, write nothing.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Cases at the same time, each in memory.  [default: as many as cores, at most 8]"
    ),
]


@dataclass(frozen=True)
class Job:
    """What dataset to make, and how."""

    dataset_id: int
    name: str
    output: Path | None = None
    overwrite: bool = False
    dry_run: bool = False
    skip_refused: bool = False
    workers: int | None = None

    @property
    def n_workers(self) -> int:
        return self.workers or min(os.cpu_count() or 1, MOST_WORKERS)

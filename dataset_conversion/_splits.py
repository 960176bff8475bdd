"""Folds in which all cases of a patient stay together, where nnU-Net looks for them."""

from __future__ import annotations

import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from samnn.atomic import write_json
from samnn.errors import SamnnError

FILE_NAME = "splits_final.json"
PREPROCESSED_VARIABLE = "nnUNet_preprocessed"
N_FOLDS = 5
Splits = list[dict[str, list[str]]]


def patient_of(name: str, pattern: re.Pattern[str]) -> str | None:
    """The first group of the pattern in a case's name, or all it matches; None where it does not match."""
    match = pattern.search(name)
    return (match.group(1) if pattern.groups else match.group()) if match else None


def grouped_splits(patients: Mapping[str, str]) -> Splits:
    """Five folds from case → patient; fewer patients make fewer folds. Always the same for the same cases.

    Patients are shuffled, those with most cases come first, and each goes to the fold that has the fewest cases.

    Raises:
        SamnnError: there are fewer than two patients.
    """
    cases: dict[str, list[str]] = defaultdict(list)
    for case, patient in sorted(patients.items()):
        cases[patient].append(case)
    if len(cases) < 2:
        raise SamnnError(
            f"All cases belong to {len(cases)} patient; folds that keep patients apart need two or more."
        )
    order = sorted(cases)
    random.Random(12345).shuffle(order)
    order.sort(key=lambda patient: -len(cases[patient]))
    folds: list[list[str]] = [[] for _ in range(min(N_FOLDS, len(cases)))]
    for patient in order:
        min(folds, key=len).extend(cases[patient])
    return [
        {"train": sorted(patients.keys() - set(validation)), "val": sorted(validation)}
        for validation in folds
    ]


def preprocessed_file(target: Path) -> Path | None:
    """Where nnU-Net reads the folds of the dataset at `target`, if nnUNet_preprocessed is set."""
    root = os.environ.get(PREPROCESSED_VARIABLE)
    return Path(root) / target.name / FILE_NAME if root else None


def refuse_other_folds(target: Path, splits: Splits, *, overwrite: bool) -> None:
    """Refuse folds that nnU-Net already has and that differ: planning would stop at them.

    Raises:
        SamnnError: there are some, and `overwrite` is not set.
    """
    path = preprocessed_file(target)
    if path is None or overwrite or not path.exists():
        return
    try:
        same = json.loads(path.read_text(encoding="utf-8")) == splits
    except (OSError, ValueError):
        same = False
    if not same:
        raise SamnnError(f"{path}: holds other folds. Move it away, or add --overwrite to replace it.")


def write_preprocessed(target: Path, splits: Splits) -> Path | None:
    """Write the folds where nnU-Net reads them; planning and preprocessing leave them alone.

    Without nnUNet_preprocessed the copy in the raw dataset has to do: nnU-Net's planner takes it from there.
    """
    path = preprocessed_file(target)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, splits)
    return path

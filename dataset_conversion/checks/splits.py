"""splits_final.json: the folds in the preprocessed folder must speak of the cases that exist."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from ._facts import Data
from ._finding import Finding, error, some, warning


def find(data: Data) -> Iterator[Finding]:
    """Folds that name cases which do not exist, or a case for training and validation."""
    if not os.environ.get("nnUNet_preprocessed"):
        return
    path = Path(os.environ["nnUNet_preprocessed"]) / data.dataset.folder.resolve().name / "splits_final.json"
    if not os.path.isfile(path):
        return
    try:
        folds = [(set(fold["train"]), set(fold["val"])) for fold in json.loads(path.read_text("utf-8"))]
        names = {name for fold in folds for part in fold for name in part}
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a case name is not a string")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as problem:
        yield error(
            path,
            f"is not a list of folds with train and val ({type(problem).__name__}: {problem})",
            "Delete it, and nnU-Net makes a new one; or write it again",
        )
        return
    cases = {case.name for case in data.dataset.training if case.images}
    if unknown := sorted(names - cases):
        yield error(
            path, f"names cases that do not exist: {some(unknown)}", "Take them out, or add the cases"
        )
    for number, (train, validation) in enumerate(folds):
        if both := sorted(train & validation):
            yield error(path, f"fold {number} trains and validates on {some(both)}", "Take them out of one")
    if left_out := sorted(cases - names):
        yield warning(path, f"leaves out {some(left_out)}", "Add them to the folds if they are to be used")

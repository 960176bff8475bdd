"""nnU-Net results folders: where a trained model's validation predictions lie, and the labels they belong to."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from samnn.errors import Problems, SamnnError

NUMBERED_FOLD = re.compile(r"fold_\d+")
FOLD = re.compile(r"fold_(\d+|all)")
DATASET = re.compile(r"Dataset\d{3}_.+")
NAME_REFERENCE = "Name the folder of reference label maps: the first argument of samnn evaluate, --reference of samnn compare."
SUMMARY_KEY = "samnn_version"  # the first in a summary.json of ours; nnU-Net has files of that name, too


@dataclass(frozen=True)
class Results:
    """What was found of one trained model: its folder, `Trainer__Plans__config`, and validation folders in it.

    `expected` are the cases that nnU-Net's splits_final.json wants in each validation folder, where it was found.
    """

    folder: Path
    validations: list[Path]
    expected: dict[str, Path]  # case → validation folder
    notes: list[str]


def find_results(prediction: Path) -> Results | None:
    """Recognise a results folder (by its `fold_*` folders), one of its folds, or that fold's `validation` folder.

    `fold_all` validates on its own training cases: it counts only where it is named itself.

    Returns:
        None where `prediction` is none of these, but a plain folder of label maps.

    Raises:
        SamnnError: a fold has no validation predictions, or splits_final.json is damaged.
    """
    prediction = Path(os.path.abspath(prediction))
    notes = []
    if prediction.name == "validation" and FOLD.fullmatch(prediction.parent.name):
        folder, folds = prediction.parent.parent, [prediction.parent]
    elif FOLD.fullmatch(prediction.name):
        folder, folds = prediction.parent, [prediction]
    else:
        found = sorted(path for path in prediction.glob("fold_*") if FOLD.fullmatch(path.name))
        if not found:
            return None
        folder, folds = prediction, [path for path in found if NUMBERED_FOLD.fullmatch(path.name)]
        if not folds:
            raise SamnnError(
                f"{prediction}: has fold_all only, which validates on its own training cases. "
                f"To evaluate it all the same: samnn evaluate {found[0]}."
            )
        if len(folds) < len(found):
            notes.append("fold_all is left out: it validates on its own training cases.")
    validations = [fold / "validation" for fold in folds]
    problems = [
        f"{validation}: no such folder. Finish this fold with nnUNetv2_train … --val."
        for validation in validations
        if not validation.is_dir()
    ]
    if problems:
        raise Problems(f"{folder}: validation predictions are missing.", problems)
    notes += [
        f"{validation}: has no summary.json, which nnU-Net writes last. Is the validation finished?"
        for validation in validations
        if not (validation / "summary.json").is_file() or is_our_summary(validation / "summary.json")
    ]
    splits, by_fold = _held_out(folder)
    if folder == prediction:
        absent = [fold for fold in by_fold if folder / fold not in folds]
        if absent:
            n_cases = sum(len(by_fold[fold]) for fold in absent)
            notes.append(
                f"{', '.join(absent)} of the {len(by_fold)} folds in {splits}: not there; {n_cases} held-out "
                f"{'case is' if n_cases == 1 else 'cases are'} in no mean."
            )
    expected = {
        case: validation for validation in validations for case in by_fold.get(validation.parent.name, [])
    }
    return Results(folder, validations, expected, notes)


def is_our_summary(path: Path) -> bool:
    """Whether a summary.json was written by samnn evaluate; by its first bytes, for it may be a device or huge."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return re.match(rb'\{\s*"%s"' % SUMMARY_KEY.encode(), file.read(100)) is not None


def _held_out(folder: Path) -> tuple[Path, dict[str, list[str]]]:
    """The splits nnU-Net keeps beside the preprocessed data, and each fold's validation cases; none without the file."""
    path = Path(os.environ.get("nnUNet_preprocessed", "")) / folder.parent.name / "splits_final.json"
    if "nnUNet_preprocessed" not in os.environ or not DATASET.fullmatch(folder.parent.name):
        return path, {}
    try:
        held_out = [split["val"] for split in json.loads(path.read_text(encoding="utf-8"))]
        return path, {
            f"fold_{fold}": [unicodedata.normalize("NFC", case) for case in cases]
            for fold, cases in enumerate(held_out)
        }
    except FileNotFoundError:
        return path, {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise SamnnError(
            f"{path}: cannot be read as nnU-Net's splits ({error}). Restore it, or plan the dataset again."
        ) from error


def reference_labels(results: Results) -> Path:
    """Find the labels of the dataset a model was trained on: those nnU-Net itself validates with, else the raw ones.

    Raises:
        SamnnError: the path of the results names no dataset, or its labels are in neither place.
    """
    dataset = results.folder.parent.name
    if not DATASET.fullmatch(dataset):
        raise SamnnError(
            f"{results.folder}: lies in no DatasetXXX_… folder, so its labels cannot be found. {NAME_REFERENCE}"
        )
    tried = []
    for variable, inside in [("nnUNet_preprocessed", "gt_segmentations"), ("nnUNet_raw", "labelsTr")]:
        root = os.environ.get(variable)
        if root is None:
            tried.append(f"{variable} is not set.")
            continue
        labels = Path(root) / dataset / inside
        if labels.is_dir():
            return labels
        tried.append(f"{labels}: no such folder.")
    raise Problems(f"{results.folder}: the labels of {dataset} are not found. {NAME_REFERENCE}", tried)

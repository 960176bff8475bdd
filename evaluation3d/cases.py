"""Cases: which prediction belongs to which reference, and what their labels mean, all settled from headers."""

from __future__ import annotations

import math
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from samnn.errors import Problems, SamnnError
from samnn.io import read_grid
from samnn.labels import LabelSet, read_dataset_json

from .results import find_results, reference_labels

# Label maps when no dataset.json names the file ending.
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".png", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Case:
    """One case: a reference and a prediction on the same grid."""

    name: str
    reference: Path
    prediction: Path
    n_voxels: int


@dataclass(frozen=True)
class CaseSet:
    """All that is to be evaluated together."""

    reference: Path
    prediction: Path
    cases: list[Case]
    missing: list[str]  # cases without a prediction, where that is allowed
    labels: LabelSet | None  # None: no dataset.json, the values found in the references are the classes
    labels_source: Path | None
    notes: list[str]


def find_cases(
    reference: Path | None,
    prediction: Path,
    *,
    labels_file: Path | None = None,
    allow_missing: bool = False,
) -> CaseSet:
    """Match label maps by name and check every header, before any voxel is read.

    A plain `prediction` folder must hold the same cases as `reference`. An nnU-Net results folder, fold or
    `validation` folder must hold those that nnU-Net's splits name, where they are found; `reference` may be None.

    Raises:
        Problems: everything that is wrong with the folders and files, at once.
    """
    prediction = _folder(prediction)
    results = find_results(prediction)
    if reference is not None:
        reference = _folder(reference)
    elif results is not None:
        reference = reference_labels(results)
    else:
        raise SamnnError(
            f"{prediction}: is no nnU-Net results folder (it has no fold_* folders), so REFERENCE is needed: "
            "samnn evaluate REFERENCE PREDICTION."
        )
    folders = results.validations if results else [prediction]
    if any(os.path.samefile(reference, folder) for folder in folders):
        raise SamnnError(
            f"{prediction}: reference and prediction are the same folder. samnn evaluate REFERENCE PREDICTION."
        )
    labels, labels_source = _labels(reference, results.folder if results else prediction, labels_file)
    endings = _endings(labels_source)

    problems: list[str] = []
    references = _label_maps([reference], endings, problems)
    predictions = _label_maps(folders, endings, problems)
    if not references or not predictions:
        raise Problems(f"{prediction}: cannot be evaluated against {reference}.", problems)
    for name in sorted(predictions.keys() - references.keys()):
        problems.append(f"{predictions[name]}: has no reference of that name in {reference}.")
    expected = results.expected if results else dict.fromkeys(references, prediction)
    missing = sorted(expected.keys() - predictions.keys())
    if not allow_missing:
        problems += [
            f"{references.get(name, name)}: has no prediction of that name in {expected[name]}."
            for name in missing
        ]
    cases = []
    for name in sorted(references.keys() & predictions.keys()):
        case = _checked_case(name, references[name], predictions[name], problems)
        if case is not None:
            cases.append(case)
    if problems:
        raise Problems(f"{prediction}: cannot be evaluated against {reference}.", problems)
    notes = results.notes if results else []
    return CaseSet(reference, prediction, cases, missing, labels, labels_source, notes)


def _folder(path: Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise SamnnError(f"{path}: {'is a file; expected a folder' if path.exists() else 'no such folder'}.")
    return path


def _labels(
    reference: Path, prediction: Path, labels_file: Path | None
) -> tuple[LabelSet | None, Path | None]:
    """Take the class names from `labels_file`, else from a dataset.json in or above the reference, else beside the prediction."""
    if labels_file is not None:
        return LabelSet.from_dataset_json(labels_file), Path(labels_file)
    beside_reference = [
        path
        for path in (reference / "dataset.json", reference.absolute().parent / "dataset.json")
        if path.is_file()
    ][:1]
    beside_prediction = [path for path in [prediction / "dataset.json"] if path.is_file()]
    found = [(LabelSet.from_dataset_json(path), path) for path in beside_reference + beside_prediction]
    if not found:
        return None, None
    if any(labels != found[0][0] for labels, _ in found):
        raise SamnnError(
            f"{found[0][1]} and {found[1][1]}: give the label values different meanings. "
            "Say with --labels FILE which one holds."
        )
    return found[0]


def _endings(labels_source: Path | None) -> tuple[str, ...]:
    if labels_source is None:
        return ENDINGS
    ending = read_dataset_json(labels_source).get("file_ending")
    return (ending,) if isinstance(ending, str) and ending else ENDINGS


def _label_maps(folders: list[Path], endings: tuple[str, ...], problems: list[str]) -> dict[str, Path]:
    """Map case names to files; other files are not looked at, and neither are hidden ones."""
    found: dict[str, Path] = {}
    for folder in folders:
        here = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        here = [path for path in here if path.name.endswith(endings)]
        if not here:
            problems.append(f"{folder}: holds no label maps (files ending in {', '.join(endings)}).")
        for path in here:
            ending = next(ending for ending in endings if path.name.endswith(ending))
            name = unicodedata.normalize("NFC", path.name.removesuffix(ending))
            if name in found:
                problems.append(f"{path}: is the same case as {found[name]}. Move one of the two away.")
            found.setdefault(name, path)
    return found


def _checked_case(name: str, reference: Path, prediction: Path, problems: list[str]) -> Case | None:
    """Compare the grids of both files; add to `problems` what is wrong with them."""
    grids = []
    for path in (reference, prediction):
        try:
            grids.append(read_grid(path))
        except SamnnError as error:
            problems.append(str(error))
    if len(grids) < 2:
        return None
    if differences := grids[0].differences(grids[1]):
        problems.append(
            f"{prediction}: lies on another grid than {reference}. Reference against prediction: "
            f"{'; '.join(differences)}."
        )
        return None
    if grids[0].n_dims not in (2, 3):
        problems.append(f"{reference}: has {grids[0].n_dims} dimensions; expected 2 or 3.")
        return None
    return Case(name, reference, prediction, math.prod(grids[0].shape))

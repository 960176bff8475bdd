"""Cases: which prediction belongs to which reference, and what their labels mean, all settled from headers."""

from __future__ import annotations

import math
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from samnn.errors import Problems, SamnnError
from samnn.geometry import Grid
from samnn.io import read_grid
from samnn.labels import LabelSet, read_dataset_json

from .probabilities import Channels, check_probabilities
from .results import NAME_REFERENCE, Results, find_results, reference_labels

# Label maps when no dataset.json names the file ending.
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".png", ".tif", ".tiff", ".bmp")
PICTURES = (".png", ".tif", ".tiff", ".bmp")  # nnU-Net writes them without spacing
NIFTI = (".nii.gz", ".nii")
NPZ = (".npz",)


@dataclass(frozen=True)
class Case:
    """One case: a reference and a prediction; `differences` say how their grids differ, where that is allowed."""

    name: str
    reference: Path
    prediction: Path
    n_voxels: int
    differences: tuple[str, ...] = ()


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
    channels: Channels | None = None  # None: the predictions are label maps


def find_cases(
    reference: Path | None,
    prediction: Path,
    *,
    labels_file: Path | None = None,
    allow_missing: bool = False,
    probabilities: bool = False,
    resample: bool = False,
) -> CaseSet:
    """Match predictions to references by name and check every header, before any voxel is read.

    A plain `prediction` folder must hold the same cases as `reference`. An nnU-Net results folder, fold or
    `validation` folder must hold those that nnU-Net's splits name, where they are found; `reference` may be None.
    With `probabilities`, or where there are no label maps but .npz files, the predictions are saved probabilities:
    .npz, or 4-D NIfTI. With `resample` a label map may lie on another grid than its reference.

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
            f"{prediction}: is no nnU-Net results folder (it has no fold_* folders), so its labels are not known. "
            f"{NAME_REFERENCE}"
        )
    folders = results.validations if results else [prediction]
    if any(os.path.samefile(reference, folder) for folder in folders):
        raise SamnnError(f"{prediction}: reference and prediction are the same folder. {NAME_REFERENCE}")
    labels, labels_source = _labels(reference, results.folder if results else prediction, labels_file)
    endings = _endings(labels_source)
    notes = list(results.notes) if results else []
    if not probabilities and _holds(folders, NPZ) and not _holds(folders, endings):
        probabilities = True
        notes.append("The predictions are saved probabilities (.npz): there are no label maps beside them.")
    channels = _channels(labels, labels_source, prediction, results) if probabilities else None

    problems: list[str] = []
    references = _files([reference], endings, "label maps", problems)
    if channels is None:
        predictions = _files(folders, endings, "label maps", problems)
    else:
        endings = NPZ if _holds(folders, NPZ) else NIFTI
        predictions = _files(folders, endings, "saved probabilities", problems)
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
        case = _checked_case(name, references[name], predictions[name], channels, resample, problems)
        if case is not None:
            cases.append(case)
    if problems:
        raise Problems(f"{prediction}: cannot be evaluated against {reference}.", problems)
    return CaseSet(reference, prediction, cases, missing, labels, labels_source, notes, channels)


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


def _channels(
    labels: LabelSet | None, labels_source: Path | None, prediction: Path, results: Results | None
) -> Channels:
    """What the channels of the model mean; refuse one whose arrays lie in other axes than its label maps."""
    if labels is None or labels_source is None:
        raise SamnnError(
            f"{prediction}: saved probabilities need the dataset.json of their model, which says which channel is "
            "which class. Name it with --labels."
        )
    plans = (results.folder if results else prediction) / "plans.json"
    if plans.is_file() and str(read_dataset_json(plans).get("image_reader_writer")).endswith("Reorient"):
        raise SamnnError(
            f"{plans}: its image_reader_writer turns images before prediction, and nnU-Net saves probabilities so "
            "turned. Evaluate the label maps."
        )
    return Channels.of_model(labels, labels_source)


def _holds(folders: list[Path], endings: tuple[str, ...]) -> bool:
    return any(_visible(folder, endings) for folder in folders)


def _visible(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return [path for path in visible if path.name.endswith(endings)]


def _files(folders: list[Path], endings: tuple[str, ...], what: str, problems: list[str]) -> dict[str, Path]:
    """Map case names to files; other files are not looked at, and neither are hidden ones."""
    found: dict[str, Path] = {}
    for folder in folders:
        here = _visible(folder, endings)
        if not here:
            problems.append(f"{folder}: holds no {what} (files ending in {', '.join(endings)}).")
        for path in here:
            ending = next(ending for ending in endings if path.name.endswith(ending))
            name = unicodedata.normalize("NFC", path.name.removesuffix(ending))
            if name in found:
                problems.append(f"{path}: is the same case as {found[name]}. Move one of the two away.")
            found.setdefault(name, path)
    return found


def _checked_case(
    name: str,
    reference: Path,
    prediction: Path,
    channels: Channels | None,
    resample: bool,
    problems: list[str],
) -> Case | None:
    """Compare the headers of both files; add to `problems` what is wrong with them."""
    grid = _grid(reference, problems)
    if grid is not None and grid.n_dims not in (2, 3):
        problems.append(f"{reference}: has {grid.n_dims} dimensions; expected 2 or 3.")
        return None
    differences: list[str] = []
    if channels is None:
        other = _grid(prediction, problems)
        if grid is None or other is None:
            return None
        differences = _differences(grid, other, prediction)
        if differences and not (resample and other.n_dims == grid.n_dims and grid.touches(other)):
            problems.append(_on_another_grid(reference, prediction, grid, other, differences))
            return None
    elif grid is not None:
        try:
            check_probabilities(prediction, grid, channels)
        except SamnnError as error:
            problems.append(str(error))
            return None
    if grid is None:
        return None
    return Case(name, reference, prediction, math.prod(grid.shape), tuple(differences))


def _grid(path: Path, problems: list[str]) -> Grid | None:
    try:
        return read_grid(path)
    except SamnnError as error:
        problems.append(str(error))
        return None


def _differences(grid: Grid, other: Grid, prediction: Path) -> list[str]:
    """A picture as prediction has no place: its reference's spacing holds, and only shapes are compared."""
    if prediction.name.endswith(PICTURES) and grid.shape == other.shape:
        return []
    return grid.differences(other)


def _on_another_grid(
    reference: Path, prediction: Path, grid: Grid, other: Grid, differences: list[str]
) -> str:
    if other.n_dims == grid.n_dims + 1:
        cure = "If its last axis are the probabilities of the classes: samnn evaluate --probabilities."
    elif other.n_dims != grid.n_dims:
        cure = "They are not of the same dimension."
    elif not grid.touches(other):
        cure = "They have no point in common: is this the prediction of another case?"
    else:
        cure = "samnn evaluate --resample brings it onto the grid of the reference."
    return (
        f"{prediction}: lies on another grid than {reference}. Reference against prediction: "
        f"{'; '.join(differences)}. {cure}"
    )

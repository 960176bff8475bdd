"""The folder as nnU-Net reads it: dataset.json, and which files make which case, in whatever state they are."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samnn.errors import SamnnError
from samnn.labels import LabelSet, read_dataset_json

from .._layout import raw_root
from ._read import ENDINGS

CHANNEL = re.compile(r"(.+)_([0-9]{4})", re.DOTALL)


@dataclass(frozen=True)
class Case:
    """The files of one case: images by channel, and the label map if there is one."""

    name: str
    test: bool
    images: dict[int, Path]
    labels: Path | None

    @property
    def files(self) -> list[Path]:
        return [*self.images.values(), *([self.labels] if self.labels else [])]


@dataclass
class Dataset:
    """A raw dataset. What could not be understood is None or empty, and why is in `problems`."""

    folder: Path
    description: dict[str, Any] = field(default_factory=dict)
    labels: LabelSet | None = None
    file_ending: str | None = None
    n_channels: int | None = None
    cases: list[Case] = field(default_factory=list)
    misnamed: list[tuple[Path, str]] = field(default_factory=list)  # a file, and the name it must have
    strays: list[tuple[Path, str]] = field(default_factory=list)  # what belongs to no case, and why
    problems: list[str] = field(default_factory=list)  # of dataset.json

    @property
    def json(self) -> Path:
        return self.folder / "dataset.json"

    @property
    def training(self) -> list[Case]:
        return [case for case in self.cases if not case.test]

    @property
    def lists_its_files(self) -> bool:
        """Whether dataset.json names the files, in the place of imagesTr and labelsTr."""
        return "dataset" in self.description

    def holds(self, path: Path) -> bool:
        """Whether a file lies in the folder; others are not ours to change."""
        return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.folder))


def find_folder(folder_or_id: str) -> Path:
    """The folder meant: a path, or as in nnU-Net's commands a number or name below nnUNet_raw.

    Raises:
        SamnnError: there is no such folder, or several have that number.
    """
    path = Path(folder_or_id)
    if os.path.isdir(path):
        return path
    if re.fullmatch(r"[0-9]{1,3}", folder_or_id):
        if not os.environ.get("nnUNet_raw"):
            raise SamnnError(
                "nnUNet_raw is not set, so a number says nothing: name the folder, or set it (`samnn env ROOT`)."
            )
        root = raw_root(None)
        found = sorted(root.glob(f"Dataset{int(folder_or_id):03d}_*/"))
        if len(found) != 1:
            names = ", ".join(match.name for match in found) or "none"
            raise SamnnError(
                f"{root}: expected one dataset with the number {folder_or_id}; found {names}. Name the folder."
            )
        return found[0]
    if folder_or_id.startswith("Dataset") and os.environ.get("nnUNet_raw"):
        path = raw_root(None) / folder_or_id
    if not os.path.isdir(path):
        raise SamnnError(
            f"{path}: {'is not a folder' if os.path.lexists(path) else 'no such folder'}. "
            "Name a raw dataset (DatasetXXX_Name), or its number if nnUNet_raw is set."
        )
    return path


def read_dataset(folder: Path) -> Dataset:
    """Find out which cases a folder holds. No image is opened; nothing is refused, `problems` says what is wrong."""
    dataset = Dataset(folder)
    try:
        dataset.description = read_dataset_json(dataset.json)
    except SamnnError as problem:
        dataset.problems.append(str(problem).removeprefix(f"{dataset.json}: ").rstrip("."))
    else:
        try:
            dataset.labels = LabelSet.from_mapping(dataset.description.get("labels"), source=dataset.json)
        except SamnnError as problem:
            dataset.problems.append(str(problem).removeprefix(f"{dataset.json}: ").rstrip("."))
    channels = dataset.description.get("channel_names")
    dataset.n_channels = len(channels) if isinstance(channels, dict) and channels else None
    ending = dataset.description.get("file_ending")
    dataset.file_ending = ending if isinstance(ending, str) and ending else _usual_ending(folder)
    if dataset.file_ending is not None:
        if dataset.lists_its_files:
            _listed_cases(dataset)
        else:
            _cases_in_folders(dataset, test=False)
        _cases_in_folders(dataset, test=True)
    return dataset


def _usual_ending(folder: Path) -> str | None:
    """The ending most images have, where dataset.json does not say it."""
    names = [name for kind in ("imagesTr", "imagesTs") for name in names_in(folder / kind)]
    found = Counter(ending for name in names for ending in ENDINGS if name.endswith(ending))
    return found.most_common(1)[0][0] if found else None


def _listed_cases(dataset: Dataset) -> None:
    """The training cases that dataset.json names file by file."""
    listed = dataset.description["dataset"]
    if not isinstance(listed, dict):
        dataset.problems.append('"dataset" is not a mapping of case name to images and label')
        return
    for name, entry in listed.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        labels = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(images, list) or not all(isinstance(file, str) for file in [*images, labels]):
            dataset.problems.append(f'case {name!r} of "dataset" is not {{"images": [files], "label": file}}')
            continue
        files = [dataset.folder / os.path.expandvars(file) for file in [*images, labels]]
        dataset.cases.append(Case(name, False, dict(enumerate(files[:-1])), files[-1]))


def _cases_in_folders(dataset: Dataset, *, test: bool) -> None:
    """The cases of imagesTr and labelsTr, or imagesTs and labelsTs.

    A wrong name that can mean one thing only is entered into `misnamed`, and its case is taken for what is meant.
    """
    images_folder, labels_folder = (
        dataset.folder / f"{kind}{'Ts' if test else 'Tr'}" for kind in ("images", "labels")
    )
    images, labels = (_stems(dataset, folder) for folder in (images_folder, labels_folder))
    ending = dataset.file_ending
    labels_of = {stem: stem for stem in labels}  # case → stem of its label map
    numbered_cases = any((match := CHANNEL.fullmatch(stem)) and match[2] != "0000" for stem in labels)
    if not numbered_cases:  # label maps named as images are: case_0000
        for stem in labels:
            match = CHANNEL.fullmatch(stem)
            if match and stem in images and match[1] not in labels and f"{stem}_0000" not in images:
                labels_of[match[1]] = labels_of.pop(stem)
                dataset.misnamed.append((labels_folder / f"{stem}{ending}", f"{match[1]}{ending}"))

    channels_of: dict[str, dict[int, Path]] = {}
    for stem in images:
        path, match = images_folder / f"{stem}{ending}", CHANNEL.fullmatch(stem)
        case_without_number = stem in labels_of and (match is None or match[1] not in labels_of)
        test_without_number = test and match is None
        if (
            dataset.n_channels == 1
            and (case_without_number or test_without_number)
            and f"{stem}_0000" not in images
        ):
            channels_of.setdefault(stem, {})[0] = path
            dataset.misnamed.append((path, f"{stem}_0000{ending}"))
        elif match:
            channels_of.setdefault(match[1], {})[int(match[2])] = path
        else:
            dataset.strays.append((path, "has no channel number such as _0000 before its ending"))
    for name in sorted(channels_of.keys() | labels_of.keys()):
        label_map = labels_folder / f"{labels_of[name]}{ending}" if name in labels_of else None
        dataset.cases.append(Case(name, test, channels_of.get(name, {}), label_map))


def _stems(dataset: Dataset, folder: Path) -> list[str]:
    """Names, without the ending, of the files that nnU-Net sees in a folder; all others are strays."""
    stems = []
    for name in names_in(folder):
        path = folder / name
        stem = name.removesuffix(dataset.file_ending)
        if name.endswith(dataset.file_ending):
            if name.startswith("."):
                dataset.strays.append((path, "is hidden, but nnU-Net takes it for a case"))
            elif os.path.isfile(path):
                stems.append(stem)
            else:
                dataset.strays.append((path, f"is {what_is(path)}, and nnU-Net leaves it out"))
        elif not name.startswith(".") and not (
            dataset.file_ending in (".tif", ".tiff") and name.endswith(".json")
        ):
            what = (
                f"is {what_is(path)}"
                if not os.path.isfile(path)
                else f"does not end in {dataset.file_ending}"
            )
            dataset.strays.append((path, f"{what}, and nnU-Net leaves it out"))
    return stems


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def what_is(path: Path) -> str:
    """What lies at a path that is not a file."""
    if os.path.isdir(path):
        return "a folder"
    if os.path.islink(path) and not os.path.exists(path):
        return "a link to nowhere"
    return "no regular file" if os.path.lexists(path) else "missing"

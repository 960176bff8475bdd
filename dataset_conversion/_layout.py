"""nnU-Net's raw format: where the files of a dataset go, and the only code that writes them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samnn.atomic import whole_folder, write_json
from samnn.errors import SamnnError
from samnn.io import write_like

RAW_VARIABLE = "nnUNet_raw"


def raw_root(output: Path | None) -> Path:
    """The folder of raw datasets: `output`, or what the environment variable nnUNet_raw names.

    Raises:
        SamnnError: neither is given.
    """
    if output is not None:
        return Path(output)
    if not os.environ.get(RAW_VARIABLE):
        raise SamnnError(
            f"{RAW_VARIABLE} is not set, so there is nowhere to write to. Set it (`samnn env ROOT` prints the lines), "
            "or name a folder with --output."
        )
    return Path(os.environ[RAW_VARIABLE])


def dataset_folder(root: Path, dataset_id: int, name: str, *, overwrite: bool) -> Path:
    """Where the dataset goes, `root`/DatasetXXX_NAME.

    Raises:
        SamnnError: the number or name is not one nnU-Net takes, the number is taken by another dataset, or the
            dataset exists and `overwrite` is not set.
    """
    if not 1 <= dataset_id <= 999:
        raise SamnnError(f"dataset ID {dataset_id}: nnU-Net takes numbers from 1 to 999.")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise SamnnError(
            f"dataset name {name!r}: use letters, digits, - and _ only; folders are named by it."
        )
    target = root / f"Dataset{dataset_id:03d}_{name}"
    others = [path.name for path in root.glob(f"Dataset{dataset_id:03d}_*") if path.name != target.name]
    if others:
        raise SamnnError(
            f"{root}: ID {dataset_id} is taken by {', '.join(sorted(others))}. Choose another with -d."
        )
    if target.exists() and not overwrite:
        raise SamnnError(f"{target}: exists already. Add --overwrite to replace it.")
    return target


@contextmanager
def new_dataset(target: Path, *, overwrite: bool = False) -> Iterator[RawDataset]:
    """Yield a dataset to fill; it appears at `target` when the block ends without error, whole or not at all."""
    with whole_folder(target, overwrite=overwrite) as folder:
        yield RawDataset(folder)


@dataclass(frozen=True)
class RawDataset:
    """A raw dataset under construction: images and labels go in by case, `finish` describes them."""

    folder: Path
    file_ending: str = ".nii.gz"

    def add_image(self, source: Path, case: str, *, channel: int = 0, test: bool = False) -> None:
        """Copy an image byte for byte."""
        shutil.copyfile(source, self._path("images", f"{case}_{channel:04d}", test))

    def add_labels(self, source: Path, case: str, *, test: bool = False) -> None:
        """Copy a label map byte for byte."""
        shutil.copyfile(source, self._path("labels", case, test))

    def write_labels(self, labels: np.ndarray, case: str, *, like: Path, test: bool = False) -> None:
        """Write a label map in (x, y, z) order as uint8 under the NIfTI header of `like`."""
        write_like(self._path("labels", case, test), labels.astype(np.uint8), like=like)

    def finish(
        self, *, channel_names: Sequence[str], labels: Mapping[str, int], conversion: Mapping[str, Any]
    ) -> None:
        """Write dataset.json, and conversion.json: where everything came from and what was decided."""
        n_training = len(list((self.folder / "labelsTr").glob(f"*{self.file_ending}")))
        description = {
            "channel_names": {str(channel): name for channel, name in enumerate(channel_names)},
            "labels": dict(labels),
            "numTraining": n_training,
            "file_ending": self.file_ending,
        }
        write_json(self.folder / "conversion.json", conversion)
        write_json(self.folder / "dataset.json", description)

    def _path(self, kind: str, stem: str, test: bool) -> Path:
        folder = self.folder / f"{kind}{'Ts' if test else 'Tr'}"
        folder.mkdir(exist_ok=True)
        return folder / f"{stem}{self.file_ending}"


def sha256(source: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(source, "rb") as reader:
        while block := reader.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()

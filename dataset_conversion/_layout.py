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

from samnn import blocks
from samnn.atomic import only_writer, whole_folder, write_json
from samnn.blocks import Blocks
from samnn.errors import SamnnError
from samnn.io import Volume, write_like, write_volume

from . import _pixels

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


def dataset_folder(root: Path, dataset_id: int, name: str, *, source: Path, overwrite: bool) -> Path:
    """Where the dataset goes, `root`/DatasetXXX_NAME; whatever speaks against writing it is found before any work.

    Raises:
        SamnnError: the number or name is not one nnU-Net takes, the number is taken by another dataset, the
            dataset exists and `overwrite` is not set, it and `source` would lie in one another, or nothing can be
            written to `root`.
    """
    if not 1 <= dataset_id <= 999:
        raise SamnnError(f"dataset ID {dataset_id}: nnU-Net takes numbers from 1 to 999.")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise SamnnError(
            f"dataset name {name!r}: use letters, digits, - and _ only; folders are named by it."
        )
    target = root / f"Dataset{dataset_id:03d}_{name}"
    try:
        refuse_overlap(source, target)
        _refuse_unwritable(root)
        _refuse_taken_id(target)
        if os.path.lexists(target) and not target.is_dir():
            raise SamnnError(f"{target}: exists and is not a folder. Move it away.")
        if target.exists() and not overwrite:
            raise SamnnError(f"{target}: exists already. Add --overwrite to replace it.")
    except OSError as error:
        raise SamnnError(f"{target}: cannot be looked up ({error.strerror}).") from error
    return target


def refuse_overlap(source: Path, target: Path) -> None:
    """Refuse a target in the source, where it would lie among the patients, and a source that it would replace.

    Raises:
        SamnnError: links resolved, they are the same or one lies in the other.
    """
    inner, outer = (Path(os.path.realpath(path)) for path in (source, target))
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise SamnnError(
            f"{target}: lies in the source {source}, or the source in it. Name a folder elsewhere with --output."
        )


@contextmanager
def new_dataset(
    target: Path, *, overwrite: bool = False, resume: bool = False, file_ending: str = ".nii.gz"
) -> Iterator[RawDataset]:
    """Yield a dataset to fill; it appears at `target` when the block ends without error, whole or not at all.

    With `resume`, the dataset yielded holds what an earlier block has put into it before an error or a kill. After a
    power cut its last half minute may be missing, as with copied files; the source is still there, and a dataset that
    is replaced is gone only when the disk holds the new one.

    Raises:
        SamnnError: another process is writing a dataset of this number, or as `dataset_folder`.
    """
    with only_writer(target.with_name(_number(target))):
        _refuse_taken_id(target)
        with whole_folder(target, overwrite=overwrite, resume=resume, flush=False) as folder:
            yield RawDataset(folder, file_ending)


def _number(target: Path) -> str:
    return target.name.partition("_")[0]


def _refuse_taken_id(target: Path) -> None:
    others = [path.name for path in target.parent.glob(f"{_number(target)}_*") if path.name != target.name]
    if others:
        raise SamnnError(
            f"{target.parent}: {_number(target)} is taken by {', '.join(sorted(others))}. Choose another ID with -d."
        )


def _refuse_unwritable(root: Path) -> None:
    existing = next(path for path in (root, *root.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise SamnnError(
            f"{root}: cannot be written to, {existing} is not a folder. Name another with --output."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise SamnnError(
            f"{root}: cannot be written to, {existing} is read-only. Name another with --output."
        )


@dataclass(frozen=True)
class RawDataset:
    """A raw dataset under construction: images and labels go in by case, `finish` describes them."""

    folder: Path
    file_ending: str = ".nii.gz"

    def add_image(self, source: Path, case: str, *, channel: int = 0, test: bool = False) -> Path:
        """Copy an image byte for byte, and return where to."""
        return shutil.copyfile(source, self._path("images", f"{case}_{channel:04d}", test))

    def add_labels(self, source: Path, case: str, *, test: bool = False) -> Path:
        """Copy a label map byte for byte, and return where to."""
        return shutil.copyfile(source, self._path("labels", case, test))

    def write_images(
        self, channels: Sequence[Volume | Blocks], case: str, *, test: bool = False, source: Path
    ) -> list[Path]:
        """Write a file a channel, or as PNG one file of one or three channels; messages name `source`."""
        if self.file_ending == ".png":
            path = self._path("images", f"{case}_0000", test)
            _pixels.write_png(path, [channel.voxels for channel in channels], source=source)
            return [path]
        paths = [self._path("images", f"{case}_{number:04d}", test) for number in range(len(channels))]
        for path, channel in zip(paths, channels, strict=True):
            _write_nifti(path, channel)
        return paths

    def write_label_map(
        self, labels: Volume | Blocks, case: str, *, test: bool = False, source: Path
    ) -> Path:
        """Write a label map on its own grid and return where; messages name `source`."""
        path = self._path("labels", case, test)
        if self.file_ending == ".png":
            _pixels.write_png(path, [labels.voxels], source=source)
        else:
            _write_nifti(path, labels)
        return path

    def write_sidecar(self, content: Mapping[str, Any], case: str) -> Path:
        """Write what nnU-Net has no place for, as `sidecars`/CASE.json, and return where."""
        path = self.folder / "sidecars" / f"{case}.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, content)
        return path

    def write_labels(self, labels: np.ndarray, case: str, *, like: Path, test: bool = False) -> Path:
        """Write a label map in (x, y, z) order as uint8 under the NIfTI header of `like`, and return where."""
        path = self._path("labels", case, test)
        write_like(path, labels.astype(np.uint8), like=like)
        return path

    def finish(
        self,
        *,
        channel_names: Sequence[str],
        labels: Mapping[str, Any],
        conversion: Mapping[str, Any],
        regions_class_order: Sequence[int] = (),
    ) -> None:
        """Write dataset.json, and conversion.json: where everything came from and what was decided."""
        n_training = len(list((self.folder / "labelsTr").glob(f"*{self.file_ending}")))
        description = {
            "channel_names": {str(channel): name for channel, name in enumerate(channel_names)},
            "labels": dict(labels),
            "numTraining": n_training,
            "file_ending": self.file_ending,
        }
        if regions_class_order:
            description["regions_class_order"] = list(regions_class_order)
        self.record(conversion)
        write_json(self.folder / "dataset.json", description)

    def record(self, conversion: Mapping[str, Any]) -> None:
        """Write conversion.json alone, for a dataset that nnU-Net's own code has described."""
        write_json(self.folder / "conversion.json", conversion)

    def _path(self, kind: str, stem: str, test: bool) -> Path:
        folder = self.folder / f"{kind}{'Ts' if test else 'Tr'}"
        folder.mkdir(exist_ok=True)
        return folder / f"{stem}{self.file_ending}"


def _write_nifti(path: Path, voxels: Volume | Blocks) -> None:
    (blocks.write if isinstance(voxels, Blocks) else write_volume)(path, voxels)


def sha256(source: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(source, "rb") as reader:
        while block := reader.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()

"""Datasets that nnU-Net's own converters write, from checked files, into a folder that appears whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from samnn import __version__
from samnn.atomic import write_json
from samnn.errors import Problems, SamnnError
from samnn.io import read_header, read_volume
from samnn.labels import LabelSet, read_dataset_json
from samnn.nifti import ends_as_expected, refuse_incomplete

from . import _layout, _splits
from ._label_names import LabelNames
from ._pair_files import Pair
from ._pair_work import Options, Plan, inspect
from ._writing import Dataset

_MOST_LINES_SHOWN = 15


def without_gaps(path: Path, names: LabelNames) -> LabelNames:
    """The names, if their values may stay as they are.

    Raises:
        SamnnError: values are left out, which nnU-Net does not train and its code does not close up.
    """
    if names.changed:
        raise SamnnError(
            f"{path}: has labels {names.values}, with gaps; nnU-Net needs 1, 2, 3, … without. Use `samnn convert pairs`, "
            "which renumbers them."
        )
    return names


def inspect_as_it_is(pair: Pair, n_channels: int) -> Plan:
    """As `inspect` of pairs, for files that nnU-Net's code copies without a look.

    Raises:
        SamnnError: image and mask do not lie on one grid with the same axes, an image is damaged, or as `inspect`.
    """
    plan = inspect(pair, Options(n_channels=n_channels))
    if plan.fit is not None and not plan.fit.turn.is_none:
        raise SamnnError(
            f"{pair.mask}: its axes lie as {plan.fit.turn} against {pair.images[0].name}. Use `samnn convert pairs`, which "
            "turns them; nnU-Net's code copies it as it is."
        )
    for path in pair.images:
        if read_header(path).dtype.kind == "f":
            read_volume(path)  # finds NaN
        elif not ends_as_expected(path):
            refuse_incomplete(path)
    return plan


@dataclass
class Converted(Dataset):
    """A dataset that nnU-Net's code writes: not case by case, so a run that was stopped starts anew."""

    run: Callable[[Sequence[Plan], Scratch], _splits.Splits | None] | None = None
    licence: str = ""

    def write(self, target: Path, *, workers: int, overwrite: bool, skip_refused: bool) -> dict[str, Any]:
        """Run nnU-Net's code on links to the checked files, and see that it wrote exactly these cases.

        Raises:
            SamnnError: it fails, or what it wrote is not what was found.
        """
        with _layout.new_dataset(target, overwrite=overwrite) as dataset:
            with tempfile.TemporaryDirectory(dir=dataset.folder, prefix=".nnunet-") as folder:
                scratch = Scratch(Path(folder), workers)
                with Console(stderr=True).status("Converting with nnU-Net's own code"):
                    self.splits = self.run(self.plans, scratch)
                if self.splits is not None:
                    _splits.refuse_other_folds(target, self.splits, overwrite=overwrite)
                made = scratch.made()
                for path in made.iterdir():
                    path.rename(dataset.folder / path.name)
            for path in dataset.folder.iterdir():
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
            entries = self._entries(dataset.folder)
            labels = LabelSet.from_dataset_json(dataset.folder / "dataset.json")
            if labels.values != {0, *self.names.values.values()}:
                raise SamnnError(
                    f"{target}: nnU-Net's code named the labels {labels.classes}, not {self.names.values}."
                )
            described = dataset.folder / "dataset.json"
            said = {
                "licence": self.licence,
                "converted_by": f"samnn {__version__}",
            }  # where nnU-Net's code says nothing
            write_json(described, read_dataset_json(described) | said)
            dataset.record(self.record(entries))
            if self.splits is not None:
                write_json(dataset.folder / _splits.FILE_NAME, self.splits)
        if self.splits is not None:
            _splits.write_preprocessed(target, self.splits)
        return entries

    def _entries(self, folder: Path) -> dict[str, Any]:
        """The entry of each case, once all its files are there and no others."""
        entries, expected = {}, {Path("dataset.json")}
        for plan in self.plans:
            part = "Ts" if plan.is_test else "Tr"
            files = [Path(f"images{part}/{plan.name}_{c:04d}.nii.gz") for c in range(plan.n_channels)]
            files += [Path(f"labels{part}/{plan.name}.nii.gz")] if plan.has_labels else []
            expected.update(files)
            entry: dict[str, Any] = {"images": [{"how": "by nnU-Net", "because": ""}] * plan.n_channels}
            if plan.has_labels:
                entry["mask"] = {"how": "by nnU-Net", "because": []}
            sources = [str(path) for path in plan.sources]
            entries[plan.name] = entry | {"sources": sources, "changes": plan.changes}
        found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        if found != expected:
            listed = [
                f"{path}: {'missing' if path in expected else 'not asked for'}" for path in found ^ expected
            ]
            raise Problems("nnU-Net's code did not write the files that were expected:", sorted(listed))
        return entries


@dataclass(frozen=True)
class Scratch:
    """A folder with links to sources in the layout that nnU-Net's code wants, and its nnUNet_raw."""

    folder: Path
    workers: int

    @property
    def raw(self) -> Path:
        return self.folder / "raw"

    def link(self, files: Iterable[tuple[str, Path]]) -> Path:
        """Make links, path below the source → file, and return the source made of them."""
        source = self.folder / "source"
        for relative, path in files:
            link = source / relative
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        return source

    def call(self, module: str, function: str, **arguments: Any) -> Any:
        """Call a function of a module below nnunetv2.dataset_conversion in a process of its own; return its result.

        Arguments are what JSON can hold, and paths.

        Raises:
            SamnnError: it fails; with the last lines it printed.
        """
        self.raw.mkdir(exist_ok=True)
        folders = {f"nnUNet_{kind}": str(self.folder / kind) for kind in ("raw", "preprocessed", "results")}
        command = [sys.executable, str(Path(__file__).with_name("_nnunet_job.py"))]
        command += [
            f"nnunetv2.dataset_conversion.{module}",
            function,
            json.dumps(arguments, default=lambda path: {"path": str(path)}),
        ]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | folders,
            text=True,
            errors="replace",
        ) as process:
            said = process.stdout.read()
        lines = said.strip().splitlines()
        if process.returncode != 0 or not lines:
            last = "\n".join(lines[-_MOST_LINES_SHOWN:])
            raise SamnnError(
                f"nnU-Net's {module}.{function} failed with code {process.returncode}. Nothing was written. It said:\n{last}"
            )
        return json.loads(lines[-1])

    def made(self) -> Path:
        """The one dataset in nnUNet_raw."""
        datasets = sorted(self.raw.iterdir()) if self.raw.exists() else []
        if len(datasets) != 1:
            raise SamnnError(f"nnU-Net's code made {len(datasets)} datasets; expected one.")
        return datasets[0]

"""Low data: nested subsets of the training patients, each an experiment of its own on the same validation cases."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from samnn.atomic import whole_file, write_json
from samnn.crossval.experiment import Experiment, as_toml, refuse_old_python, root
from samnn.crossval.prepare import patient_of, prepare, read_splits
from samnn.crossval.steps import LOWDATA
from samnn.errors import SamnnError

ALL = "all"


@dataclass(frozen=True)
class LowData:
    """A learning curve: the experiment on all data, and the numbers of training patients to repeat it with."""

    out: Path
    base: Experiment
    sizes: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, given: Mapping[str, Any], sizes: Sequence[str], *, seed: int, out: Path | None) -> LowData:
        """Raises SamnnError: a value is missing or unfit."""
        if bad := [size for size in sizes if size != ALL and not re.fullmatch(r"[1-9]\d*", size)]:
            raise SamnnError(f"--sizes: {bad[0]!r} is neither a number of patients nor `all`.")
        if not sizes or len(set(sizes)) < len(sizes):
            raise SamnnError("--sizes: name each number of patients once, such as --sizes 1 2 5 10 all.")
        # no ensembles and no test sets: a curve is drawn from the validation cases
        base = Experiment.of(
            dict(given) | {"ensemble": False, "test": False}, source="the command line", out=out or "."
        )
        place = Path(os.path.abspath(out)) if out else root("nnUNet_results") / base.dataset / "lowdata"
        return cls(place, replace(base, out=place), tuple(sizes), seed)

    @classmethod
    def read(cls, out: Path) -> LowData:
        """Raises SamnnError: there is none, or it cannot be read."""
        refuse_old_python("samnn lowdata")
        import tomllib

        try:
            content = tomllib.loads((out / LOWDATA).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SamnnError(f"{out / LOWDATA}: cannot be read ({error}).") from error
        if missing := [name for name in ("sizes", "seed") if name not in content]:
            raise SamnnError(f"{out / LOWDATA}: lacks {' and '.join(missing)}.")
        sizes, seed = content.pop("sizes"), content.pop("seed")
        return cls(out, Experiment.of(content, source=str(out / LOWDATA), out=out), tuple(sizes), seed)

    def parts(self) -> list[Experiment]:
        """One experiment for each size, in a folder of its own; `all` uses the dataset's own splits and results."""
        parts = []
        for size in self.sizes:
            folder = self.out / f"size_{size}"
            own = None if size == ALL else folder / "nnUNet_preprocessed"
            results = None if size == ALL else folder / "nnUNet_results"
            parts.append(self.base.with_folders(out=folder, preprocessed=own, results=results))
        return parts

    def settle(self) -> None:
        """Write the file and those of the parts. Raises SamnnError: the folder holds something else."""
        content = self.base.content() | {"sizes": list(self.sizes), "seed": self.seed}
        text = "".join(f"{name} = {as_toml(value)}\n" for name, value in content.items())
        path = self.out / LOWDATA
        if path.is_file():
            if path.read_text(encoding="utf-8") != text:
                raise SamnnError(
                    f"{path}: is another learning curve. Name another folder with -o, or --resume it."
                )
        else:
            if self.out.is_dir() and any(
                path for path in self.out.iterdir() if not path.name.startswith(".lock-")
            ):
                raise SamnnError(
                    f"{self.out}: is not empty and holds no learning curve. Name another folder with -o."
                )
            self.out.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as part:
                part.write_text(text, encoding="utf-8")
        for part in self.parts():
            part.settle()


def prepare_sizes(out: Path, run: Callable[..., None]) -> dict[str, Any]:
    """Prepare the dataset once, and for each size a folder of links to it with splits of its own."""
    from samnn.crossval.check import check_and_keep
    from samnn.crossval.provenance import record_data

    curve = LowData.read(out)
    run.environment = curve.base.environment()
    prepare(curve.base, run)
    splits = read_splits(curve.base)
    record_data(curve.base)
    data = (out / "data.json").read_bytes()
    for size, part in zip(curve.sizes, curve.parts(), strict=True):
        if size != ALL:
            _link(curve.base.preprocessed_folder, part.preprocessed_folder)
            part.results_folder.mkdir(parents=True, exist_ok=True)
            write_json(
                part.preprocessed_folder / "splits_final.json",
                smaller_splits(splits, int(size), group=curve.base.group, seed=curve.seed),
            )
        with whole_file(part.out / "data.json") as file:
            file.write_bytes(data)
        check_and_keep(part)
    return {"data": json.loads(data)["sha256"]}


def smaller_splits(
    splits: list[dict[str, list[str]]], size: int, *, group: str | None, seed: int
) -> list[dict[str, list[str]]]:
    """The same splits with `size` training patients: the first of an order that depends on seed and fold alone.

    So the subsets of one fold are nested. `group`: a regular expression that names the patient in a case's name.

    Raises:
        SamnnError: a fold has fewer patients.
    """
    smaller = []
    for fold, split in enumerate(splits):
        patients: dict[str, list[str]] = {}
        for case in sorted(split["train"]):
            patients.setdefault(patient_of(case, group), []).append(case)
        if size > len(patients):
            raise SamnnError(
                f"--sizes {size}: fold {fold} has {len(patients)} training patients. Name fewer, or `all`."
            )
        order = np.random.default_rng([seed, fold]).permutation(sorted(patients))
        chosen = [case for patient in order[:size] for case in patients[str(patient)]]
        smaller.append({"train": sorted(chosen), "val": split["val"]})
    return smaller


def _link(source: Path, target: Path) -> None:
    """Make `target` a folder of links to what is in `source`, less the splits and samnn's own notes."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        link = target / path.name
        if path.name != "splits_final.json" and not path.name.startswith(".") and not link.is_symlink():
            link.symlink_to(path)

"""`samnn crf`: a CRF on the probabilities that nnU-Net saved, without any training."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from samnn import __version__
from samnn.atomic import only_writer, whole_file, write_json
from samnn.errors import Problems, SamnnError
from samnn.evaluation3d.probabilities import TOLERANCE, Channels, check_probabilities
from samnn.evaluation3d.stored import KEY, read_blocks, read_header
from samnn.geometry import Grid
from samnn.io import Volume, read_grid, read_volume, write_volume
from samnn.labels import LabelSet, read_dataset_json
from samnn.nn.crf import MeanFieldCRF

SMALLEST = 1e-7  # a probability nearer to 0 or 1 is taken for this far from it: logits are finite
RECORD = "crf.json"


@dataclass(frozen=True)
class Settings:
    """How the CRF is built: the arguments of MeanFieldCRF, and what is written."""

    kernel: str = "crfseg"
    filter_size: int = 11
    n_iter: int = 5
    smoothness_weight: float = 1.0
    smoothness_theta_mm: float = 1.0
    appearance_weight: float | None = None
    appearance_theta_mm: float = 1.0
    intensity_theta: float | None = None
    save_probabilities: bool = False

    def __post_init__(self) -> None:
        if self.filter_size < 1 or self.filter_size % 2 == 0:
            raise SamnnError(f"--filter-size {self.filter_size}: expected an odd number of voxels.")

    def crf(self, n_dims: int, *, regions: bool) -> MeanFieldCRF:
        """The layer, returning probabilities."""
        return MeanFieldCRF(
            n_dims,
            filter_size=self.filter_size,
            n_iter=self.n_iter,
            requires_grad=False,
            returns="proba",
            smoothness_weight=self.smoothness_weight,
            smoothness_theta=self.smoothness_theta_mm,
            kernel=self.kernel,
            regions=regions,
            appearance_weight=self.appearance_weight,
            appearance_theta=self.appearance_theta_mm,
            intensity_theta=1.0 if self.intensity_theta is None else self.intensity_theta,
        )


@dataclass(frozen=True)
class Case:
    """Saved probabilities, the grid they lie on, and what is made of them."""

    name: str
    probabilities: Path
    grid: Grid
    images: tuple[Path, ...]  # channel after channel; empty without an appearance term
    target: Path

    @property
    def target_probabilities(self) -> Path:
        return self.target.with_name(f"{self.name}.npz")

    def is_done(self, settings: Settings) -> bool:
        """Whether the results are there and no older than their source. The label map is written last."""
        made = [self.target, *([self.target_probabilities] if settings.save_probabilities else [])]
        return all(path.is_file() for path in made) and (
            self.target.stat().st_mtime_ns >= self.probabilities.stat().st_mtime_ns
        )


def apply_crf(
    probabilities: Path,
    out: Path,
    settings: Settings,
    *,
    like: Path | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    console: Console,
) -> None:
    """Refine every `.npz` in the folder `probabilities` and write label maps to the folder `out`.

    The grid of a case is that of the label map beside its probabilities, or of its label map or image in `like`.
    Finished cases are skipped, so that the same call goes on where an earlier one was ended.

    Raises:
        SamnnError: a file is missing, damaged or does not fit, or `out` holds something else.
    """
    settings.crf(3, regions=False)  # wrong numbers are found before anything is read
    dataset_json = labels or _dataset_json(probabilities)
    channels = Channels.of_model(LabelSet.from_dataset_json(dataset_json), dataset_json)
    cases = _find_cases(probabilities, out, dataset_json, channels, like=like, images=images)
    record = {"samnn": __version__, "settings": asdict(settings), "images": str(images) if images else None}
    _refuse_other_results(out, probabilities, record, overwrite)
    waiting = [case for case in cases if overwrite or not case.is_done(settings)]
    if dry_run:
        _print_plan(cases, waiting, console)
        return
    changed: dict[str, float] = {}
    with ExitStack() as stack:
        stack.enter_context(only_writer(out))
        out.mkdir(exist_ok=True)
        write_json(out / RECORD, record)
        with whole_file(out / "dataset.json") as part:
            shutil.copyfile(dataset_json, part)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
        stack.enter_context(progress)
        task = progress.add_task("refining", total=len(cases), completed=len(cases) - len(waiting))
        for case in waiting:
            progress.update(task, description=case.name)
            changed[case.name] = _refine(case, settings, channels)
            progress.advance(task)
    _print_results(changed, len(cases), out, console)


def _refine(case: Case, settings: Settings, channels: Channels) -> float:
    """Write the results of a case; → the share of voxels whose label changed."""
    p = _read(case.probabilities, regions=channels.region_values is not None)
    flat = p.reshape(len(p), *case.grid.shape[::-1])  # nnU-Net saves pictures as one slice
    logits = torch.from_numpy(flat)[None].clamp(SMALLEST, 1 - SMALLEST)
    logits = torch.logit(logits) if channels.region_values is not None else logits.log()
    image = None
    if case.images:
        voxels = [read_volume(path).voxels.transpose().astype(np.float32) for path in case.images]
        image = torch.from_numpy(np.stack(voxels))[None]
    crf = settings.crf(case.grid.n_dims, regions=channels.region_values is not None)
    with torch.inference_mode():
        refined = crf(logits, case.grid.spacing_mm[::-1], image)[0].numpy()
    before, after = (_labels(values, channels) for values in (flat, refined))
    if settings.save_probabilities:
        with whole_file(case.target_probabilities) as part, open(part, "wb") as file:
            np.savez_compressed(file, **{KEY: refined.reshape(p.shape)})
    write_volume(case.target, Volume(after.transpose(), case.grid))
    return float((before != after).mean())


def _read(path: Path, *, regions: bool) -> np.ndarray:
    """The array of a file, classes first, in float32."""
    shape = read_header(path).shape
    p = np.empty((shape[0], int(np.prod(shape[1:]))), np.float32)
    for channel, start, block in read_blocks(path):
        p[channel, start : start + len(block)] = block
    if p.min() < -TOLERANCE or p.max() > 1 + TOLERANCE:
        raise SamnnError(f"{path}: holds {p.min():g} to {p.max():g}; probabilities lie between 0 and 1.")
    if not regions and np.abs(p.sum(0) - 1).max() > TOLERANCE:
        raise SamnnError(
            f"{path}: the probabilities of a voxel do not add up to 1. Are they of a model with regions? Name with "
            "--labels its dataset.json, which has regions_class_order."
        )
    return p.reshape(shape)


def _labels(p: np.ndarray, channels: Channels) -> np.ndarray:
    """nnU-Net's rule: the likeliest class; of regions, the last one above 0.5."""
    if channels.region_values is None:
        return p.argmax(0).astype(np.uint8 if len(p) <= 256 else np.uint16)
    found = np.zeros(p.shape[1:], np.uint8 if max(channels.region_values) < 256 else np.uint16)
    for of_region, value in zip(p, channels.region_values, strict=True):
        found[of_region > 0.5] = value
    return found


def _find_cases(
    folder: Path, out: Path, dataset_json: Path, channels: Channels, *, like: Path | None, images: Path | None
) -> list[Case]:
    """Match probabilities with grids and images, and check every header."""
    content = read_dataset_json(dataset_json)
    ending = content.get("file_ending", ".nii.gz")
    n_images = len(content.get("channel_names") or [0])
    plans = folder / "plans.json"
    if plans.is_file() and str(read_dataset_json(plans).get("image_reader_writer")).endswith("Reorient"):
        raise SamnnError(
            f"{plans}: its image_reader_writer turns images before prediction, and nnU-Net saves probabilities so turned."
        )
    paths = [path for path in sorted(folder.glob("*.npz")) if not path.name.startswith(".")]
    if not paths:
        raise SamnnError(
            f"{folder}: holds no .npz. nnUNetv2_predict --save_probabilities and nnUNetv2_train … --npz write them."
        )
    cases, problems = [], []
    for path in paths:
        name = path.name.removesuffix(".npz")
        places = [(like or folder) / f"{name}{end}{ending}" for end in ("", "_0000")]
        of_image = [images / f"{name}_{c:04d}{ending}" for c in range(n_images)] if images else []
        try:
            place = next((place for place in places if place.is_file()), None)
            if place is None:
                raise SamnnError(
                    f"{path}: its grid is not known: there is no {places[0].name} in {places[0].parent}. Name with --like "
                    "the folder of its images or labels."
                )
            grid = read_grid(place)
            check_probabilities(path, grid, channels)
            for image in of_image:
                if differences := grid.differences(read_grid(image)):
                    raise SamnnError(f"{image}: lies on another grid than {place}: {'; '.join(differences)}.")
            cases.append(Case(name, path, grid, tuple(of_image), out / f"{name}{ending}"))
        except SamnnError as error:
            problems.append(str(error))
    if problems:
        raise Problems(f"{folder}: the CRF cannot be applied.", problems)
    return cases


def _dataset_json(folder: Path) -> Path:
    """The one nnU-Net wrote: beside predictions, or in the results folder above `fold_X/validation`."""
    if not folder.is_dir():
        raise SamnnError(f"{folder}: no such folder.")
    places = [place / "dataset.json" for place in (folder.absolute(), *folder.absolute().parents[:2])]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise SamnnError(f"{folder}: has no dataset.json in it or above. Name the model's with --labels.")
    return found


def _refuse_other_results(out: Path, source: Path, record: dict, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise SamnnError(f"{out}: is a file; expected a folder.")
    if os.path.samefile(out, source):
        raise SamnnError(f"{out}: holds the probabilities themselves. Name another folder for the results.")
    if not any(out.iterdir()):
        return
    try:
        before = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise SamnnError(
            f"{out}: holds files that `samnn crf` did not write. Name a new or empty folder."
        ) from None
    if before != record and not overwrite:
        raise SamnnError(
            f"{out}: holds results of other settings (see {RECORD}). Add --overwrite to replace them."
        )


def _print_plan(cases: list[Case], waiting: list[Case], console: Console) -> None:
    table = Table("case", "voxels", "spacing (mm)", "", box=box.SIMPLE_HEAD, show_edge=False)
    for case in cases:
        shape, spacing = (
            " × ".join(f"{v:g}" for v in values) for values in (case.grid.shape, case.grid.spacing_mm)
        )
        table.add_row(Text(case.name), shape, spacing, "to do" if case in waiting else "done")
    console.print(table)
    console.print(f"{len(waiting)} of {len(cases)} cases to do. Nothing was written.")


def _print_results(changed: dict[str, float], n_cases: int, out: Path, console: Console) -> None:
    if changed:
        table = Table("case", "voxels changed", box=box.SIMPLE_HEAD, show_edge=False)
        for name, share in changed.items():
            table.add_row(Text(name), f"{100 * share:.3f} %")
        console.print(table)
    skipped = n_cases - len(changed)
    console.print(
        f"Written: {out}" + (f" ({skipped} cases were finished before)" if skipped else ""), soft_wrap=True
    )

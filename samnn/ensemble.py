"""`samnn ensemble`: the weighted mean of several methods' saved probabilities, as label maps like any method's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import track

from samnn import __version__
from samnn.atomic import whole_folder, write_json
from samnn.errors import Problems, SamnnError
from samnn.evaluation3d.probabilities import TOLERANCE, Channels, check_probabilities
from samnn.evaluation3d.results import find_results
from samnn.evaluation3d.stored import read_blocks
from samnn.geometry import Grid
from samnn.io import Volume, read_grid, write_volume
from samnn.labels import LabelSet, read_dataset_json

Weighting = Literal["equal", "classes"]
EMPTY = ""  # the place of predictions that lie in no fold


@dataclass(frozen=True)
class Case:
    """One case: its probabilities in every method, and where its label map goes (`fold_0/validation`, or nowhere)."""

    name: str
    place: str
    files: tuple[Path, ...]
    grid: Grid


def ensemble(
    sources: Sequence[Path],
    out: Path,
    *,
    weighting: Weighting = "equal",
    crossval: Sequence[Path] = (),
    save_probabilities: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
) -> int:
    """Average the probabilities of `sources`, results folders or folders of predictions; → the number of cases.

    From results folders comes a results folder: every fold's held-out cases. `weighting` "classes" weights a method in
    each class by its mean validation Dice there, over the sum of all methods': for the held-out cases of a fold that
    of the other folds, so that no case decides about its own weights; for predictions that of `crossval`, the methods'
    results folders in the same order. The background has equal weights.

    Raises:
        Problems: all that is missing or does not fit together, before anything is written.
    """
    sources = [Path(source) for source in sources]
    if len(sources) < 2:
        raise SamnnError("An ensemble needs two methods or more.")
    if crossval and weighting == "equal":
        raise SamnnError("--crossval is for --weights classes: equal weights need nothing.")
    _refuse_same_and_missing([*sources], "source")
    _refuse_same_and_missing([*crossval], "--crossval")
    _refuse_other_target(Path(out), [*sources, *crossval])
    dataset = _dataset_json(sources[0])
    labels = LabelSet.from_dataset_json(dataset)
    channels = Channels.of_model(labels, dataset)
    ending = read_dataset_json(dataset).get("file_ending", ".nii.gz")
    _refuse_other_labels(sources)
    cases = _cases(sources, ending, channels)
    weights = {
        place: _weights(sources, place, labels, channels, weighting, list(crossval))
        for place in sorted({case.place for case in cases})
    }
    with whole_folder(Path(out), overwrite=overwrite) as part:
        for case in track(cases, "ensemble", console=Console(stderr=True), disable=not show_progress):
            mean = _mean(case, weights[case.place])
            folder = part / case.place
            folder.mkdir(parents=True, exist_ok=True)
            write_volume(folder / f"{case.name}{ending}", Volume(_label_map(mean, channels).T, case.grid))
            if save_probabilities:
                if (
                    channels.region_values is None
                ):  # weights per class add up to 1 over methods, not over classes
                    mean /= mean.sum(0)
                np.savez_compressed(folder / f"{case.name}.npz", probabilities=mean)
        for place, table in weights.items():
            record = {"ensemble_of": [str(source) for source in sources], "weighting": weighting}
            record |= {"weights": table.tolist(), "samnn": __version__}
            write_json(part / place / "summary.json", record)
        write_json(part / "dataset.json", read_dataset_json(dataset))
    return len(cases)


def _refuse_same_and_missing(folders: list[Path], what: str) -> None:
    for number, folder in enumerate(folders):
        if not folder.is_dir():
            raise SamnnError(f"{folder}: no such folder ({what}).")
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise SamnnError(f"{folder}: is named twice ({what}).")


def _refuse_other_target(out: Path, sources: list[Path]) -> None:
    """Refuse to write where methods lie, and to replace anything but an ensemble."""
    target = out.resolve()
    for source in (source.resolve() for source in sources):
        if target == source or target in source.parents or source in target.parents:
            raise SamnnError(f"{out}: lies in {source}, or that in it. Name another folder with -o.")
    if target.is_dir() and any(target.iterdir()):
        records = [*target.glob("summary.json"), *target.glob("fold_*/validation/summary.json")]
        if not records or any("ensemble_of" not in read_dataset_json(path) for path in records):
            raise SamnnError(f"{out}: holds something else than an ensemble. Name another folder with -o.")


def _refuse_other_labels(sources: list[Path]) -> None:
    said = [read_dataset_json(_dataset_json(source)) for source in sources]
    for source, content in zip(sources, said, strict=True):
        for key in ("labels", "regions_class_order"):
            if content.get(key) != said[0].get(key):
                raise SamnnError(f"{source}: its dataset.json has other {key} than {sources[0]}'s.")


def _mean(case: Case, weights: np.ndarray) -> np.ndarray:
    """Σ over methods of weight × probability. weights: (methods, channels) → (channels, z, y, x)."""
    shape = case.grid.shape[::-1]
    total = np.zeros((weights.shape[1], math.prod(shape)), np.float32)
    for path, of_channel in zip(case.files, weights, strict=True):
        for channel, start, p in read_blocks(path):
            if p.min() < -TOLERANCE or p.max() > 1 + TOLERANCE:
                raise SamnnError(
                    f"{path}: holds {p.min():g} to {p.max():g}; probabilities lie between 0 and 1."
                )
            total[channel, start : start + len(p)] += np.float32(of_channel[channel]) * p.astype(np.float32)
    return total.reshape(-1, *shape)


def _label_map(probabilities: np.ndarray, channels: Channels) -> np.ndarray:
    """nnU-Net's rule: the greatest wins; regions write their value where they are above 0.5, later over earlier."""
    if channels.region_values is None:
        return probabilities.argmax(0).astype(np.uint8)
    found = np.zeros(probabilities.shape[1:], np.uint8)
    for p, value in zip(probabilities, channels.region_values, strict=True):
        found[p > 0.5] = value
    return found


def _weights(
    sources: list[Path],
    place: str,
    labels: LabelSet,
    channels: Channels,
    weighting: Weighting,
    crossval: list[Path],
) -> np.ndarray:
    """Weights of shape (methods, channels) that add up to 1 over the methods."""
    equal = np.full((len(sources), channels.n), 1 / len(sources))
    if weighting == "equal":
        return equal
    if place and crossval:
        raise SamnnError(
            "--crossval is for predictions: results folders weigh each fold by their other folds."
        )
    if not place and len(crossval) != len(sources):
        raise SamnnError(
            "Weights per class come from cross-validation, never from the cases that are predicted. Name the results "
            f"folder of each of the {len(sources)} methods with --crossval, in the same order."
        )
    dice = np.array(
        [_dice(folder, place, labels, channels) for folder in (sources if place else crossval)]
    )  # (methods, channels); NaN where there is nothing to weigh by
    total = np.nansum(dice, axis=0)
    usable = ~np.isnan(dice).any(axis=0) & (total > 0)
    return np.where(usable, dice / np.where(usable, total, 1), equal)


def _dice(folder: Path, place: str, labels: LabelSet, channels: Channels) -> list[float]:
    """Mean Dice of each channel over the validation cases of all folds but the one of `place`, as nnU-Net has them."""
    results = find_results(folder)
    others = [v for v in (results.validations if results else []) if _place(v) != place]
    if not others:
        raise SamnnError(f"{folder}: weights per class need the validation of other folds; there are none.")
    rows: list[dict[tuple[int, ...], float]] = []
    for validation in others:
        path = validation / "summary.json"
        try:
            for row in json.loads(path.read_text(encoding="utf-8"))["metric_per_case"]:
                metrics = row["metrics"].items()
                rows.append({tuple(map(int, re.findall(r"\d+", key))): m["Dice"] for key, m in metrics})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SamnnError(f"{path}: is not nnU-Net's summary of the validation ({error}).") from error
    means = []
    for channel in range(channels.n):
        if channels.region_values is None:
            members: tuple[int, ...] = (channel,)
        else:
            members = tuple(labels.classes[list(labels.classes)[channel]])
        found = [row[members] for row in rows if members in row and not math.isnan(row[members])]
        means.append(float(np.mean(found)) if found else math.nan)
    return means


def _cases(sources: list[Path], ending: str, channels: Channels) -> list[Case]:
    """Match the files of all methods by name and place, and check every header."""
    found = [_files(source) for source in sources]
    problems = [
        f"{source}: lacks {place or 'the probabilities of'} {name}.npz, which another method has."
        for source, files in zip(sources, found, strict=True)
        for place, name in sorted(set().union(*found) - files.keys())
    ]
    problems += (
        []
        if found[0]
        else [f"{sources[0]}: holds no .npz. Train and predict with --npz, --save_probabilities."]
    )
    cases = []
    for place, name in sorted(found[0]) if not problems else []:
        files = tuple(of_source[place, name] for of_source in found)
        try:
            grid = read_grid(files[0].with_name(f"{name}{ending}"))
            for path in files:
                label_map = path.with_name(f"{name}{ending}")
                if differences := grid.differences(read_grid(label_map)):
                    raise SamnnError(
                        f"{label_map}: does not lie on the grid of the first method's: {'; '.join(differences)}."
                    )
                check_probabilities(path, grid, channels)
            cases.append(Case(name, place, files, grid))
        except SamnnError as error:
            problems.append(str(error))
    if problems:
        raise Problems("These methods cannot be averaged.", problems)
    return cases


def _files(source: Path) -> dict[tuple[str, str], Path]:
    """(place, case) → its .npz."""
    if not source.is_dir():
        raise SamnnError(f"{source}: no such folder.")
    results = find_results(source)
    plans = (results.folder if results else source) / "plans.json"
    if plans.is_file() and str(read_dataset_json(plans).get("image_reader_writer")).endswith("Reorient"):
        raise SamnnError(
            f"{plans}: its image_reader_writer turns images before prediction, and nnU-Net saves probabilities so turned."
        )
    folders = results.validations if results else [source]
    return {
        (_place(folder) if results else EMPTY, path.name.removesuffix(".npz")): path
        for folder in folders
        for path in folder.glob("*.npz")
    }


def _place(validation: Path) -> str:
    return f"{validation.parent.name}/{validation.name}"


def _dataset_json(source: Path) -> Path:
    results = find_results(source) if source.is_dir() else None
    path = (results.folder if results else source) / "dataset.json"
    if not path.is_file():
        raise SamnnError(
            f"{path}: is missing; it says what the channels mean. nnU-Net writes it beside predictions."
        )
    return path

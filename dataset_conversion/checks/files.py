"""Files and their names: what nnU-Net would not find, take for something else, or leave out without a word."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ._dataset import Case, Dataset, what_is
from ._facts import Data
from ._finding import Finding, Fix, error, warning


def find(data: Data) -> Iterator[Finding]:
    """Missing, superfluous and misnamed files."""
    dataset = data.dataset
    if not dataset.lists_its_files:
        for kind in ("imagesTr", "labelsTr"):
            if not os.path.isdir(dataset.folder / kind) and dataset.description.get("numTraining") != 0:
                yield error(
                    dataset.folder / kind, f"is {what_is(dataset.folder / kind)}", "Make it; nnU-Net stops"
                )
    if dataset.file_ending and not dataset.training:
        yield warning(dataset.folder, "has no training cases", "Fine for prediction; training needs some")
    for path, name in dataset.misnamed:
        rename = Fix(f"is renamed to {name}", partial(_rename, path, name), renames=True)
        yield error(path, f"must be called {name} for nnU-Net to find it", "Rename it", rename)
    for path, why in dataset.strays:
        yield _stray(path, why, dataset.file_ending)
    for case in dataset.cases:
        yield from _incomplete(case, dataset)
    training = {case.name for case in dataset.training}
    for case in dataset.cases:
        if case.test and case.name in training and case.images:
            yield warning(
                next(iter(case.images.values())),
                f"has the name of a training case, {case.name}",
                "If it is the same patient, the test is none; else rename one of them",
            )


def _stray(path: Path, why: str, ending: str) -> Finding:
    twin = path.with_name(f"{path.name}.gz")
    if path.name.endswith(".nii") and os.path.isfile(twin):
        return error(
            path, f"lies beside {twin.name} and would be read in its place", "Move one of the two away"
        )
    seen = path.name.endswith(ending)
    return (error if seen else warning)(path, why, "Rename it, or move it out of this folder")


def _incomplete(case: Case, dataset: Dataset) -> Iterator[Finding]:
    if not case.images:
        yield warning(
            case.labels,
            "has no image, so that nnU-Net leaves the case out",
            "Add the image, or move this away",
        )
        return
    first = case.images[min(case.images)]
    if case.labels is None and not case.test:
        yield error(first, f"has no label map {case.name}{dataset.file_ending}", "Add it to labelsTr")
    for path in case.files:
        if dataset.lists_its_files and not case.test and not os.path.isfile(path):
            yield error(path, f"is {what_is(path)}", "dataset.json names it: add it, or take the case out")
    if dataset.n_channels is None:
        return
    expected, found = set(range(dataset.n_channels)), set(case.images)
    several_in_one = found == {0} and dataset.n_channels > 1  # its voxels decide
    if missing := sorted(expected - found) if not several_in_one else []:
        channels = ", ".join(f"{channel:04d}" for channel in missing)
        yield error(first, f"its case {case.name} lacks channel {channels}", "Add the file; nnU-Net stops")
    for channel in sorted(found - expected):
        yield error(
            case.images[channel],
            f"is channel {channel} of case {case.name}, but dataset.json names {dataset.n_channels}",
            "Move it away, or add the channel to channel_names. Is the number part of the patient's name? "
            "Then append _0000 to it",
        )


def _rename(path: Path, name: str) -> None:
    """Rename without replacing anything."""
    target = path.with_name(name)
    if os.path.lexists(target):
        raise FileExistsError(17, "File exists", str(target))
    os.rename(path, target)

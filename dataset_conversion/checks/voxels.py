"""Voxels: files that cannot be read, images that say nothing, label maps that hold what they should not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from samnn.io import Volume, write_like, write_volume

from ._dataset import Dataset
from ._facts import CaseFacts, Data, Facts
from ._finding import Finding, Fix, error, some, warning
from ._read import nifti_voxels, read_with_itk

HIGHEST = 65535  # nnU-Net writes predictions with 16 bits at most


def find(data: Data) -> Iterator[Finding]:
    """What is wrong with the voxels of single files."""
    for facts in data.cases:
        for channel, image in facts.images.items():
            yield from _image(facts.case.images[channel], image)
        yield from _channel_count(facts, data.dataset)
        if facts.labels:
            yield from _label_map(facts.case.labels, facts.labels, data)


def _image(path: Path, image: Facts) -> Iterator[Finding]:
    if image.unreadable:
        if os.path.isfile(path):  # other things than files are said elsewhere
            yield error(path, image.unreadable, "Copy or export it again, or take its case out")
    elif image.n_nan or image.n_infinite:
        yield error(
            path,
            f"holds {image.n_nan} NaN and {image.n_infinite} infinite voxels",
            "Give them a value that makes sense, such as that of air",
        )
    elif image.is_constant:
        yield warning(path, f"has the value {image.lowest:g} everywhere", "Is it the right file?")


def _channel_count(facts: CaseFacts, dataset: Dataset) -> Iterator[Finding]:
    readable = [image for image in facts.images.values() if not image.unreadable]
    found = sum(image.n_channels for image in readable)
    several_in_one = any(image.n_channels > 1 for image in readable) or len(facts.images) == 1
    if dataset.n_channels and several_in_one and readable and found != dataset.n_channels:
        if found == 1 and set(facts.images) != {0}:
            return  # the number in its name is what is wrong
        path = facts.case.images[min(facts.images)]
        yield error(
            path,
            f"holds {found} channel{'s' if found > 1 else ''}; dataset.json names {dataset.n_channels}",
            "Correct channel_names, or split or complete the image",
        )


def _label_map(path: Path, labels: Facts, data: Data) -> Iterator[Finding]:
    if labels.unreadable:
        if os.path.isfile(path):
            yield error(path, labels.unreadable, "Copy or export it again, or take its case out")
        return
    if labels.n_channels > 1:
        yield error(path, f"has {labels.n_channels} channels", "Store one number a voxel, the class")
        return
    if labels.n_nan or labels.n_infinite:
        yield error(
            path, f"holds {labels.n_nan} NaN and {labels.n_infinite} infinite voxels", "Export it again"
        )
        return
    if labels.broken_values:
        values = ", ".join(f"{value:.9g}" for value in labels.broken_values)
        yield error(
            path, f"holds values that are no whole numbers ({values})", "Was it interpolated? Export it again"
        )
        return
    if labels.too_many_values:
        yield error(path, "holds too many different values for a label map", "Is it an image?")
        return
    known = data.dataset.labels.values if data.dataset.labels else None
    if unknown := sorted(labels.regions.keys() - known) if known else []:
        yield error(
            path,
            f"holds {some([*map(str, unknown)])}; dataset.json knows {some([*map(str, sorted(known))], 20)}",
            "Correct the label map, or add the class to dataset.json",
        )
    if labels.dtype.startswith("float"):
        yield warning(
            path,
            f"stores whole numbers as {labels.dtype}",
            "Harmless for nnU-Net, not for every tool: store integers",
            _as_integers(path, labels, data.dataset),
        )


def _as_integers(path: Path, labels: Facts, dataset: Dataset) -> Fix | None:
    if not 0 <= labels.lowest <= labels.highest <= HIGHEST or not dataset.holds(path):
        return None
    dtype = np.dtype(np.uint8 if labels.highest <= 255 else np.uint16)
    return Fix(f"{labels.dtype} becomes {dtype}", partial(_rewrite, path, dtype))


def _rewrite(path: Path, dtype: np.dtype) -> None:
    if path.name.endswith((".nii", ".nii.gz")):
        write_like(path, nifti_voxels(path).astype(dtype), like=path)
    else:
        picture = read_with_itk(path)
        write_volume(path, Volume(picture.voxels.astype(dtype), picture.grid))

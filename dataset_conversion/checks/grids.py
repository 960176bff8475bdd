"""Grids: mask and channels must lie where the image lies; noise in headers is told from a real shift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nibabel
import numpy as np

from samnn.geometry import Grid
from samnn.io import Volume, write_like, write_volume

from ._dataset import Dataset
from ._facts import CaseFacts, Data
from ._finding import Finding, Fix, error, some, warning
from ._read import nifti_voxels, read_with_itk

NOISE_VOXELS = 0.1  # the most, in voxels, by which rounded headers may move any corner
MOST_STEP = 4.0  # a spacing so many times the median, or its inverse, is an outlier
FEW = 0.2  # an orientation or a number of axes that at most this part of the cases has is an outlier
LEAST_CASES = 5


def find(data: Data) -> Iterator[Finding]:
    """Files of a case that do not lie on each other, and cases that are unlike all others."""
    for facts in data.cases:
        yield from _within(facts, data.dataset)
    images = [facts for facts in data.cases if facts.image]
    yield from _odd_ones(images, "axes", lambda facts: str(facts.image.grid.n_dims), always_wrong=True)
    volumes = [facts for facts in images if facts.image.grid.n_dims == 3]
    if not str(data.dataset.description.get("overwrite_image_reader_writer")).endswith("WithReorient"):
        yield from _odd_ones(
            volumes, "orientation", lambda facts: orientation(facts.image.grid), always_wrong=False
        )
    yield from _odd_spacings(volumes)


def orientation(grid: Grid) -> str:
    """Where the array axes of a 3D grid point to: "RAS" for right, front and head, as nibabel says it."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ np.reshape(grid.direction, (3, 3)) * grid.spacing_mm
    return "".join(code or "?" for code in nibabel.aff2axcodes(affine))


def _within(facts: CaseFacts, dataset: Dataset) -> Iterator[Finding]:
    """Every file of a case against its first channel."""
    if facts.image is None:
        return
    first = facts.case.images[min(facts.images)]
    others = [(facts.case.images[channel], image) for channel, image in facts.images.items()]
    for path, other in [*others, (facts.case.labels, facts.labels)]:
        if path is None or path == first or other.unreadable:
            continue
        image, grid = facts.image.grid, other.grid
        differences = image.differences(grid)
        stops = image.shape == grid.shape and not np.allclose(grid.spacing_mm, image.spacing_mm)
        if not differences and not stops:
            continue
        words = "; ".join(differences or [f"spacing {image.spacing_mm} mm against {grid.spacing_mm} mm"])
        if _is_noise(image, grid):
            yield (error if stops else warning)(
                path,
                f"its header differs from that of {first.name} by less than {NOISE_VOXELS:g} voxels: {words}",
                "Give it the header of the image",
                _take_header(path, first, dataset),
            )
        else:
            yield error(
                path,
                f"does not lie on the grid of {first.name} ({words})",
                "Find out which header is right; a mask of another grid must be resampled (`samnn convert pairs`)",
            )


def _is_noise(image: Grid, grid: Grid) -> bool:
    return not image.differences(grid, tolerance_mm=NOISE_VOXELS * min(image.spacing_mm))


def _take_header(path: Path, image: Path, dataset: Dataset) -> Fix | None:
    if not dataset.holds(path) or not path.name.endswith((".nii", ".nii.gz", ".nrrd", ".mha")):
        return None
    return Fix(f"takes the header of {image.name}", partial(_rewrite, path, image))


def _rewrite(path: Path, image: Path) -> None:
    if path.name.endswith((".nii", ".nii.gz")):
        write_like(path, nifti_voxels(path), like=image)
    else:
        write_volume(path, Volume(read_with_itk(path).voxels, read_with_itk(image).grid))


def _odd_ones(
    cases: list[CaseFacts], what: str, value_of: Callable[[CaseFacts], str], *, always_wrong: bool
) -> Iterator[Finding]:
    """Cases of which a property differs from that of nearly all others; one finding if there is no rule."""
    found = Counter(value_of(facts) for facts in cases)
    if len(found) < 2:
        return
    usual, n_usual = found.most_common(1)[0]
    if n_usual < (1 - FEW) * len(cases):
        counts = ", ".join(f"{count} × {value}" for value, count in found.most_common())
        folder = next(iter(cases[0].case.images.values())).parent
        yield (error if always_wrong else warning)(
            folder,
            f"the {what} of its images are mixed: {counts}",
            "nnU-Net takes array axes as they are: bring all images to one",
        )
        return
    for facts in cases:
        if value_of(facts) != usual:
            yield (error if always_wrong else warning)(
                facts.case.images[min(facts.images)],
                f"{what}: {value_of(facts)}, while {n_usual} of {len(cases)} images have {usual}",
                "nnU-Net takes array axes as they are: bring all images to one",
            )


def _odd_spacings(cases: list[CaseFacts]) -> Iterator[Finding]:
    if len(cases) < LEAST_CASES:
        return
    spacings_mm = np.array([facts.image.grid.spacing_mm for facts in cases])
    ratios = spacings_mm / np.median(spacings_mm, axis=0)
    for facts, ratio, spacing_mm in zip(cases, ratios, spacings_mm, strict=True):
        if (ratio > MOST_STEP).any() or (ratio < 1 / MOST_STEP).any():
            usual = some([f"{step:.3g}" for step in np.median(spacings_mm, axis=0)])
            yield warning(
                facts.case.images[min(facts.images)],
                f"its spacing is {some([f'{step:.3g}' for step in spacing_mm])} mm; the median is {usual} mm",
                "Is its header right?",
            )

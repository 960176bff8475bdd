"""Facts: what is kept of a file once it was decoded, small enough to hold those of all cases in memory."""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from samnn.errors import SamnnError
from samnn.geometry import Grid

from ._dataset import Case, Dataset, what_is
from ._read import Picture, Reader

RANKED_VOXELS = 1_000_000  # of an image are enough to rank its voxels by
MOST_VALUES = 1000  # more different values than this: an image, not a label map


@dataclass(frozen=True)
class Region:
    """The voxels of one value in a label map."""

    n_voxels: int
    centroid_mm: tuple[float, ...]  # world axes as in ITK: +x is the patient's left
    brightness: (
        tuple[float, float] | None
    )  # mean and standard deviation of the ranks of its voxels in the image


@dataclass(frozen=True)
class Facts:
    """One file. `unreadable` says why there are no further facts."""

    unreadable: str = ""
    grid: Grid | None = None
    n_channels: int = 1
    dtype: str = ""
    n_nan: int = 0
    n_infinite: int = 0
    lowest: float = 0.0
    highest: float = 0.0
    digest: str = ""  # of the shape and each slab's CRC-32, as float32: that is how nnU-Net reads voxels
    regions: dict[int, Region] = field(default_factory=dict)  # of a label map, by value; 0 is left out
    broken_values: tuple[float, ...] = ()  # a few values of a label map that are not whole numbers
    too_many_values: bool = False

    @property
    def is_constant(self) -> bool:
        return self.lowest == self.highest

    def volume(self, value: int) -> float:
        """Volume of a region in ml, or its area in mm² in a 2D image."""
        in_mm = self.regions[value].n_voxels * float(np.prod(self.grid.spacing_mm))
        return in_mm / 1000 if self.grid.n_dims == 3 else in_mm


@dataclass(frozen=True)
class CaseFacts:
    """The facts of one case's files."""

    case: Case
    images: dict[int, Facts]
    labels: Facts | None

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def regions(self) -> dict[int, Region]:
        return self.labels.regions if self.labels else {}

    @property
    def image(self) -> Facts | None:
        """The facts of the first channel, if it could be read."""
        first = self.images.get(min(self.images, default=0))
        return first if first and not first.unreadable else None


@dataclass(frozen=True)
class Data:
    """All that a check may look at."""

    dataset: Dataset
    cases: list[CaseFacts]

    def with_labels(self) -> Iterator[CaseFacts]:
        """The cases whose label map could be read."""
        return (facts for facts in self.cases if facts.labels and not facts.labels.unreadable)

    @cached_property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """Class names and their values; the values found where dataset.json does not say them."""
        if self.dataset.labels is not None:
            return self.dataset.labels.classes
        found = {value for facts in self.with_labels() for value in facts.regions}
        return {str(value): (value,) for value in sorted(found)}


def measure(case: Case, reader: Reader) -> CaseFacts:
    """Decode each file of a case once, one after the other; the first image is held until the label map is done."""
    first: Picture | None = None
    images = {}
    for channel, path in sorted(case.images.items()):
        images[channel], picture = _facts(path, reader)
        if channel == min(case.images) and not images[channel].n_nan + images[channel].n_infinite:
            first = picture
    labels = _facts(case.labels, reader, is_labels=True, image=first)[0] if case.labels else None
    return CaseFacts(case, images, labels)


def _facts(
    path: Path, reader: Reader, *, is_labels: bool = False, image: Picture | None = None
) -> tuple[Facts, Picture | None]:
    if not os.path.isfile(path):
        return Facts(unreadable=f"is {what_is(path)}"), None
    try:
        picture = reader(path)
        return _look_through(picture, is_labels=is_labels, image=image), picture
    except SamnnError as problem:
        words = str(problem).removeprefix(f"{path}: ").rstrip(".")
    except MemoryError:
        words = "does not fit into memory"
    except Exception as problem:  # readers raise what they like on damaged files
        words = f"cannot be read ({(' '.join(str(problem).split()) or type(problem).__name__)[:200]})"
    return Facts(unreadable=words), None


def _look_through(picture: Picture, *, is_labels: bool, image: Picture | None) -> Facts:
    """Everything in one pass over slabs of the last spatial axis, so that little more than the voxels is held."""
    voxels, grid = picture.voxels, picture.grid
    if voxels.dtype.kind not in "biuf" or not voxels.size:
        raise SamnnError(f"holds {voxels.size} voxels of type {voxels.dtype}; expected real numbers")
    n_channels = voxels.shape[grid.n_dims] if voxels.ndim > grid.n_dims else 1
    digest = hashlib.blake2b(repr(voxels.shape).encode(), digest_size=16)
    n_nan = n_infinite = 0
    lowest, highest = np.inf, -np.inf
    sums = _RegionSums(grid, image) if is_labels and n_channels == 1 else None
    for index in range(grid.shape[-1]):
        slab = voxels[(slice(None),) * (grid.n_dims - 1) + (index,)]
        with np.errstate(over="ignore"):
            numbers = np.asfortranarray(slab, np.float32)
        digest.update(zlib.crc32(numbers.tobytes(order="F")).to_bytes(4, "little"))
        if slab.dtype.kind == "f":
            finite = np.isfinite(numbers)
            n_nan += int(np.isnan(numbers).sum())
            n_infinite += int(np.isinf(numbers).sum())
            numbers = numbers[finite]
        if numbers.size:
            lowest, highest = min(lowest, float(numbers.min())), max(highest, float(numbers.max()))
        if sums is not None and not n_nan and not n_infinite:
            sums.add(slab, index)
    return Facts(
        grid=grid,
        n_channels=n_channels,
        dtype=voxels.dtype.name,
        n_nan=n_nan,
        n_infinite=n_infinite,
        lowest=lowest,
        highest=highest,
        digest=digest.hexdigest(),
        regions=sums.regions() if sums and not n_nan and not n_infinite else {},
        broken_values=tuple(sorted(sums.broken)[:5]) if sums else (),
        too_many_values=sums is not None and sums.too_many,
    )


class _RegionSums:
    """Voxel counts and sums of indices by value, gathered slab by slab."""

    def __init__(self, grid: Grid, image: Picture | None) -> None:
        self.grid = grid
        self.ranks = _Ranks(image) if image is not None and image.voxels.shape == grid.shape else None
        self.broken: set[float] = set()
        self.too_many = False
        self._sums: dict[int, np.ndarray] = {}  # value → sums of ranks, their squares, voxels, each index

    def add(self, slab: np.ndarray, index: int) -> None:
        """Add the voxels of a slab, the last axis of which is left out, at `index` of that axis."""
        where = np.nonzero(slab)
        numbers = slab[where]
        if numbers.dtype.kind == "f":
            numbers = numbers.astype(np.float32)  # what nnU-Net sees
        values, which = np.unique(numbers, return_inverse=True)
        self.broken |= {float(value) for value in values[values != np.rint(values)][:5]}
        self.too_many |= len(self._sums.keys() | {*values.tolist()}) > MOST_VALUES
        if self.broken or self.too_many:
            return
        n_voxels = np.bincount(which, minlength=len(values))
        along = [np.bincount(which, weights=indices, minlength=len(values)) for indices in where]
        ranks = self.ranks.of(index, where) if self.ranks else np.zeros(len(which))
        moments = [np.bincount(which, weights=ranks**power, minlength=len(values)) for power in (1, 2)]
        for value, *sums in zip(values.tolist(), *moments, n_voxels, *along, n_voxels * index, strict=True):
            self._sums[int(value)] = self._sums.get(int(value), 0) + np.asarray(sums, float)

    def regions(self) -> dict[int, Region]:
        if self.broken or self.too_many:
            return {}
        n = self.grid.n_dims
        matrix = np.reshape(self.grid.direction, (n, n)) * np.asarray(self.grid.spacing_mm)
        regions = {}
        for value, (ranks, squares, n_voxels, *index_sums) in sorted(self._sums.items()):
            centroid_mm = np.asarray(self.grid.origin_mm) + matrix @ (np.asarray(index_sums) / n_voxels)
            mean, variance = ranks / n_voxels, squares / n_voxels - (ranks / n_voxels) ** 2
            brightness = (mean, max(variance, 0.0) ** 0.5) if self.ranks else None
            regions[value] = Region(int(n_voxels), tuple(centroid_mm.tolist()), brightness)
        return regions


class _Ranks:
    """The rank of a voxel in its image: the part of all voxels, 0 to 1, that are darker."""

    def __init__(self, image: Picture) -> None:
        self.image = image
        every = max(1, math.ceil((image.voxels.size / RANKED_VOXELS) ** (1 / image.voxels.ndim)))
        sample = image.voxels[(slice(None, None, every),) * image.voxels.ndim]
        self.quantiles = np.quantile(sample, np.linspace(0, 1, 257))

    def of(self, index: int, where: tuple[np.ndarray, ...]) -> np.ndarray:
        """The ranks at the places `where` of the slab at `index` of the last axis."""
        return np.searchsorted(self.quantiles, self.image.voxels[(*where, index)]) / len(self.quantiles)

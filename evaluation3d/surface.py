"""Distances between the surfaces of two masks, from each surface element to the nearest one of the other mask."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.spatial import cKDTree

from .surfels import surfel_sizes

Definition = Literal["surfel", "voxel"]
DEFINITIONS: dict[Definition, str] = {
    "surfel": "surfel-weighted, DeepMind surface-distance",
    "voxel": "border voxels, medpy",
}

Masks = Callable[[slice], tuple[np.ndarray, np.ndarray]]

VOXELS_A_SLAB = 1 << 20  # few enough to stay in the processor's cache
LEAF_POINTS = 32
REACH = 3  # in the finest spacing: nearer elements are found by looking around, the others in a tree


@dataclass(frozen=True)
class SurfaceDistances:
    """For each surface element of one mask the distance to the nearest surface element of the other mask.

    surfel: the definition of DeepMind's `surface-distance` (Nikolov et al. 2018, arXiv:1809.04430). A surface
    element (surfel) sits at each corner shared by 2×2×2 voxels that are not all in or all out of the mask, and has
    the area of the marching-cubes patch there. In 2D: contour elements and their lengths in mm.

    voxel: the definition of `medpy`. A surface element is the centre of a voxel of the mask that has a neighbour
    across one of its six faces (in 2D: four sides) outside of the mask; each counts as one.

    Outside of the image is outside of the mask.
    """

    reference_to_prediction_mm: np.ndarray
    reference_sizes: np.ndarray  # mm² (2D: mm); for "voxel" ones
    prediction_to_reference_mm: np.ndarray
    prediction_sizes: np.ndarray


def surface_distances(
    masks: Masks, shape: tuple[int, ...], *, spacing_mm: tuple[float, ...], definition: Definition = "surfel"
) -> SurfaceDistances:
    """Measure both directions between two masks, 2D or 3D, neither of them empty.

    `masks(planes)` gives both masks, boolean, in a slice of planes along the first axis: whole masks are never held.
    """
    elements = _elements(masks, shape, spacing_mm, definition)
    points_mm = [
        np.stack([at * mm for at, mm in zip(found.places, spacing_mm, strict=True)], 1) for found in elements
    ]
    for own, other in ((0, 1), (1, 0)):
        far = np.flatnonzero(np.isnan(elements[own].distances_mm))
        if not len(far):
            continue
        tree = cKDTree(points_mm[other], LEAF_POINTS, compact_nodes=False, balanced_tree=False)
        nearest = tree.query(points_mm[own][far])[1]
        # Anew from whole steps: points_mm are rounded, and a distance can be meant to equal the tolerance of NSD.
        squares_mm2 = [
            ((mine[far] - theirs[nearest]) * mm) ** 2
            for mine, theirs, mm in zip(elements[own].places, elements[other].places, spacing_mm, strict=True)
        ]
        elements[own].distances_mm[far] = np.sqrt(sum(squares_mm2))
    there, back = elements
    return SurfaceDistances(there.distances_mm, there.sizes, back.distances_mm, back.sizes)


@dataclass(frozen=True)
class _Elements:
    """The surface elements of one mask: places along each axis, sizes, and distances to the other's; NaN: not near."""

    places: list[np.ndarray]
    sizes: np.ndarray
    distances_mm: np.ndarray


def _elements(
    masks: Masks, shape: tuple[int, ...], spacing_mm: tuple[float, ...], definition: Definition
) -> tuple[_Elements, _Elements]:
    find = {"surfel": _neighbourhoods, "voxel": _border_voxels}[definition]
    size_of = surfel_sizes(spacing_mm) if definition == "surfel" else np.ones(2)
    parts: tuple[list[_Elements], list[_Elements]] = ([], [])
    n_planes = max(1, VOXELS_A_SLAB // math.prod(shape[1:]))
    for start in range(0, shape[0] + 1, n_planes):  # there is one more plane of corners than of voxels
        stop = min(start + n_planes, shape[0] + 1)
        within = slice(max(start - 1, 0), min(stop + 1, shape[0]))
        here = masks(within)
        box = _box(here[0] | here[1])
        if box is None:
            continue
        slab = np.zeros((2, stop - start + 2, *(side.stop - side.start + 2 for side in box)), np.uint8)
        planes = slice(within.start - (start - 1), within.stop - (start - 1))
        for padded, mask in zip(slab, here, strict=True):
            padded[(planes, *(slice(1, -1) for _ in box))] = mask[(slice(None), *box)]
        kinds = [find(padded) for padded in slab]
        for own, other in ((0, 1), (1, 0)):
            flat = np.flatnonzero(kinds[own] != 0)
            places = list(np.unravel_index(flat, kinds[own].shape))
            sizes = size_of[kinds[own].ravel()[flat]]
            is_open = (start > 0, stop <= shape[0])
            distances_mm = _near_mm(places, kinds[other] != 0, spacing_mm, is_open)
            for axis, first in enumerate((start, *(side.start for side in box))):
                places[axis] = places[axis] + first
            parts[own].append(_Elements(places, sizes, distances_mm))
    return _joined(parts[0]), _joined(parts[1])


def _near_mm(
    places: list[np.ndarray], other: np.ndarray, spacing_mm: tuple[float, ...], is_open: tuple[bool, bool]
) -> np.ndarray:
    """Distances to the nearest element of the other mask where it is only a few steps away; NaN elsewhere.

    `other` is True where it has an element; beyond its ends there is none, except where the first axis `is_open`.
    """
    reach_mm = REACH * min(spacing_mm)
    margins = [math.ceil(reach_mm / mm) - 1 for mm in spacing_mm]
    around = np.pad(other, [(margin, margin) for margin in margins])
    place = np.ravel_multi_index(
        [at + margin for at, margin in zip(places, margins, strict=True)], around.shape
    )
    is_element = around.ravel()
    found_mm = np.full(len(place), np.nan)
    found_mm[is_element[place]] = 0
    is_left = np.isnan(found_mm)
    if is_open[0]:
        is_left &= places[0] >= margins[0]
    if is_open[1]:
        is_left &= places[0] < other.shape[0] - margins[0]
    left = np.flatnonzero(is_left)
    for distance_mm, steps in _steps(spacing_mm, reach_mm, margins):
        jump = sum(step * stride for step, stride in zip(steps, around.strides, strict=True))
        is_hit = is_element[place[left] + jump]
        found_mm[left[is_hit]] = distance_mm
        left = left[~is_hit]
    return found_mm


def _steps(
    spacing_mm: tuple[float, ...], reach_mm: float, margins: list[int]
) -> list[tuple[float, tuple[int, ...]]]:
    """Every way to step from a place to another less than `reach_mm` away, the shortest first."""
    ways = itertools.product(*(range(-margin, margin + 1) for margin in margins))
    found = [
        (math.sqrt(sum((n * mm) ** 2 for n, mm in zip(way, spacing_mm, strict=True))), way) for way in ways
    ]
    return sorted((distance_mm, way) for distance_mm, way in found if 0 < distance_mm < reach_mm)


def _box(inside: np.ndarray) -> tuple[slice, ...] | None:
    """Find the box, the same in all planes, around everything inside; None where there is nothing."""
    plane = np.bitwise_or.reduce(inside, axis=0)
    box = []
    for axis in range(plane.ndim):
        where = np.flatnonzero(plane.any(axis=tuple(other for other in range(plane.ndim) if other != axis)))
        if not len(where):
            return None
        box.append(slice(int(where[0]), int(where[-1]) + 1))
    return tuple(box)


def _joined(parts: list[_Elements]) -> _Elements:
    return _Elements(
        [np.concatenate(along_axis) for along_axis in zip(*(part.places for part in parts), strict=True)],
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.distances_mm for part in parts]),
    )


def _neighbourhoods(padded: np.ndarray) -> np.ndarray:
    """Give each corner the code of its voxels, see `surfel_sizes`; 0 where all of them are inside."""
    codes = padded[:-1]  # the last plane only serves border voxels
    for axis in range(codes.ndim):
        before = codes[(slice(None),) * axis + (slice(None, -1),)]
        after = codes[(slice(None),) * axis + (slice(1, None),)]
        codes = after << (1 << axis)
        codes |= before
    codes *= codes != 2 ** (2**codes.ndim) - 1
    return codes


def _border_voxels(padded: np.ndarray) -> np.ndarray:
    """Give 1 to each voxel with a neighbour across a face that is outside."""
    core = (slice(1, -1),) * padded.ndim
    surrounded = np.ones_like(padded[core])
    for axis in range(padded.ndim):
        for side in (slice(None, -2), slice(2, None)):
            surrounded &= padded[(*core[:axis], side, *core[axis + 1 :])]
    return padded[core] & ~surrounded

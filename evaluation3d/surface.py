"""Distances between the surfaces of two masks, from each surface element to the nearest one of the other mask."""

from __future__ import annotations

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
    distances_mm = []
    for own, other in ((0, 1), (1, 0)):
        tree = cKDTree(points_mm[other], LEAF_POINTS, compact_nodes=False, balanced_tree=False)
        away = np.flatnonzero(~elements[own].is_common)
        nearest = tree.query(points_mm[own][away])[1]
        # Anew from whole steps: points_mm are rounded, and a distance can be meant to equal the tolerance of NSD.
        squares_mm2 = [
            ((mine[away] - theirs[nearest]) * mm) ** 2
            for mine, theirs, mm in zip(elements[own].places, elements[other].places, spacing_mm, strict=True)
        ]
        found_mm = np.zeros(len(points_mm[own]))
        found_mm[away] = np.sqrt(sum(squares_mm2))
        distances_mm.append(found_mm)
    return SurfaceDistances(distances_mm[0], elements[0].sizes, distances_mm[1], elements[1].sizes)


@dataclass(frozen=True)
class _Elements:
    """The surface elements of one mask: their places along each axis, their sizes, which are the other mask's as well."""

    places: list[np.ndarray]
    sizes: np.ndarray
    is_common: np.ndarray


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
            places = np.unravel_index(flat, kinds[own].shape)
            places = [
                at + first for at, first in zip(places, (start, *(side.start for side in box)), strict=True)
            ]
            sizes = size_of[kinds[own].ravel()[flat]]
            parts[own].append(_Elements(places, sizes, kinds[other].ravel()[flat] != 0))
    return _joined(parts[0]), _joined(parts[1])


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
        np.concatenate([part.is_common for part in parts]),
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

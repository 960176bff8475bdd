"""Areas of surface elements: how much surface lies at a corner, for each way to fill the voxels around it.

A corner is shared by 2×2×2 voxels (2×2 in a plane), of which some are in the mask. Marching cubes joins the voxels'
centres to a cell around the corner and cuts every edge between a voxel inside and one outside in the middle; the
cuts of a face are joined to lines, the lines of all faces close to polygons, and the polygons are the surface.

Two things are not settled by that, and are chosen as in the table of DeepMind's `surface-distance`:

* A face with two voxels inside and two outside across its diagonals: the colour that is rarer in the cell is cut off
  from itself.
* Polygons of five and six points need not be flat: of all ways to fill them with triangles the one that has the
  largest area on cubic voxels is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np

Point = tuple[int, ...]  # in half voxels: centres of voxels at 0 and 2, the cuts between them at 1


def surfel_sizes(spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Area in mm² (in two dimensions the length in mm) for each code of a neighbourhood.

    Bit b of a code says whether the voxel is inside whose place along axis i is bit i of b.
    """
    if len(spacing_mm) == 2:
        return np.array([_contour_length(code, spacing_mm) for code in range(16)])
    x, y, z = spacing_mm
    return np.linalg.norm(_triangles() * (y * z, x * z, x * y), axis=2).sum(axis=1)


def _contour_length(code: int, spacing_mm: tuple[float, ...]) -> float:
    lines = _lines(code, n_dims=2, cut_off=True)
    return sum(
        math.hypot(*((b - a) / 2 * mm for a, b, mm in zip(*line, spacing_mm, strict=True))) for line in lines
    )


@cache
def _triangles() -> np.ndarray:
    """For each code the area vectors of its at most four triangles, in faces of a voxel: shape (256, 4, 3)."""
    found = np.zeros((256, 4, 3))
    for code in range(1, 255):
        polygons = _polygons(_lines(code, n_dims=3, cut_off=code.bit_count() <= 4))
        areas = [area for polygon in polygons for area in max(_fillings(polygon), key=_total)]
        found[code, : len(areas)] = np.array(areas) / 8
    return found


def _lines(code: int, *, n_dims: int, cut_off: bool) -> list[tuple[Point, Point]]:
    """The lines in which the surface meets the faces of the cell; `cut_off`: the inside on ambiguous faces."""
    lines = []
    for axis, place in product(range(n_dims), (0, 2)) if n_dims == 3 else [(None, None)]:
        around = []  # the four voxels of the face, in a ring
        for u, v in ((0, 0), (0, 2), (2, 2), (2, 0)):
            point = [u, v]
            if axis is not None:
                point.insert(axis, place)
            around.append(tuple(point))
        inside = [bool(code >> sum((at // 2) << i for i, at in enumerate(point)) & 1) for point in around]
        cuts = [tuple((a + b) // 2 for a, b in zip(around[i - 1], around[i], strict=True)) for i in range(4)]
        cut = [i for i in range(4) if inside[i - 1] != inside[i]]
        if len(cut) == 2:
            lines.append((cuts[cut[0]], cuts[cut[1]]))
        elif len(cut) == 4:  # around each voxel that is cut off: the cut before it to the cut after it
            lines += [(cuts[i], cuts[(i + 1) % 4]) for i in range(4) if inside[i] == cut_off]
    return lines


def _polygons(lines: list[tuple[Point, Point]]) -> Iterator[list[Point]]:
    """Join lines to closed polygons."""
    left = list(lines)
    while left:
        polygon = list(left.pop())
        while polygon[-1] != polygon[0]:
            following = next(line for line in left if polygon[-1] in line)
            left.remove(following)
            polygon.append(following[following[0] == polygon[-1]])
        yield polygon[:-1]


def _fillings(polygon: list[Point]) -> Iterator[list[Point]]:
    """Every way to fill a polygon with triangles, as their area vectors (in eighths of a voxel face)."""
    if len(polygon) < 3:
        yield []
        return
    first, *middle, last = polygon
    for k in range(len(middle)):  # the triangle on the line from first to last
        for before, after in product(_fillings(polygon[: k + 2]), _fillings(polygon[k + 1 :])):
            yield [_cross(first, middle[k], last), *before, *after]


def _cross(a: Point, b: Point, c: Point) -> Point:
    u, v = [[q - p for p, q in zip(a, end, strict=True)] for end in (b, c)]
    return (u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0])


def _total(areas: list[Point]) -> float:
    return sum(math.hypot(*area) for area in areas)

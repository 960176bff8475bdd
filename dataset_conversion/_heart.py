"""The displaced heart of the SegTHOR course copy: how it was moved, how to move it back, how to tell.

Arrays are in (x, y, z) order; the map lives on voxel indices, spacing plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import affine_transform

from samnn.geometry import Grid

GRID = 512  # the constants below belong to 512 x 512 slices
SHIFT = (50, 40, 15)
ANGLE_DEG = -27
CENTRE = (275, 200, 0)

LUNG_BELOW_HU = -300  # midway between the fat around a heart (-100) and lung (-500 and less)
MOST_LUNG_IN_A_HEART = 0.10
MOST_OUTSIDE = 0.01
LEAST_GAP = 0.03
LEAST_LEFT = 0.90  # a real heart keeps 99 % of its voxels; nearest neighbour can erase one of a few voxels


def displacement(shape: tuple[int, ...]) -> np.ndarray:
    """The 4 x 4 map A = C · R · C⁻¹ · T from a voxel of the displaced heart to where it was read.

    On slices that are not 512 x 512 the x and y constants are scaled with them, the z shift is not: SegTHOR always
    has 512 x 512, samnn's phantom fewer.
    """
    shift, rotation, centre = np.eye(4), np.eye(4), np.eye(4)
    shift[:3, 3] = SHIFT
    cos, sin = np.cos(np.deg2rad(ANGLE_DEG)), np.sin(np.deg2rad(ANGLE_DEG))
    rotation[:2, :2] = [[cos, -sin], [sin, cos]]
    centre[:3, 3] = CENTRE
    scale = np.diag([shape[0] / GRID, shape[1] / GRID, 1, 1])
    return scale @ centre @ rotation @ np.linalg.inv(centre) @ shift @ np.linalg.inv(scale)


def displace(heart: np.ndarray) -> np.ndarray:
    """Move a heart mask as the course copy did."""
    return _resample(heart, displacement(heart.shape))


def move_back(heart: np.ndarray) -> np.ndarray:
    """Move a displaced heart mask back. Nearest neighbour twice leaves about 0.5 % of a heart's voxels wrong."""
    return _resample(heart, np.linalg.inv(displacement(heart.shape)))


def outside(heart: np.ndarray) -> float:
    """Fraction of a mask that would leave the volume if it were moved back; zero for one that was moved here."""
    box = _box(heart)
    voxels = np.argwhere(heart[box]) + [side.start for side in box]
    matrix = displacement(heart.shape)
    sources = np.rint(voxels @ matrix[:3, :3].T + matrix[:3, 3])
    return float(((sources < 0) | (sources >= heart.shape)).any(axis=1).mean())


def left(heart: np.ndarray) -> float:
    """Voxels of a mask after moving it back, as a fraction of those before."""
    return np.count_nonzero(move_back(heart)) / np.count_nonzero(heart)


@dataclass(frozen=True)
class Verdict:
    """What the image says about a heart: `repair`, `keep`, or None where it does not say."""

    choice: str | None
    reason: str
    can_be_repaired: bool = True


def judge(image_hu: np.ndarray, heart: np.ndarray) -> Verdict:
    """Decide from the image whether `heart` was displaced: a heart is muscle and blood, not lung or air.

    Compared is the fraction of the mask in lung or air, where it is and where it would be if moved back.
    """
    lost = outside(heart)
    if lost > MOST_OUTSIDE:
        return Verdict("keep", f"moved back, {lost:.0%} would leave the volume: not displaced")
    if left(heart) < LEAST_LEFT:
        reason = f"moved back, {left(heart):.0%} of its {np.count_nonzero(heart)} voxels would be left"
        return Verdict(None, reason, can_be_repaired=False)
    as_is, moved_back = (
        float((image_hu[mask.astype(bool)] < LUNG_BELOW_HU).mean()) for mask in (heart, move_back(heart))
    )
    reason = f"{as_is:.1%} in lung as labelled, {moved_back:.1%} moved back"
    if min(as_is, moved_back) > MOST_LUNG_IN_A_HEART or abs(as_is - moved_back) < LEAST_GAP:
        return Verdict(None, reason)
    return Verdict("keep" if as_is < moved_back else "repair", reason)


def touches_border(mask: np.ndarray) -> bool:
    """Whether a mask reaches the first or last voxel of an axis, so that part of it may have been cut off."""
    return any(
        side.start == 0 or side.stop == size for side, size in zip(_box(mask), mask.shape, strict=True)
    )


def agreement(reference: np.ndarray, heart: np.ndarray, grid: Grid) -> tuple[float, float]:
    """IoU of two masks on `grid` and the distance of their centroids in mm."""
    reference, heart = reference.astype(bool), heart.astype(bool)
    iou = float((reference & heart).sum() / (reference | heart).sum())
    centroids = [np.argwhere(mask).mean(axis=0) for mask in (reference, heart)]
    return iou, float(np.linalg.norm((centroids[0] - centroids[1]) * grid.spacing_mm))


def _resample(mask: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`affine_transform(mask, matrix, order=0)`, computed only where the result can be other than zero."""
    result = np.zeros(mask.shape, np.uint8)
    box = _box(mask)
    corners = np.stack(np.meshgrid(*[(side.start, side.stop - 1) for side in box]), axis=-1).reshape(-1, 3)
    inverse = np.linalg.inv(matrix)
    reached = corners @ inverse[:3, :3].T + inverse[:3, 3]
    low = np.clip(np.floor(reached.min(axis=0)).astype(int) - 1, 0, mask.shape)
    high = np.clip(np.ceil(reached.max(axis=0)).astype(int) + 2, 0, mask.shape)
    if (high > low).all():
        linear, offset = matrix[:3, :3], matrix[:3, :3] @ low + matrix[:3, 3]
        result[tuple(map(slice, low, high))] = affine_transform(
            mask.astype(np.uint8), linear, offset, output_shape=tuple(high - low), order=0
        )
    return result


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around a mask that is not empty."""
    sides = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        sides.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(sides)

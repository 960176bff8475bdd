"""A made-up thorax: CT volumes with lungs, spine and the four SegTHOR organs, for trying the whole chain.

Anatomy is written in millimetres of an average patient: x to the left, y to the back, z upwards, the origin in the
middle of the chest. Each patient is a seeded variation of it, so that the same seed gives the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter

from samnn.atomic import whole_file

SHAPE = (96, 96, 50)
SPACING_MM = (3.4, 3.4, 4.2)
CENTRE_MM = (0, 0, -28)  # of the volume; a displaced heart goes down by 15 slices and must stay inside
ESOPHAGUS, HEART, TRACHEA, AORTA = 1, 2, 3, 4

# Centre lines in mm, from below upwards; the aorta runs up before the spine, over the arch and down to the heart.
AORTA_COURSE = [(19, 43, -130), (18, 42, 28), (12, 26, 54), (0, 0, 62), (-12, -24, 48), (-10, -28, 18)]
TRACHEA_COURSE = [(-2, 20, 30), (-2, 8, 130)]
ESOPHAGUS_COURSE = [(20, 18, -130), (6, 34, -50), (2, 36, 10), (5, 38, 60), (4, 29, 130)]

Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y and z of every voxel
Displace = Callable[[np.ndarray], np.ndarray]


def write_segthor(
    folder: Path, *, displace: Displace, n_training: int = 5, n_test: int = 2, seed: int = 0
) -> None:
    """Write patients in SegTHOR layout, the hearts of the training patients moved by `displace`.

    `displace` takes and returns a mask in (x, y, z) order. The first patient also gets a GT2.nii.gz with its true
    heart. Test patients are folders with a true GT.nii.gz, so that predictions can be evaluated.
    """
    for number in range(1, n_training + n_test + 1):
        is_test = number > n_training
        name = f"Patient_{number:02d}"
        patient = folder / ("test" if is_test else "train") / name
        patient.mkdir(parents=True, exist_ok=True)
        image, labels = thorax(seed * 1000 + number)
        _save(patient / f"{name}.nii.gz", image)
        if number == 1:
            _save(patient / "GT2.nii.gz", labels)
        _save(patient / "GT.nii.gz", labels if is_test else _with_heart_moved(labels, displace))


def thorax(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One patient: image in HU (int16) and labels (uint8), both of `SHAPE`."""
    rng = np.random.default_rng(seed)
    points = x, y, z = _coordinates(rng)
    image = np.full(SHAPE, -1000, np.float32)
    skin, chest = _oval(x, y, 148, 102), _oval(x, y, 136, 90)
    inside = chest < 0.8

    image[skin < 1] = -100  # fat under the skin
    image[chest < 1] = 50  # muscle
    image[(chest > 0.75) & (chest < 0.95) & ((z + 0.5 * np.abs(y)) % 32 < 9)] = 350  # ribs
    image[_ellipsoid(points, (0, 0, 0), (50, 75, 200)) & inside] = -80  # fat between the lungs
    image[_ellipsoid(points, (-64, 3, 5), (55, 90, 120)) & inside] = -850  # right lung
    image[_ellipsoid(points, (64, 3, 5), (55, 90, 120)) & inside] = -850  # left lung
    image[_ellipsoid(points, (-60, -5, -135), (65, 72, 60))] = 65  # liver
    image[_ellipsoid(points, (65, 12, -140), (54, 56, 50))] = 45  # stomach and spleen
    image[_ellipsoid(points, (0, 66, 0), (19, 15, 1000))] = 250  # spine
    image[_ellipsoid(points, (0, 86, 0), (9, 8, 1000))] = 20  # its canal
    image[_ellipsoid(points, (0, -82, 0), (15, 6, 110))] = 220  # sternum
    labels = _paint_organs(image, points, rng)

    texture = gaussian_filter(rng.standard_normal(SHAPE), (1.5, 1.5, 0.8)) * 400
    image += np.where((image < -700) & (skin < 1) & (labels == 0), texture, 0)  # vessels of the lung
    image = gaussian_filter(image, (0.5, 0.5, 0.3)) + rng.normal(0, 22, SHAPE)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16), labels


def _paint_organs(image: np.ndarray, points: Points, rng: np.random.Generator) -> np.ndarray:
    """Put the four organs into `image` and return their labels."""
    x, y, z = points
    labels = np.zeros(SHAPE, np.uint8)
    blood_hu = rng.uniform(40, 110)  # without and with contrast agent

    lean = np.deg2rad(rng.uniform(25, 40))  # the heart lies across, its tip to the left and down
    leaning = (np.cos(lean) * x - np.sin(lean) * z, y, np.sin(lean) * x + np.cos(lean) * z)
    centre = rng.normal((24, -28, 0), (3, 3, 2))
    radii = rng.normal(1, 0.05) * np.array([50, 41, 37])
    image[_ellipsoid(leaning, centre, radii * 1.1)] = -90  # fat around the heart
    heart = _ellipsoid(leaning, centre, radii)
    image[heart], labels[heart] = blood_hu, HEART

    aorta = _tube(points, AORTA_COURSE, rng.normal(12.5, 0.7))
    image[aorta], labels[aorta] = blood_hu + 10, AORTA
    trachea = _tube(points, TRACHEA_COURSE, rng.normal(9.5, 0.5))
    image[trachea], labels[trachea] = -980, TRACHEA
    esophagus = _tube(points, ESOPHAGUS_COURSE, rng.normal(8.5, 0.5)) & (labels == 0)
    image[esophagus], labels[esophagus] = 35, ESOPHAGUS
    swallowed_air = _tube(points, ESOPHAGUS_COURSE, 3) & esophagus & (rng.random(SHAPE[2]) < 0.4)
    image[swallowed_air] = -400
    return labels


def _coordinates(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Millimetres of the average patient at each voxel: a patient is larger or smaller, shifted and bent."""
    ticks = [
        (np.arange(size) - (size - 1) / 2) * step + centre
        for size, step, centre in zip(SHAPE, SPACING_MM, CENTRE_MM, strict=True)
    ]
    x, y, z = np.meshgrid(*ticks, indexing="ij")
    size = rng.uniform((0.93, 0.93, 0.96), (1.07, 1.07, 1.04))
    shift_mm = rng.normal(0, (5, 5, 3))
    bend_mm = rng.normal(0, 3, 2)
    x, y = x + bend_mm[0] * np.sin(z / 60), y + bend_mm[1] * np.sin(z / 60)
    patient = ((a - s) / r for a, s, r in zip((x, y, z), shift_mm, size, strict=True))
    return tuple(a.astype(np.float32) for a in patient)


def _oval(x: np.ndarray, y: np.ndarray, radius_x: float, radius_y: float) -> np.ndarray:
    """Rises from 0 on the axis to 1 on the surface of a body of rounded cross-section."""
    return np.abs(x / radius_x) ** 2.5 + np.abs(y / radius_y) ** 2.5


def _ellipsoid(points: Points, centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    return sum(((a - c) / r) ** 2 for a, c, r in zip(points, centre, radii, strict=True)) < 1


def _tube(points: Points, course: Sequence[Sequence[float]], radius: float) -> np.ndarray:
    """All points nearer than `radius` to a chain of straight pieces."""
    inside = np.zeros(SHAPE, bool)
    for start, end in pairwise(np.asarray(course, np.float32)):
        near = _ellipsoid(
            points, (start + end) / 2, (np.abs(end - start) / 2 + radius) * 3**0.5
        )  # around its box
        offset = np.stack([a[near] for a in points], axis=-1) - start
        piece = end - start
        position = np.clip(offset @ piece / (piece @ piece), 0, 1)
        inside[near] |= ((offset - position[:, None] * piece) ** 2).sum(axis=-1) < radius**2
    return inside


def _with_heart_moved(labels: np.ndarray, displace: Displace) -> np.ndarray:
    """As the course copy: the heart is taken away and written elsewhere, over the other labels."""
    moved = np.where(labels == HEART, 0, labels).astype(np.uint8)
    moved[displace(labels == HEART).astype(bool)] = HEART
    return moved


def _save(path: Path, voxels: np.ndarray) -> None:
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1])  # x to the left, y to the back
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    with whole_file(path) as part:
        nibabel.save(nibabel.Nifti1Image(voxels, affine), part)

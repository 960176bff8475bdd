"""A small thorax with plausible lungs and a heart: 128 x 128 x 36 voxels, so constants scale by 1/4."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import affine_transform

SHAPE = (128, 128, 36)
AFFINE = np.array([[-3.9, 0, 0, 250], [0, -3.9, 0, 240], [0, 0, 2.5, -700], [0, 0, 0, 1]])


def ball(centre: tuple[float, ...], radii: tuple[float, ...], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """An ellipsoid mask."""
    axes = np.ogrid[tuple(map(slice, shape))]
    return sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) < 1


def published_displacement(heart: np.ndarray) -> np.ndarray:
    """The course's tampering, written down from its description and independent of the converter."""
    angle = np.deg2rad(-27)
    shift, rotation, centre, scale = np.eye(4), np.eye(4), np.eye(4), np.eye(4)
    shift[:3, 3] = 50, 40, 15
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    centre[:3, 3] = 275, 200, 0
    scale[[0, 1], [0, 1]] = heart.shape[0] / 512, heart.shape[1] / 512
    matrix = scale @ centre @ rotation @ np.linalg.inv(centre) @ shift @ np.linalg.inv(scale)
    return affine_transform(heart.astype(np.uint8), matrix, order=0).astype(bool)


def thorax(heart_z: float = 25) -> tuple[np.ndarray, np.ndarray]:
    """Image in HU and true labels: a body of lung, a heart of muscle in it, trachea, aorta and esophagus."""
    image = np.full(SHAPE, -1000, np.int16)
    image[np.broadcast_to(ball((64, 64, 0), (58, 50, 1e6)), SHAPE)] = -800
    labels = np.zeros(SHAPE, np.uint8)
    labels[ball((72, 60, heart_z), (13, 11, 8))] = 2
    labels[ball((50, 55, 8), (3, 3, 20))] = 1
    labels[ball((60, 78, 18), (4, 4, 17))] = 4
    labels[ball((66, 70, 30), (3, 3, 5))] = 3
    image[ball((72, 60, heart_z), (14, 12, 9))] = 40
    image[(labels == 1) | (labels == 4)] = 40
    image[labels == 3] = -950
    return image, labels


def tamper(labels: np.ndarray) -> np.ndarray:
    """Labels with the heart displaced and written over the others, as in the course copy."""
    tampered = labels.copy()
    tampered[labels == 2] = 0
    tampered[published_displacement(labels == 2)] = 2
    return tampered


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def command() -> str:
    """The installed `samnn` of the running Python."""
    return str(Path(sys.executable).with_name("samnn"))


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }

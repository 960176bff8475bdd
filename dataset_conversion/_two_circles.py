"""The two-circles toy set: a grey disc to be found beside a white one, in noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from samnn.atomic import whole_folder

SIZE, RADIUS = 256, 25  # pixels
WHITE, GREY, INSIDE = 255, 125, 255  # the other disc, the one to be found, its mask
MOST_NOISE = 100  # standard deviation of an image's noise, in grey values


def generate(target: Path, n_training: int) -> None:
    """Write `n_training` images and a tenth as many for validation, {train,val}/{img,gt}/*.png; always the same.

    Definition: AI4MI's gen_two_circles.py, whose random numbers differ.

    Raises:
        SamnnError: `target` exists, or nothing can be written there.
    """
    rng = np.random.default_rng(0)
    with whole_folder(target) as folder:
        for part, n_images in (("train", n_training), ("val", max(1, n_training // 10))):
            for kind in ("img", "gt"):
                (folder / part / kind).mkdir(parents=True)
            for number in range(n_images):
                image, mask = draw(rng)
                Image.fromarray(image).save(folder / part / "img" / f"{number:05d}.png")
                Image.fromarray(mask).save(folder / part / "gt" / f"{number:05d}.png")


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One image and its mask, uint8; the grey disc lies over the white one."""
    image, mask = np.zeros((SIZE, SIZE), np.int16), np.zeros((SIZE, SIZE), np.uint8)
    rows, columns = np.ogrid[:SIZE, :SIZE]
    for value in (WHITE, GREY):
        row, column = rng.integers(RADIUS, SIZE - RADIUS, 2)
        disc = (rows - row) ** 2 + (columns - column) ** 2 <= RADIUS**2
        image[disc] = value
    mask[disc] = INSIDE
    noise = rng.normal(0, rng.integers(MOST_NOISE), image.shape).astype(np.int16)
    return (image + noise).clip(0, 255).astype(np.uint8), mask

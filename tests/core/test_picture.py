"""The picture shows reference beside prediction, whichever way the voxels are stored."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.image import imread

from samnn.geometry import Grid
from samnn.io import Volume, write_volume
from samnn.picture import draw

LPS = (1, 0, 0, 0, 1, 0, 0, 0, 1)


def picture(folder, *, predicted, flipped=False):
    """A small case with one bright organ at one side, drawn and read back."""
    image = np.full((24, 20, 6), -300, np.int16)
    image[3:9, 4:10, 1:5] = 60
    reference = (image == 60).astype(np.uint8)
    grid = Grid(image.shape, (1, 1, 3), (0, 0, 0), LPS)
    volumes = {"images/a_0000": image, "reference/a": reference, "prediction/a": predicted * reference}
    if flipped:
        volumes = {name: voxels[::-1] for name, voxels in volumes.items()}
        grid = Grid(image.shape, (1, 1, 3), (23, 0, 0), (-1, 0, 0, 0, 1, 0, 0, 0, 1))
    for name, voxels in volumes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_volume(folder / f"{name}.nii.gz", Volume(voxels, grid))
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1}}))
    (folder / "metrics.csv").write_text("case,label,class,metric,value,unit\na,1,organ,dice,0.75,\n")
    draw(
        folder / "images",
        folder / "reference",
        folder / "prediction",
        folder / "metrics.csv",
        folder / "dataset.json",
        folder / "out.png",
    )
    return imread(folder / "out.png")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return picture(tmp_path_factory.mktemp("straight"), predicted=1)


def test_a_volume_stored_the_other_way_round_gives_the_same_picture(straight, tmp_path):
    np.testing.assert_array_equal(picture(tmp_path, predicted=1, flipped=True), straight)


def test_an_organ_that_was_missed_is_missing_in_the_prediction_panels_only(straight, tmp_path):
    """Six panels in a row; reference and prediction alternate."""
    missed = picture(tmp_path, predicted=0)
    changed = np.flatnonzero((missed != straight).any(axis=(0, 2))) / missed.shape[1]
    panels = set((changed * 6).astype(int))
    assert panels == {1, 3, 5}

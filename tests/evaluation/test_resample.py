"""`--resample`: predictions on other grids, refused without it, brought onto the reference's grid with it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from samnn.errors import SamnnError
from samnn.evaluation3d import evaluate_folder
from samnn.geometry import Grid
from samnn.io import Volume, resample_labels, write_volume

EYE = tuple(np.eye(3).ravel())
SPACING_MM = (1.5, 1.0, 3.0)
GRID = Grid((12, 10, 8), SPACING_MM, (-5.0, 20.0, 7.0), EYE)


@pytest.fixture
def labels() -> np.ndarray:
    voxels = np.zeros(GRID.shape, np.uint8)
    voxels[2:8, 3:7, 2:6] = 1
    voxels[8:11, 3:5, 3:5] = 2
    return voxels


@pytest.fixture
def folders(tmp_path, labels):
    """A reference, and a function that writes the one prediction of it."""
    reference, prediction = tmp_path / "reference", tmp_path / "prediction"
    for folder in (reference, prediction):
        folder.mkdir()
    write_volume(reference / "a.nii.gz", Volume(labels, GRID))

    def predict(voxels: np.ndarray, grid: Grid):
        write_volume(prediction / "a.nii.gz", Volume(voxels, grid))
        return reference, prediction

    return predict


def test_the_own_grid_changes_nothing(labels):
    assert np.array_equal(resample_labels(Volume(labels, GRID), GRID).voxels, labels)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flipped_axis_comes_back(labels, axis):
    """The same voxels stored the other way round: origin at the other end, direction −1."""
    direction = np.eye(3)
    direction[axis, axis] = -1
    origin_mm = np.array(GRID.origin_mm)
    origin_mm[axis] += SPACING_MM[axis] * (GRID.shape[axis] - 1)
    flipped = Grid(GRID.shape, SPACING_MM, tuple(origin_mm), tuple(direction.ravel()))
    assert GRID.differences(flipped)
    assert np.array_equal(resample_labels(Volume(np.flip(labels, axis), flipped), GRID).voxels, labels)


def test_permuted_axes_come_back(labels):
    """Stored (z, x, y): the columns of the direction are permuted alike."""
    order = [2, 0, 1]
    grid = Grid(
        tuple(GRID.shape[axis] for axis in order),
        tuple(SPACING_MM[axis] for axis in order),
        GRID.origin_mm,
        tuple(np.eye(3)[:, order].ravel()),
    )
    assert np.array_equal(resample_labels(Volume(labels.transpose(order), grid), GRID).voxels, labels)


def test_a_whole_number_of_voxels_is_a_shift(labels):
    moved = Grid(GRID.shape, SPACING_MM, (-5.0 + 2 * 1.5, 20.0, 7.0), EYE)
    expected = np.zeros_like(labels)
    expected[2:] = labels[:-2]
    assert np.array_equal(resample_labels(Volume(labels, moved), GRID).voxels, expected)


def test_three_small_voxels_for_each_big_one_give_the_middle_one_back(labels):
    """Thirds of voxels: the centre of each big voxel is the centre of the middle small one."""
    fine = Grid(
        tuple(3 * size for size in GRID.shape),
        tuple(step / 3 for step in SPACING_MM),
        tuple(o - step / 3 for o, step in zip(GRID.origin_mm, SPACING_MM, strict=True)),
        EYE,
    )
    voxels = labels.repeat(3, 0).repeat(3, 1).repeat(3, 2)
    assert np.array_equal(resample_labels(Volume(voxels, fine), GRID).voxels, labels)


def test_what_lies_outside_of_the_prediction_is_background(labels):
    part = Grid((6, 10, 8), SPACING_MM, GRID.origin_mm, EYE)
    expected = labels.copy()
    expected[6:] = 0
    assert np.array_equal(resample_labels(Volume(labels[:6], part), GRID).voxels, expected)


def test_a_cropped_prediction_is_refused_and_with_resample_evaluated_and_reported(folders, labels):
    reference, prediction = folders(labels[:6], Grid((6, 10, 8), SPACING_MM, GRID.origin_mm, EYE))
    with pytest.raises(
        SamnnError, match=r"shape \(12, 10, 8\) against \(6, 10, 8\)\. samnn evaluate --resample brings"
    ):
        evaluate_folder(reference, prediction)
    evaluation = evaluate_folder(reference, prediction, resample=True)
    found = evaluation.results["a"]
    assert found["1"].values["sensitivity"] == pytest.approx(4 / 6)
    assert found["1"].values["precision"] == 1
    assert found["2"].outcome == "missed"


def test_only_what_was_resampled_is_reported(folders, labels, tmp_path, run_evaluate):
    moved = Grid(GRID.shape, SPACING_MM, (-5.0, 20.0, 13.0), EYE)
    reference, prediction = folders(labels, moved)
    for folder in (reference, prediction):
        write_volume(folder / "b.nii.gz", Volume(labels, GRID))
    process = run_evaluate(reference, prediction, "--resample", "-o", tmp_path / "out")
    assert process.returncode == 0, process.stderr
    assert "1 case (a): the prediction was brought onto the grid of its reference" in process.stdout
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["resampled"] == {
        "a": ["origin (mm) (-5, 20, 7) against (-5, 20, 13)", "corners up to 6 mm apart"]
    }


def test_a_prediction_elsewhere_in_space_is_refused_even_so(folders, labels):
    """It would be an empty one."""
    far = Grid(GRID.shape, SPACING_MM, (1000.0, 20.0, 7.0), EYE)
    with pytest.raises(SamnnError, match="no point in common"):
        evaluate_folder(*folders(labels, far), resample=True)


def test_a_picture_of_a_volume_is_refused_even_so(folders, labels):
    flat = Grid((12, 10), SPACING_MM[:2], GRID.origin_mm[:2], (1.0, 0.0, 0.0, 1.0))
    with pytest.raises(SamnnError, match="not of the same dimension"):
        evaluate_folder(*folders(labels[:, :, 4], flat), resample=True)

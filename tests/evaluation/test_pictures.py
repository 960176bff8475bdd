"""Two dimensions, and picture formats: PNG, TIFF, BMP and 2-D NIfTI, with regions and an ignore label."""

from __future__ import annotations

import json

import numpy as np
import pytest

from samnn.errors import SamnnError
from samnn.evaluation3d import evaluate_case, evaluate_folder
from samnn.io import read_grid

PICTURES = [".png", ".tif", ".tiff", ".bmp"]


@pytest.fixture
def square() -> np.ndarray:
    """4 × 4 pixels of a 20 × 30 picture."""
    picture = np.zeros((20, 30), np.uint8)
    picture[5:9, 5:9] = 1
    return picture


def values(reference, prediction, **more) -> dict[str, float]:
    return evaluate_folder(reference, prediction, **more).results["a"]["1"].values


@pytest.mark.parametrize("ending", [*PICTURES, ".nii.gz", ".nii", ".mha"])
def test_two_dimensions_in_every_format(tmp_path, write_labels, square, ending):
    """Moved by a pixel along x: 12 of 16 pixels common; the distance is the spacing of x that the format holds."""
    reference = write_labels(tmp_path / "r" / f"a{ending}", square)
    write_labels(tmp_path / "p" / f"a{ending}", np.roll(square, 1, axis=0))
    found = values(tmp_path / "r", tmp_path / "p")
    assert found["dice"] == 0.75
    assert found["hausdorff"] == pytest.approx(read_grid(reference).spacing_mm[0])
    assert read_grid(reference).n_dims == 2


@pytest.mark.parametrize("ending", PICTURES)
def test_a_picture_that_lost_its_spacing_has_that_of_its_reference(tmp_path, write_labels, square, ending):
    """nnU-Net writes pictures without."""
    reference = write_labels(tmp_path / "r" / "a.nii.gz", square, spacing_mm=(0.25, 0.25))
    prediction = write_labels(tmp_path / "p" / f"a{ending}", np.roll(square, 1, axis=0), spacing_mm=(1, 1))
    assert values(tmp_path / "r", tmp_path / "p")["hausdorff"] == 0.25
    write_labels(prediction, square[:, 1:])
    with pytest.raises(SamnnError, match=rf"{prediction}: lies on another grid than {reference}.*\(20, 29\)"):
        evaluate_folder(tmp_path / "r", tmp_path / "p")


def test_other_formats_must_have_the_spacing_of_their_reference(tmp_path, write_labels, square):
    write_labels(tmp_path / "r" / "a.nii.gz", square, spacing_mm=(0.25, 0.25))
    write_labels(tmp_path / "p" / "a.nii.gz", square, spacing_mm=(1, 1))
    with pytest.raises(SamnnError, match="spacing"):
        evaluate_folder(tmp_path / "r", tmp_path / "p")


def test_a_volume_of_one_slice_is_no_picture(tmp_path, write_labels, square):
    """Its surface lies on both sides of the slice, so its distances are others."""
    write_labels(tmp_path / "r" / "a.nii.gz", square[:, :, None])
    write_labels(tmp_path / "p" / "a.nii.gz", square)
    with pytest.raises(SamnnError, match=r"shape \(20, 30, 1\) against \(20, 30\)"):
        evaluate_folder(tmp_path / "r", tmp_path / "p")


def test_the_spacing_that_nnunet_keeps_beside_a_tiff_volume_holds(tmp_path, write_labels, box):
    """In (z, y, x) order."""
    for folder, moved in [("r", 0), ("p", 2)]:
        write_labels(tmp_path / folder / "a.tif", box(moved=moved))
        (tmp_path / folder / "a.json").write_text(json.dumps({"spacing": [3.0, 1.0, 0.5]}))
    assert read_grid(tmp_path / "r" / "a.tif").spacing_mm == (0.5, 1.0, 3.0)
    assert values(tmp_path / "r", tmp_path / "p")["hausdorff"] == 1.0
    for content in ["[1, 1, 1]", '{"spacing": 1}', '{"spacing": [1, 1]}', "{"]:
        (tmp_path / "r" / "a.json").write_text(content)
        with pytest.raises(SamnnError, match=r"a\.json: cannot be read as the spacing of a\.tif"):
            evaluate_folder(tmp_path / "r", tmp_path / "p")
    (tmp_path / "r" / "a.json").write_text('{"spacing": [0, 1, 1]}')
    with pytest.raises(SamnnError, match=r"a\.tif: spacing .* is not finite and positive"):
        evaluate_folder(tmp_path / "r", tmp_path / "p")


@pytest.mark.parametrize("ending", [".png", ".bmp"])
def test_a_coloured_picture_is_no_label_map(tmp_path, write_labels, square, ending):
    from PIL import Image

    write_labels(tmp_path / "r" / f"a{ending}", square)
    (tmp_path / "p").mkdir()
    Image.fromarray(np.stack([square.T, square.T, 0 * square.T], -1)).save(tmp_path / "p" / f"a{ending}")
    with pytest.raises(SamnnError, match="3 values per voxel"):
        evaluate_folder(tmp_path / "r", tmp_path / "p")


@pytest.mark.parametrize("n_dims", [2, 3])
def test_regions_and_ignored_voxels_by_hand(n_dims):
    """A row of voxels, whatever the number of axes; the last two are ignored."""
    reference = np.array([0, 1, 1, 2, 2, 0, 9, 9])
    prediction = np.array([0, 1, 2, 2, 1, 1, 1, 2])
    row = (8,) + (1,) * (n_dims - 1)
    found = evaluate_case(
        reference.reshape(row),
        prediction.reshape(row),
        spacing_mm=(1.0,) * n_dims,
        labels={"background": 0, "one": 1, "both": [1, 2], "ignore": 9},
    )
    assert found["one"].values["dice"] == pytest.approx(2 * 1 / (2 + 3))
    assert found["both"].values["dice"] == pytest.approx(2 * 4 / (4 + 5))
    assert found["both"].values["specificity"] == pytest.approx(1 / 2)
    assert found["both"].values["hausdorff"] == pytest.approx(1.0)
    assert found["both"].label == "1+2"


def test_an_ignore_label_in_files_counts_for_nothing(tmp_path, write_labels, write_dataset_json, square):
    write_dataset_json(tmp_path, {"background": 0, "square": 1, "ignore": 2}, file_ending=".png")
    truth = square.copy()
    truth[12:] = 2
    wild = square.copy()
    wild[12:] = 1
    write_labels(tmp_path / "r" / "a.png", truth)
    write_labels(tmp_path / "p" / "a.png", wild)
    evaluation = evaluate_folder(tmp_path / "r", tmp_path / "p")
    found = evaluation.results["a"]["square"].values
    assert (found["dice"], found["hausdorff"], found["specificity"]) == (1, 0, 1)

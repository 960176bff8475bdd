"""Real label maps, moved by one voxel: names, grids and mixed voxel types as they come."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from samnn.evaluation3d import evaluate_folder
from samnn.io import Volume, read_labels, write_volume


def moved(source, target, *, axis: int) -> None:
    """Write every label map of a folder moved by one voxel; no organ leaves the picture."""
    target.mkdir()
    for file in source.glob("*.nii.gz"):
        volume = read_labels(file)
        write_volume(target / file.name, Volume(np.roll(volume.voxels, 1, axis), volume.grid))


@pytest.fixture(scope="module")
def head_neck(shared, tmp_path_factory):
    reference = shared / "data" / "Dataset901_OpenKBPHN" / "labelsTs"
    prediction = tmp_path_factory.mktemp("901") / "moved"
    moved(reference, prediction, axis=0)
    return reference, evaluate_folder(reference, prediction)


def test_organs_have_the_names_of_the_dataset(head_neck):
    table = head_neck[1].table
    label_of = dict(zip(table["class"], table["label"], strict=True))
    assert label_of["parotid_left"] == "6"
    assert label_of["parotid_right"] == "7"
    assert len(label_of) == 7


def test_a_move_by_one_voxel_is_one_spacing_for_every_organ(head_neck):
    reference, evaluation = head_neck
    for case, classes in evaluation.results.items():
        grid = read_labels(reference / f"{case}.nii.gz").grid
        for result in classes.values():
            assert result.values["hausdorff"] == pytest.approx(grid.spacing_mm[0])


def test_dice_of_every_organ_equals_counting_its_voxels(head_neck):
    reference, evaluation = head_neck
    for case, classes in evaluation.results.items():
        voxels = read_labels(reference / f"{case}.nii.gz").voxels
        for result in classes.values():
            mask = voxels == int(result.label)
            common = (mask & np.roll(mask, 1, 0)).sum()
            assert result.values["dice"] == pytest.approx(common / mask.sum())


def test_real_labels_against_themselves_are_perfect_in_every_metric(shared, tmp_path):
    """Also where some files store uint8 and others float32."""
    folder = shared / "data" / "Dataset904_Hippocampus" / "labelsTs"
    shutil.copytree(folder, tmp_path / "copy")
    table = evaluate_folder(folder, tmp_path / "copy").table
    means = table.groupby("metric")["value"].agg(["min", "max"])
    for metric in ("voe", "volume_error", "assd", "hausdorff", "hausdorff95", "masd"):
        assert means.loc[metric].to_list() == [0, 0]
    for metric in ("dice", "iou", "nsd", "precision", "sensitivity", "specificity", "volumetric_similarity"):
        assert means.loc[metric].to_list() == [1, 1]
    assert len(table) == 10 * 2 * 13


def test_probabilities_of_real_cases_give_every_number_of_their_label_maps(shared, tmp_path):
    """Eight tenths for the label of the moved map and the rest for the others: its argmax is that map."""
    folder = shared / "data" / "Dataset904_Hippocampus" / "labelsTs"
    moved(folder, tmp_path / "moved", axis=0)
    (tmp_path / "saved").mkdir()
    for file in (tmp_path / "moved").glob("*.nii.gz"):
        labels = read_labels(file).voxels.transpose()
        p = np.where(labels == np.arange(3).reshape(3, 1, 1, 1), 0.8, 0.1).astype(np.float32)
        np.savez(tmp_path / "saved" / file.name.replace(".nii.gz", ".npz"), probabilities=p)
    of_maps, of_probabilities = (
        evaluate_folder(folder, tmp_path / name).table for name in ("moved", "saved")
    )
    calibration = of_probabilities["metric"].isin(["ece", "brier", "nll"])
    assert calibration.sum() == 3 * 2 * 10
    assert of_probabilities[~calibration].reset_index(drop=True).equals(of_maps)
    for case, result in evaluate_folder(folder, tmp_path / "saved").results.items():
        y = read_labels(folder / f"{case}.nii.gz").voxels == 1
        right = (np.roll(y, 1, 0) == y).mean()
        wrong = (~np.roll(y, 1, 0) & y).mean()
        assert result["anterior"].values["brier"] < 0.04 + 0.81 * (1 - right) + 0.01
        assert result["anterior"].values["brier"] >= 0.81 * wrong

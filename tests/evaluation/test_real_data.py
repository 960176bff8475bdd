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

"""The mean of probabilities, by hand: equal weights, weights per class, regions, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from samnn.ensemble import ensemble
from samnn.errors import SamnnError
from samnn.geometry import Grid
from samnn.io import Volume, read_labels, write_volume

GRID = Grid((3, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
LABELS = {"background": 0, "a": 1, "b": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}


def write_prediction(folder: Path, case: str, probabilities: list, labels: dict = LABELS) -> None:
    """`probabilities`: a row of three voxels for each channel."""
    folder.mkdir(parents=True, exist_ok=True)
    p = np.array(probabilities, np.float32).reshape(len(probabilities), 1, 1, 3)  # (channels, z, y, x)
    np.savez_compressed(folder / f"{case}.npz", probabilities=p)
    write_volume(folder / f"{case}.nii.gz", Volume(np.zeros((3, 1, 1), np.uint8), GRID))
    content = {"labels": labels, "channel_names": {"0": "MR"}, "file_ending": ".nii.gz"}
    if labels is REGIONS:
        content["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(content))


def labels_of(path: Path) -> list[int]:
    return read_labels(path).voxels.ravel().tolist()


@pytest.fixture
def results(tmp_path: Path) -> Callable[..., Path]:
    """A results folder: fold → (case, probabilities, nnU-Net's Dice of each label in that fold)."""

    def write(name: str, folds: dict[int, tuple[str, list, dict[str, float]]]) -> Path:
        folder = tmp_path / "Dataset001_Toy" / name
        for fold, (case, probabilities, dice) in folds.items():
            validation = folder / f"fold_{fold}" / "validation"
            write_prediction(validation, case, probabilities)
            rows = [{"metrics": {label: {"Dice": value} for label, value in dice.items()}}]
            (validation / "summary.json").write_text(json.dumps({"metric_per_case": rows}))
        (folder / "dataset.json").write_text((validation / "dataset.json").read_text())
        return folder

    return write


def test_equal_weights_are_the_mean(tmp_path: Path) -> None:
    """Voxel 1: a has (0.6 + 0.1) / 2, b (0.3 + 0.7) / 2; each method alone would say a, b."""
    write_prediction(tmp_path / "A", "x", [[0.8, 0.1, 0.4], [0.1, 0.6, 0.5], [0.1, 0.3, 0.1]])
    write_prediction(tmp_path / "B", "x", [[0.7, 0.2, 0.6], [0.2, 0.1, 0.1], [0.1, 0.7, 0.3]])
    assert ensemble([tmp_path / "A", tmp_path / "B"], tmp_path / "out", save_probabilities=True) == 1
    assert labels_of(tmp_path / "out" / "x.nii.gz") == [0, 2, 0]
    mean = np.load(tmp_path / "out" / "x.npz")["probabilities"]
    np.testing.assert_allclose(mean[:, 0, 0, 1], [0.15, 0.35, 0.5], rtol=1e-6)


def test_regions_are_above_a_half_and_later_ones_win(tmp_path: Path) -> None:
    """Means of the whole: 0.48, 0.9, 0.4; of the core: 0.1, 0.6, 0.65."""
    write_prediction(tmp_path / "A", "x", [[0.9, 0.9, 0.4], [0.1, 0.8, 0.4]], REGIONS)
    write_prediction(tmp_path / "B", "x", [[0.06, 0.9, 0.4], [0.1, 0.4, 0.9]], REGIONS)
    ensemble([tmp_path / "A", tmp_path / "B"], tmp_path / "out")
    assert labels_of(tmp_path / "out" / "x.nii.gz") == [0, 2, 2]


def test_a_fold_is_weighted_by_the_dice_of_the_other_folds_alone(results: Callable, tmp_path: Path) -> None:
    """Fold 0 is decided by fold 1: method A has Dice 0.9 of 1.2 in a, so 3/4, and 0.1 of 0.4 in b, so 1/4."""
    p_a = [[0.1, 0.1, 0.8], [0.5, 0.7, 0.1], [0.4, 0.2, 0.1]]
    p_b = [[0.1, 0.1, 0.8], [0.3, 0.2, 0.1], [0.6, 0.7, 0.1]]
    misleading = {"1": 0.0, "2": 1.0}
    a = results("A", {0: ("x", p_a, misleading), 1: ("y", p_a, {"1": 0.9, "2": 0.1})})
    b = results("B", {0: ("x", p_b, misleading), 1: ("y", p_b, {"1": 0.3, "2": 0.3})})
    ensemble([a, b], tmp_path / "out", weighting="classes", save_probabilities=True)
    mean = np.load(tmp_path / "out" / "fold_0" / "validation" / "x.npz")["probabilities"]
    # voxel 1: a = 3/4 · 0.7 + 1/4 · 0.2 = 0.575, b = 1/4 · 0.2 + 3/4 · 0.7 = 0.575
    np.testing.assert_allclose(mean[:, 0, 0, 1], np.array([0.1, 0.575, 0.575]) / 1.25, rtol=1e-6)
    np.testing.assert_allclose(mean[:, 0, 0, 0], np.array([0.1, 0.45, 0.55]) / 1.1, rtol=1e-6)
    assert labels_of(tmp_path / "out" / "fold_0" / "validation" / "x.nii.gz")[0] == 2
    record = json.loads((tmp_path / "out" / "fold_0" / "validation" / "summary.json").read_text())
    np.testing.assert_allclose(record["weights"], [[0.5, 0.75, 0.25], [0.5, 0.25, 0.75]])


def test_a_test_set_is_weighted_by_cross_validation_or_not_at_all(results: Callable, tmp_path: Path) -> None:
    p = [[0.2, 0.2, 0.8], [0.5, 0.7, 0.1], [0.3, 0.1, 0.1]]
    for name in "AB":
        write_prediction(tmp_path / f"test_{name}", "z", p)
    tests = [tmp_path / "test_A", tmp_path / "test_B"]
    with pytest.raises(SamnnError, match="never from the cases that are predicted"):
        ensemble(tests, tmp_path / "out", weighting="classes")
    a = results("A", {0: ("x", p, {"1": 1.0, "2": float("nan")}), 1: ("y", p, {"1": 0.5, "2": 0.2})})
    b = results("B", {0: ("x", p, {"1": 0.25, "2": 0.2}), 1: ("y", p, {"1": 0.25, "2": 0.2})})
    ensemble(tests, tmp_path / "out", weighting="classes", crossval=[a, b])
    record = json.loads((tmp_path / "out" / "summary.json").read_text())
    np.testing.assert_allclose(record["weights"], [[0.5, 0.75, 0.5], [0.5, 0.25, 0.5]])


def test_what_one_method_lacks_is_named(tmp_path: Path) -> None:
    p = [[0.2, 0.2, 0.8], [0.5, 0.7, 0.1], [0.3, 0.1, 0.1]]
    write_prediction(tmp_path / "A", "x", p)
    write_prediction(tmp_path / "A", "y", p)
    write_prediction(tmp_path / "B", "x", p)
    with pytest.raises(SamnnError, match=r"y\.npz, which another method has"):
        ensemble([tmp_path / "A", tmp_path / "B"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_methods_are_never_replaced_and_only_ensembles_are(tmp_path: Path) -> None:
    p = [[0.2, 0.2, 0.8], [0.5, 0.7, 0.1], [0.3, 0.1, 0.1]]
    for name in "AB":
        write_prediction(tmp_path / "methods" / name, "x", p)
    a, b = tmp_path / "methods" / "A", tmp_path / "methods" / "B"
    for out in (a, tmp_path / "methods", a / "within"):
        with pytest.raises(SamnnError, match="Name another folder"):
            ensemble([a, b], out, overwrite=True)
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "thesis.txt").write_text("all of it")
    with pytest.raises(SamnnError, match="something else than an ensemble"):
        ensemble([a, b], notes, overwrite=True)
    ensemble([a, b], tmp_path / "out")
    ensemble([a, b], tmp_path / "out", overwrite=True)
    with pytest.raises(SamnnError, match="named twice"):
        ensemble([a, a], tmp_path / "out", overwrite=True)
    with pytest.raises(SamnnError, match="no such folder"):
        ensemble([a, b], tmp_path / "other", weighting="classes", crossval=[tmp_path / "nowhere", b])


def test_methods_with_other_labels_are_not_mixed(tmp_path: Path) -> None:
    p = [[0.2, 0.2, 0.8], [0.5, 0.7, 0.1], [0.3, 0.1, 0.1]]
    for name in "AB":
        write_prediction(tmp_path / name, "x", p)
    path = tmp_path / "B" / "dataset.json"
    content = json.loads(path.read_text())
    first, *others = [label for label in content["labels"] if label != "background"]
    content["labels"] |= {first: 2, others[0]: 1}
    path.write_text(json.dumps(content))
    with pytest.raises(SamnnError, match="other labels than"):
        ensemble([tmp_path / "A", tmp_path / "B"], tmp_path / "out")

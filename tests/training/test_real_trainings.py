"""Short trainings on real volumes by the stock commands: they must beat a prediction that looks at nothing."""

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from samnn.io import read_labels


@pytest.fixture
def real(shared: Path, tmp_path: Path) -> dict[str, str]:
    """nnU-Net's folders for the shared datasets, which are linked and never written to."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for dataset in (shared / "data").glob("Dataset*"):
        (raw / dataset.name).symlink_to(dataset)
    folders = {
        "nnUNet_raw": raw,
        "nnUNet_preprocessed": tmp_path / "pre",
        "nnUNet_results": tmp_path / "results",
    }
    return {name: str(folder) for name, folder in folders.items()}


def train_predict_evaluate(
    command: Callable, folders: dict[str, str], dataset: str, trainer: str, out: Path
) -> pd.DataFrame:
    """The whole chain on fold 0 in 2D; → metrics of the held-back test cases."""
    number, raw = int(dataset[7:10]), Path(folders["nnUNet_raw"]) / dataset
    os.makedirs(folders["nnUNet_preprocessed"], exist_ok=True)
    plan = ("-d", number, "-c", "2d", "-np", 1, "-npfp", 1, "--verify_dataset_integrity")
    command("nnUNetv2_plan_and_preprocess", *plan, **folders, nnUNet_n_proc_DA="1")
    command("nnUNetv2_train", number, "2d", 0, "-tr", trainer, "-device", "cpu", **folders)
    command(
        "nnUNetv2_predict", "-i", raw / "imagesTs", "-o", out / "predicted", "-d", number, "-c", "2d", "-f", 0,
        "-tr", trainer, "-npp", 1, "-nps", 1, "-device", "cpu", "--disable_progress_bar", **folders,
    )  # fmt: skip
    command("samnn", "evaluate", raw / "labelsTs", out / "predicted", "-o", out, **folders)
    return pd.read_csv(out / "metrics.csv")


def constant_dice(folder: Path, label: int) -> float:
    """Mean Dice of calling every voxel `label`: 2 · n / (n + all)."""
    scores = []
    for path in folder.glob("*.nii.gz"):
        voxels = read_labels(path).voxels
        n = int((voxels == label).sum())
        scores.append(2 * n / (n + voxels.size))
    return sum(scores) / len(scores)


def test_enet_learns_the_hippocampus(command: Callable, real: dict[str, str], tmp_path: Path) -> None:
    """120 iterations; both classes well above a constant prediction."""
    trainer = "nnUNetTrainerENet_3epochs_40iters_seed1"
    metrics = train_predict_evaluate(command, real, "Dataset904_Hippocampus", trainer, tmp_path)
    dice = metrics[metrics.metric == "dice"].groupby("label").value.mean()
    labels = Path(real["nnUNet_raw"]) / "Dataset904_Hippocampus" / "labelsTs"
    print(f"Dice on 904 after 120 iterations: {dice.to_dict()}")
    for label in (1, 2):
        assert dice[label] > 2 * constant_dice(labels, label)


def test_enet_runs_on_head_neck_ct(command: Callable, real: dict[str, str], tmp_path: Path) -> None:
    """A smoke run of 50 iterations: the chain holds for anisotropic CT with seven organs."""
    trainer = "nnUNetTrainerENet_2epochs_25iters_seed1"
    metrics = train_predict_evaluate(command, real, "Dataset901_OpenKBPHN", trainer, tmp_path)
    assert set(metrics["class"]) == {
        "esophagus", "spinal_cord", "larynx", "brainstem", "mandible", "parotid_left", "parotid_right",
    }  # fmt: skip
    assert metrics[metrics.metric == "dice"].value.dropna().between(0, 1).all()

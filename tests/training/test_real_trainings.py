"""Short trainings on real volumes by the stock commands: they must beat a prediction that looks at nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from samnn.io import read_grid, read_labels


@pytest.fixture
def real(shared: Path, tmp_path: Path) -> Callable:
    """nnU-Net's folders with the first cases of a shared dataset, linked: a small dataset gets small batches."""

    def take(dataset: str, *, n_training: int, n_test: int) -> dict[str, str]:
        source, raw = shared / "data" / dataset, tmp_path / "raw" / dataset
        for split, n in (("Tr", n_training), ("Ts", n_test)):
            for kind in ("images", "labels"):
                (raw / f"{kind}{split}").mkdir(parents=True)
                for path in sorted((source / f"{kind}{split}").iterdir())[:n]:
                    (raw / f"{kind}{split}" / path.name).symlink_to(path)
        content = json.loads((source / "dataset.json").read_text()) | {"numTraining": n_training}
        (raw / "dataset.json").write_text(json.dumps(content))
        names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        folders = {name: tmp_path / name.removeprefix("nnUNet_") for name in names}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        return {name: str(folder) for name, folder in folders.items()}

    return take


def train_predict_evaluate(
    command: Callable,
    folders: dict[str, str],
    dataset: str,
    trainer: str,
    out: Path,
    network: dict | None = None,
    batch_size: int = 12,
) -> pd.DataFrame:
    """The whole chain on fold 0 in 2D, with the network of the trainer or that given; → metrics of the test cases.

    batch_size: instead of that of nnU-Net's plans, dozens of small patches.
    """
    number, raw = int(dataset[7:10]), Path(folders["nnUNet_raw"]) / dataset
    plan = ("-d", number, "-c", "2d", "-np", 1, "-npfp", 1, "--verify_dataset_integrity")
    command("nnUNetv2_plan_and_preprocess", *plan, **folders, nnUNet_n_proc_DA="1")
    plans = Path(folders["nnUNet_preprocessed"]) / dataset / "nnUNetPlans.json"
    content = json.loads(plans.read_text())
    content["configurations"]["2d"]["batch_size"] = batch_size
    if network is not None:
        content["configurations"]["2d"]["architecture"] = network
    plans.write_text(json.dumps(content))
    command("nnUNetv2_train", number, "2d", 0, "-tr", trainer, "-device", "cpu", **folders)
    command(
        "nnUNetv2_predict", "-i", raw / "imagesTs", "-o", out / "predicted", "-d", number, "-c", "2d", "-f", 0,
        "-tr", trainer, "-npp", 0, "-nps", 0, "-device", "cpu", "--disable_progress_bar", **folders,
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


def test_enet_learns_the_hippocampus(command: Callable, real: Callable, tmp_path: Path) -> None:
    """150 iterations on 10 cases; both classes well above a constant prediction."""
    dataset, trainer = "Dataset904_Hippocampus", "nnUNetTrainerENet_2epochs_75iters_seed1"
    folders = real(dataset, n_training=10, n_test=3)
    metrics = train_predict_evaluate(command, folders, dataset, trainer, tmp_path)
    dice = metrics[metrics.metric == "dice"].groupby("label").value.mean()
    labels = Path(folders["nnUNet_raw"]) / dataset / "labelsTs"
    print(f"Dice on 904: {dice.to_dict()}")
    for label in (1, 2):
        assert dice[label] > 2 * constant_dice(labels, label)


@pytest.mark.slow
def test_enet_runs_on_head_neck_ct(command: Callable, real: Callable, tmp_path: Path) -> None:
    """A smoke run: the chain holds for anisotropic CT with seven organs."""
    dataset, trainer = "Dataset901_OpenKBPHN", "nnUNetTrainerENet_1epochs_20iters_seed1"
    folders = real(dataset, n_training=5, n_test=1)
    metrics = train_predict_evaluate(command, folders, dataset, trainer, tmp_path)
    assert set(metrics["class"]) == {
        "esophagus", "spinal_cord", "larynx", "brainstem", "mandible", "parotid_left", "parotid_right",
    }  # fmt: skip
    assert metrics[metrics.metric == "dice"].value.dropna().between(0, 1).all()


SMALL = {
    "SAMed": ("samnn.nn.samed.SAMed", "sam", "_full_scratch_4epochs_75iters_seed1"),
    "SAM2UNet": ("samnn.nn.sam2_unet.SAM2UNet", "hiera", "_scratch_structureLoss_2epochs_30iters_seed1"),
}  # method → class, its sizes in the reference, suffixes


@pytest.mark.slow
@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize(
    ("dataset", "n_training", "n_test"), [("Dataset904_Hippocampus", 10, 3), ("Dataset901_OpenKBPHN", 5, 1)]
)
def test_a_small_random_encoder_runs_on_real_volumes(
    command: Callable,
    real: Callable,
    shared: Path,
    tmp_path: Path,
    method: str,
    dataset: str,
    n_training: int,
    n_test: int,
) -> None:
    """Few iterations; only on the hippocampus are they enough to beat a constant prediction."""
    class_name, sizes, suffixes = SMALL[method]
    config = json.loads((shared / "reference" / "config.json").read_text())
    network = {
        "network_class_name": class_name,
        "arch_kwargs": {"architecture": config["sam2unet"][sizes] if sizes == "hiera" else config[sizes]},
        "_kw_requires_import": [],
    }
    folders = real(dataset, n_training=n_training, n_test=n_test)
    trainer = f"nnUNetTrainer{method}{suffixes}"
    metrics = train_predict_evaluate(command, folders, dataset, trainer, tmp_path, network)
    dice = metrics[metrics.metric == "dice"].groupby("label").value.mean()
    print(f"Dice of {method} on {dataset}: {dice.to_dict()}")
    if "Hippocampus" in dataset:
        for label in (1, 2):
            assert dice[label] > 2 * constant_dice(Path(folders["nnUNet_raw"]) / dataset / "labelsTs", label)
    assert dice.dropna().between(0, 1).all()


PLANNED = {
    "2d_enet": "nnUNetTrainerENet_1epochs_10iters_seed1",
    "2d_samed": "nnUNetTrainerSAMed_scratch_1epochs_1iters_seed1",
    "2d_sam2unet": "nnUNetTrainerSAM2UNet_scratch_1epochs_1iters_seed1",
}  # configuration → trainer; ViT-B and the large Hiera with random weights


@pytest.mark.slow
@pytest.mark.parametrize("configuration", PLANNED)
@pytest.mark.parametrize("dataset", ["Dataset904_Hippocampus", "Dataset901_OpenKBPHN"])
def test_a_planned_configuration_runs_on_real_volumes(
    command: Callable, real: Callable, tmp_path: Path, dataset: str, configuration: str
) -> None:
    """Full sizes, as `samnn plan` writes them; nothing is learned, the predictions lie where their images lie."""
    folders, number, trainer = (
        real(dataset, n_training=5, n_test=1),
        int(dataset[7:10]),
        PLANNED[configuration],
    )
    method = configuration.removeprefix("2d_")
    said = command(
        "samnn", "plan", "-d", number, "--preprocess", "--only", method, **folders, nnUNet_n_proc_DA="1"
    )
    print(said.stdout)
    command(
        "nnUNetv2_train", number, configuration, 0, "-p", "samnnPlans", "-tr", trainer, "-device", "cpu", **folders,
    )  # fmt: skip
    images = tmp_path / "raw" / dataset / "imagesTs"
    command(
        "samnn", "predict", "-i", images, "-o", tmp_path / "predicted", "-d", number, "-c", configuration, "-f", 0,
        "-p", "samnnPlans", "-tr", trainer, "-device", "cpu", "--disable_tta", **folders,
    )  # fmt: skip
    (image,) = images.iterdir()
    predicted = tmp_path / "predicted" / image.name.replace("_0000", "")
    assert not read_grid(predicted).differences(read_grid(image))
    assert read_labels(predicted).voxels.max() <= (2 if "Hippocampus" in dataset else 7)

"""nnU-Net's own commands with our trainers: every one a user types, in real processes on tiny data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from samnn.io import read_labels

ENET, UNET = "nnUNetTrainerENet_2epochs_10iters_seed1", "nnUNetTrainerUNet_2epochs_10iters_seed1"
CPU = ("-device", "cpu")


def model(results: Path, trainer: str, dataset: str = "Dataset501_Tiny") -> Path:
    return results / dataset / f"{trainer}__nnUNetPlans__2d"


@pytest.fixture(scope="module")
def trained(nnunet: SimpleNamespace, command: Callable) -> SimpleNamespace:
    """Fold 0 of both trainers, with probabilities."""
    for trainer in (ENET, UNET):
        command("nnUNetv2_train", 501, "2d", 0, "-tr", trainer, "--npz", *CPU)
    return nnunet


@pytest.fixture(scope="module")
def predicted(
    trained: SimpleNamespace, command: Callable, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The test cases predicted by both, with probabilities."""
    folders = {}
    for trainer in (ENET, UNET):
        folders[trainer] = tmp_path_factory.mktemp("predicted")
        images = trained.raw / "Dataset501_Tiny" / "imagesTs"
        command(
            "nnUNetv2_predict", "-i", images, "-o", folders[trainer], "-d", 501, "-c", "2d", "-f", 0, "-tr", trainer,
            "-npp", 1, "-nps", 1, "--save_probabilities", "--disable_progress_bar", *CPU,
        )  # fmt: skip
    return folders


def label_files(folder: Path) -> dict[str, bytes]:
    return {path.name: read_labels(path).voxels.tobytes() for path in sorted(folder.glob("*.nii.gz"))}


def test_training_validates_with_probabilities_and_writes_its_settings(trained: SimpleNamespace) -> None:
    for trainer in (ENET, UNET):
        fold = model(trained.results, trainer) / "fold_0"
        assert {p.name for p in fold.glob("*.pth")} == {"checkpoint_final.pth", "checkpoint_best.pth"}
        assert len(list((fold / "validation").glob("*.npz"))) == 2
        settings = json.loads((fold / "settings.json").read_text())
        assert settings["trainer"] == trainer
        assert settings["settings"]["epochs"] == {"value": 2, "source": "suffix _2epochs"}
        assert settings["settings"]["seed"] == {"value": 1, "source": "suffix _seed1"}
        assert settings["parameters"]["trainable"] == settings["parameters"]["total"] > 100_000
        log = next(fold.glob("training_log*.txt")).read_text()
        assert "iterations_per_epoch: 10  (suffix _10iters)" in log
    assert settings["settings"]["learning_rate"] == {"value": 1e-2, "source": "nnU-Net default"}


@pytest.mark.slow
def test_val_repeats_the_validation(trained: SimpleNamespace, command: Callable) -> None:
    validation = model(trained.results, ENET) / "fold_0" / "validation"
    before = label_files(validation)
    for path in validation.glob("*.nii.gz"):
        path.unlink()
    command("nnUNetv2_train", 501, "2d", 0, "-tr", ENET, "--val", *CPU)
    assert label_files(validation) == before


def test_prediction_keeps_the_grid_and_ensembles(
    trained: SimpleNamespace, predicted: dict, command: Callable, tmp_path: Path
) -> None:
    for folder in predicted.values():
        for path in folder.glob("*.nii.gz"):
            reference = read_labels(trained.raw / "Dataset501_Tiny" / "labelsTs" / path.name)
            assert not read_labels(path).grid.differences(reference.grid)
    command("nnUNetv2_ensemble", "-i", *predicted.values(), "-o", tmp_path, "-np", 1)
    assert set(label_files(tmp_path)) == {"case_6.nii.gz", "case_7.nii.gz"}


def test_validation_predicts_as_samnn_predict_does(
    trained: SimpleNamespace, command: Callable, tmp_path: Path
) -> None:
    validation = model(trained.results, ENET) / "fold_0" / "validation"
    images = tmp_path / "images"
    images.mkdir()
    for saved in validation.glob("*.npz"):
        image = f"{saved.stem}_0000.nii.gz"
        shutil.copyfile(trained.raw / "Dataset501_Tiny" / "imagesTr" / image, images / image)
    command(
        "samnn", "predict", "-i", images, "-o", tmp_path / "out", "-d", 501, "-c", "2d", "-f", 0, "-tr", ENET,
        "--save-probabilities", *CPU,
    )  # fmt: skip
    assert label_files(tmp_path / "out") == label_files(validation)
    for saved in validation.glob("*.npz"):
        again = np.load(tmp_path / "out" / saved.name)["probabilities"]
        assert np.abs(again - np.load(saved)["probabilities"]).max() < 1e-5


@pytest.mark.slow
def test_find_best_configuration_compares_our_trainers(trained: SimpleNamespace, command: Callable) -> None:
    command("nnUNetv2_find_best_configuration", 501, "-c", "2d", "-tr", ENET, UNET, "-f", 0, "-np", 1)
    found = json.loads((trained.results / "Dataset501_Tiny" / "inference_information.json").read_text())
    names = set(found["all_results"])
    assert {f"{ENET}__nnUNetPlans__2d", f"{UNET}__nnUNetPlans__2d"} < names  # and their ensemble


def test_a_model_travels_as_nnunets_zip(
    trained: SimpleNamespace, predicted: dict, command: Callable, tmp_path: Path
) -> None:
    archive, elsewhere, out = tmp_path / "model.zip", tmp_path / "results", tmp_path / "out"
    elsewhere.mkdir()
    command("nnUNetv2_export_model_to_zip", "-d", 501, "-o", archive, "-c", "2d", "-tr", ENET, "-f", 0)
    command("nnUNetv2_install_pretrained_model_from_zip", archive, nnUNet_results=str(elsewhere))
    images = trained.raw / "Dataset501_Tiny" / "imagesTs"
    command(
        "nnUNetv2_predict_from_modelfolder", "-i", images, "-o", out, "-m", model(elsewhere, ENET), "-f", 0,
        "-npp", 1, "-nps", 1, "--disable_progress_bar", *CPU,
    )  # fmt: skip
    assert label_files(out) == label_files(predicted[ENET])


@pytest.mark.slow
def test_c_after_the_end_leaves_the_weights(
    trained: SimpleNamespace, command: Callable, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    shutil.copytree(trained.results, results)
    final = model(results, ENET) / "fold_0" / "checkpoint_final.pth"
    before = torch.load(final, weights_only=False)["network_weights"]
    command("nnUNetv2_train", 501, "2d", 0, "-tr", ENET, "--c", *CPU, nnUNet_results=str(results))
    after = torch.load(final, weights_only=False)["network_weights"]
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_pretrained_weights_fill_all_but_the_layers_that_depend_on_the_classes(
    trained: SimpleNamespace, make_trainer: Callable
) -> None:
    """502 has two regions where 501 has three classes; nnU-Net demands every other key and shape."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    for name in (ENET, UNET):
        checkpoint = model(trained.results, name) / "fold_0" / "checkpoint_final.pth"
        trainer = make_trainer(name, dataset="502")
        trainer.initialize()
        load_pretrained_weights(trainer.network, str(checkpoint))
        given = torch.load(checkpoint, weights_only=False)["network_weights"]
        own = trainer.network.state_dict()
        same = (
            {key for key in own if torch.equal(own[key].cpu(), given[key])}
            if own.keys() == given.keys()
            else set()
        )
        assert own.keys() - same == {key for key in own if ".seg_layers." in key}


@pytest.mark.slow
def test_pretrained_weights_option_trains(trained: SimpleNamespace, command: Callable) -> None:
    checkpoint = model(trained.results, ENET) / "fold_0" / "checkpoint_final.pth"
    name = "nnUNetTrainerENet_1epochs_2iters_seed2"
    done = command("nnUNetv2_train", 501, "2d", 1, "-tr", name, "-pretrained_weights", checkpoint, *CPU)
    assert "Loading pretrained weights from file" in done.stdout


def test_regions_and_the_ignore_label_train_and_predict(
    nnunet: SimpleNamespace, command: Callable, tmp_path: Path
) -> None:
    """Only the lower slices are labelled; the upper ones carry the ignore label."""
    name = "nnUNetTrainerENet_2epochs_10iters_seed1"
    command("nnUNetv2_train", 502, "2d", 0, "-tr", name, *CPU)
    images = nnunet.raw / "Dataset502_TinyRegions" / "imagesTs"
    command(
        "nnUNetv2_predict", "-i", images, "-o", tmp_path, "-d", 502, "-c", "2d", "-f", 0, "-tr", name,
        "-npp", 1, "-nps", 1, "--disable_progress_bar", *CPU,
    )  # fmt: skip
    for path in tmp_path.glob("*.nii.gz"):
        assert set(np.unique(read_labels(path).voxels)) <= {0, 1, 2}
    losses = torch.load(
        model(nnunet.results, name, "Dataset502_TinyRegions") / "fold_0" / "checkpoint_final.pth",
        weights_only=False,
    )["logging"]["train_losses"]
    assert losses[1] < losses[0]


def test_a_wrong_suffix_stops_the_stock_command_with_our_message(
    nnunet: SimpleNamespace, command: Callable
) -> None:
    done = command("nnUNetv2_train", 501, "2d", 0, "-tr", "nnUNetTrainerENet_10epoch", *CPU, ok=False)
    assert done.returncode != 0
    assert "unknown suffix _10epoch. nnUNetTrainerENet takes, in this order:" in done.stderr


def test_evaluate_reads_the_results_folder(
    trained: SimpleNamespace, command: Callable, tmp_path: Path
) -> None:
    command("samnn", "evaluate", model(trained.results, ENET), "-o", tmp_path)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "case,label,class,metric,value,unit"
    assert len(lines) == 1 + 2 * 2 * 13  # cases, classes, metrics

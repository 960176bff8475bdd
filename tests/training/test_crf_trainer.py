"""_CRF and _CRFfinetune: any network with a CRF behind it, by nnU-Net's own commands."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from samnn.errors import SamnnError
from samnn.io import read_labels
from samnn.nn.crf import MeanFieldCRF
from samnn.nn.crf_head import crf_of

JOINT = "nnUNetTrainerENet_CRF_2epochs_4iters_seed1"
BASE = "nnUNetTrainerENet_2epochs_2iters_seed1"
FINETUNE = "nnUNetTrainerENet_CRFfinetune_2epochs_2iters_seed1"
CRF_KEYS = {f"crf.seg_layers.{name}" for name in ("smoothness_weight", "inv_smoothness_theta", "has_regions")}


def fold_of(nnunet: SimpleNamespace, name: str, dataset: str = "Dataset501_Tiny") -> Path:
    return nnunet.results / dataset / f"{name}__nnUNetPlans__2d" / "fold_0"


def weights_in(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, map_location="cpu", weights_only=False)["network_weights"]


def without_crf(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if name not in CRF_KEYS}


@pytest.fixture(scope="module")
def base(nnunet: SimpleNamespace) -> Path:
    """The last checkpoint of the finished fold that fine-tuning starts from."""
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args("501", "2d", 0, BASE, device=torch.device("cpu"))
    trainer.run_training()
    return fold_of(nnunet, BASE) / "checkpoint_final.pth"


# ---- together


def test_the_stock_commands_train_and_predict_with_a_crf(
    nnunet: SimpleNamespace, command: Callable, make_trainer: Callable, tmp_path: Path
) -> None:
    command("nnUNetv2_train", 501, "2d", 0, "-tr", JOINT, "-device", "cpu")
    fold = fold_of(nnunet, JOINT)
    plain = make_trainer("nnUNetTrainerENet")
    plain.initialize()
    learned = weights_in(fold / "checkpoint_final.pth")
    assert learned.keys() == plain.network.state_dict().keys() | CRF_KEYS
    assert learned["crf.seg_layers.smoothness_weight"] != 1  # its start
    log = next(fold.glob("training_log*.txt")).read_text()
    assert (
        len(re.findall(r"CRF: smoothness_weight \d\.\d{4}, smoothness_theta_mm \d\.\d{4} x \d\.\d{4}", log))
        == 2
    )
    settings = json.loads((fold / "settings.json").read_text())["settings"]
    assert settings["crf_kernel"] == {"value": "crfseg", "source": "suffix _CRF"}
    assert settings["crf_parameters"]["value"] == {"smoothness_weight": 1, "smoothness_theta_mm": [1, 1]}
    assert settings["crf_spacing_mm"]["value"] == [1, 1]

    images = nnunet.raw / "Dataset501_Tiny" / "imagesTs"
    command(
        "nnUNetv2_predict", "-i", images, "-o", tmp_path, "-d", 501, "-c", "2d", "-f", 0, "-tr", JOINT,
        "-npp", 0, "-nps", 0, "--disable_progress_bar", "-device", "cpu",
    )  # fmt: skip
    for name in ("case_6.nii.gz", "case_7.nii.gz"):
        reference = read_labels(nnunet.raw / "Dataset501_Tiny" / "labelsTs" / name)
        assert not read_labels(tmp_path / name).grid.differences(reference.grid)


@pytest.mark.parametrize(
    ("name", "configuration"),
    [("nnUNetTrainerUNet", "2d"), ("nnUNetTrainerUNet", "3d_fullres"), ("nnUNetTrainerENet", "2d")],
)
def test_the_crf_refines_the_main_output_of_the_same_network(
    make_trainer: Callable, name: str, configuration: str
) -> None:
    plain = make_trainer(f"{name}_seed0", configuration=configuration)
    trainer = make_trainer(f"{name}_CRF_seed0", configuration=configuration)
    plain.initialize(), trainer.on_train_start()
    assert type(trainer.network) is type(plain.network)
    assert trainer.network.state_dict().keys() == plain.network.state_dict().keys() | CRF_KEYS
    assert trainer.network.decoder.deep_supervision is trainer.enable_deep_supervision

    plain.network.load_state_dict(without_crf(trainer.network.state_dict()))
    plain.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    plain.network.eval(), trainer.network.eval()
    image = torch.randn(2, 1, *trainer.configuration_manager.patch_size)
    with torch.no_grad():
        inner, refined = plain.network(image), trainer.network(image)
    spacing = trainer.configuration_manager.spacing
    crf = MeanFieldCRF(len(spacing), smoothness_theta=spacing)
    if trainer.enable_deep_supervision:
        assert all(torch.equal(a, b) for a, b in zip(inner[1:], refined[1:], strict=True))
        inner, refined = inner[0], refined[0]
    torch.testing.assert_close(refined, crf(inner, spacing))

    trainer.on_train_epoch_start()
    before = [p.detach().clone() for p in trainer.crf.parameters()]
    trainer.train_step(next(trainer.dataloader_train))
    assert all((a != b).any() for a, b in zip(before, trainer.crf.parameters(), strict=True))


def test_regions_are_known_to_a_network_built_for_prediction(make_trainer: Callable) -> None:
    trainer = make_trainer("nnUNetTrainerENet_CRF_seed0", dataset="502")
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    assert trainer.crf.regions
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    built = type(trainer).build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 2, enable_deep_supervision=False
    )
    built.load_state_dict(trainer.network.state_dict())
    image = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    torch.testing.assert_close(built.eval()(image), trainer.network.eval()(image), rtol=0, atol=0)
    assert crf_of(built).regions


def test_a_trainer_of_ones_own_can_switch_on_the_appearance_term(make_trainer: Callable) -> None:
    trainer = make_trainer("nnUNetTrainerENet_CRF_seed0")
    type(trainer).crf_appearance_weight, type(trainer).crf_kernel = 1.0, "dense"
    trainer.on_train_start(), trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    assert {"appearance_weight", "appearance_theta_mm", "intensity_theta"} < trainer.crf.learned().keys()
    assert trainer.crf.learned()["appearance_weight"] != 1
    assert trainer.settings()["crf_intensity"]["value"] == 0.5


@pytest.mark.slow
def test_stopped_and_continued_equals_undisturbed(make_trainer: Callable, base: Path) -> None:
    whole = make_trainer(FINETUNE)
    whole.run_training()
    stopped = make_trainer(FINETUNE)
    step = stopped.train_step

    def with_signal(batch: dict) -> dict:
        if stopped.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    stopped.train_step = with_signal
    with pytest.raises(SystemExit):
        stopped.run_training()
    resumed = make_trainer(FINETUNE)
    resumed.load_checkpoint(str(Path(stopped.output_folder) / "checkpoint_latest.pth"))
    resumed.run_training()
    log, expected = resumed.logger.get_checkpoint(), whole.logger.get_checkpoint()
    assert log["train_losses"] == expected["train_losses"]
    assert resumed.crf.learned() == whole.crf.learned()


# ---- afterwards


def test_fine_tuning_changes_the_crf_and_the_last_layer_alone(
    nnunet: SimpleNamespace, base: Path, make_trainer: Callable
) -> None:
    trainer = make_trainer(FINETUNE)
    trainer.run_training()
    before, after = weights_in(base), weights_in(fold_of(nnunet, FINETUNE) / "checkpoint_final.pth")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        "decoder.seg_layers.0.weight",
        "decoder.seg_layers.0.bias",
    }  # no batch norm's statistics
    assert after["crf.seg_layers.smoothness_weight"] != 1
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert len(optimised) == 4
    settings = json.loads((fold_of(nnunet, FINETUNE) / "settings.json").read_text())
    assert settings["settings"]["started_from"]["value"] == str(base)
    assert settings["parameters"]["trainable"] == 3 * 16 + 3 + 1 + 2


def test_without_a_finished_fold_fine_tuning_stops_with_the_command(
    base: Path, make_trainer: Callable
) -> None:
    trainer = make_trainer("nnUNetTrainerENet_CRFfinetune_7epochs")
    with pytest.raises(
        SamnnError, match="nnUNetv2_train Dataset501_Tiny 2d 0 -tr nnUNetTrainerENet_7epochs"
    ) as error:
        trainer.run_training()
    assert f"{base}" in str(error.value)  # one that is there


@pytest.mark.parametrize(
    "name", ["nnUNetTrainerENet_CRFfinetune_1epochs_1iters_seed2", "nnUNetTrainerENet_CRF_seed2"]
)
def test_pretrained_weights_without_a_crf_are_taken(base: Path, make_trainer: Callable, name: str) -> None:
    """nnU-Net's loader leaves the segmentation layers out; fine-tuning takes them, too."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    trainer = make_trainer(name)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(base))
    trainer.on_train_start()
    given, own = weights_in(base), trainer.network.state_dict()
    differing = {key for key in given if not torch.equal(given[key], own[key])}
    if "finetune" in name:
        assert not differing
        assert trainer.settings()["started_from"]["value"] == str(base)
    else:
        assert differing == {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}


def test_weights_of_other_classes_are_refused(base: Path, make_trainer: Callable) -> None:
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    trainer = make_trainer("nnUNetTrainerENet_CRFfinetune_seed2", dataset="502")
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(base))
    with pytest.raises(SamnnError, match="does not fit the network of nnUNetTrainerENet_CRFfinetune_seed2"):
        trainer.on_train_start()


def test_the_stock_network_keeps_its_last_segmentation_layer_trainable(make_trainer: Callable) -> None:
    """Of its several, that of the main output; a declared `output_layers` comes first."""
    trainer = make_trainer("nnUNetTrainerUNet_CRFfinetune")
    trainer.initialize()
    trained = {name for name, p in trainer.network.named_parameters() if p.requires_grad}
    last = len(trainer.network.decoder.seg_layers) - 1
    layer = {f"decoder.seg_layers.{last}.{kind}" for kind in ("weight", "bias")}
    assert trained == layer | {key for key in CRF_KEYS if "regions" not in key}
    trainer.network.output_layers = [trainer.network.decoder.seg_layers[0]]
    trainer.configure_optimizers()
    trained = {name for name, p in trainer.network.named_parameters() if p.requires_grad}
    assert {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"} < trained and not layer & trained


def test_both_suffixes_together_are_refused() -> None:
    from samnn.plugins import trainer_unet

    with pytest.raises(SamnnError, match="_CRF and _CRFfinetune exclude each other"):
        _ = trainer_unet.nnUNetTrainerUNet_CRF_CRFfinetune

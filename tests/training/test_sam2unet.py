"""nnUNetTrainerSAM2UNet under nnU-Net's own commands, with a tiny trunk: what it trains, writes, needs and predicts."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from samnn.errors import SamnnError
from samnn.io import read_labels
from samnn.nn.sam2_unet import SAM2UNet
from samnn.plugins import trainer_sam2unet
from samnn.training.pretrained import RECORD
from samnn.training.structure_loss import StructureLoss

NAME = "nnUNetTrainerSAM2UNet_lean_2epochs_4iters_seed1"
PLANS, CONFIGURATION = "tinySAM2Plans", "2d_sam2unet"
CPU = ("-device", "cpu")


@pytest.fixture(scope="module")
def trunk_file(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own file: a tiny trunk with random weights in Meta's layout."""
    source = shared / "reference" / "sam2_hiera_tiny_trunk.pt"
    return Path(shutil.copy(source, tmp_path_factory.mktemp("own") / "trunk.pt"))


@pytest.fixture(scope="module")
def plans(nnunet: SimpleNamespace, shared: Path, trunk_file: Path) -> str:
    """Plans of 501 and 502 whose configuration 2d_sam2unet names the architecture of that trunk, and its file."""
    sizes = json.loads((shared / "reference" / "config.json").read_text())["sam2unet"]["hiera"]
    for folder in nnunet.preprocessed.glob("Dataset50[12]_*"):
        content = json.loads((folder / "nnUNetPlans.json").read_text()) | {"plans_name": PLANS}
        content["configurations"][CONFIGURATION] = {
            "inherits_from": "2d",
            "batch_size": 3,
            "architecture": architecture({"architecture": sizes}),
            "pretrained_weights": str(trunk_file),
        }
        (folder / f"{PLANS}.json").write_text(json.dumps(content))
    return PLANS


def architecture(arguments: dict) -> dict:
    return {
        "network_class_name": "samnn.nn.sam2_unet.SAM2UNet",
        "arch_kwargs": arguments,
        "_kw_requires_import": [],
    }


def model_in(results: Path) -> Path:
    return results / "Dataset501_Tiny" / f"{NAME}__{PLANS}__{CONFIGURATION}"


def read(checkpoint: Path) -> dict:
    return torch.load(checkpoint, map_location="cpu", weights_only=False)


@pytest.fixture(scope="module")
def trained(nnunet: SimpleNamespace, plans: str, command: Callable) -> Path:
    """The results of a whole training of fold 0 by nnU-Net's command, its validation of 3D volumes included."""
    command("nnUNetv2_train", 501, CONFIGURATION, 0, "-p", plans, "-tr", NAME, *CPU)
    return nnunet.results


# ---- what is written


def test_finished_checkpoints_hold_all_but_the_trunk_and_the_optimizer(trained: Path) -> None:
    weights = read(model_in(trained) / "fold_0" / "checkpoint_final.pth")
    state = weights["network_weights"]
    record = state.pop(RECORD)
    sizes = json.loads((model_in(trained) / "plans.json").read_text())["configurations"][CONFIGURATION]
    network = SAM2UNet(1, 3, **sizes["architecture"]["arch_kwargs"])
    left_out = network.state_dict().keys() - state.keys()
    assert left_out == {name for name in network.state_dict() if name.startswith("encoder.trunk.")}
    assert set(record["tensors"]) == left_out
    assert not weights["optimizer_state"]["state"]


def test_what_a_checkpoint_of_the_large_trunk_keeps_is_below_25_mb() -> None:
    with torch.device("meta"):
        network = SAM2UNet(1, 5, backbone="sam2_hiera_l")
    kept = [v for name, v in network.state_dict().items() if not name.startswith("encoder.trunk.")]
    assert 10e6 < sum(value.numel() * value.element_size() for value in kept) < 24e6


def test_the_log_and_the_settings_name_the_sources(trained: Path, trunk_file: Path) -> None:
    fold = model_in(trained) / "fold_0"
    settings = json.loads((fold / "settings.json").read_text())["settings"]
    assert settings["weights"]["value"] == str(trunk_file)
    assert settings["schedule"]["value"] == "CosinePerEpoch"
    assert settings["deep_supervision"] == {"value": True, "source": "default of nnUNetTrainerSAM2UNet"}
    assert f"Loaded {trunk_file}" in next(fold.glob("training_log*.txt")).read_text()


@pytest.mark.slow
def test_an_export_predicts_the_same_without_weights_and_without_our_trainers(
    trained: Path, trunk_file: Path, nnunet: SimpleNamespace, command: Callable, tmp_path: Path
) -> None:
    from samnn.training.export import export

    images = nnunet.raw / "Dataset501_Tiny" / "imagesTs"
    fixed = ("-d", 501, "-c", CONFIGURATION, "-f", 0, "-npp", 0, "-nps", 0, "--disable_progress_bar", *CPU)
    command("nnUNetv2_predict", "-i", images, "-o", tmp_path / "a", "-p", PLANS, "-tr", NAME, *fixed)
    export(model_in(trained), tmp_path / "out")
    hidden = trunk_file.rename(trunk_file.with_name("hidden.pt"))
    try:
        command(
            "nnUNetv2_predict", "-i", images, "-o", tmp_path / "b", "-p", f"{NAME}_{PLANS}", *fixed,
            nnUNet_extTrainer="", nnUNet_results=str(tmp_path / "out"),
        )  # fmt: skip
    finally:
        hidden.rename(trunk_file)
    names = sorted(path.name for path in (tmp_path / "a").glob("*.nii.gz"))
    assert len(names) == 2
    for name in names:
        ours, theirs = (read_labels(tmp_path / folder / name).voxels for folder in "ab")
        assert np.array_equal(ours, theirs) and ours.ndim == 3


# ---- how it trains


def run(make_trainer: Callable, name: str, folder: Path, **where: str) -> object:
    trainer = make_trainer(name, configuration=CONFIGURATION, plans=PLANS, **where)
    trainer.output_folder = str(folder)
    folder.mkdir(exist_ok=True)
    trainer.run_training()
    return trainer


@pytest.mark.slow
def test_stopped_and_continued_equals_one_go(trained: Path, make_trainer: Callable, tmp_path: Path) -> None:
    """Stopped by a signal after six of eight iterations."""
    trainer = make_trainer(NAME, configuration=CONFIGURATION, plans=PLANS)
    trainer.output_folder = str(tmp_path)
    step, done = trainer.train_step, []

    def signalled(batch: dict) -> dict:
        done.append(step(batch))
        if len(done) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        return done[-1]

    trainer.train_step = signalled
    with pytest.raises(SystemExit):
        trainer.run_training()
    other = make_trainer(NAME, configuration=CONFIGURATION, plans=PLANS)
    other.output_folder = str(tmp_path)
    other.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    other.run_training()
    whole, continued = (
        read(folder / "checkpoint_final.pth") for folder in (model_in(trained) / "fold_0", tmp_path)
    )
    for key in ("train_losses", "val_losses", "lrs"):
        assert continued["logging"][key] == whole["logging"][key], key
    for key, value in whole["network_weights"].items():
        assert key == RECORD or torch.equal(value, continued["network_weights"][key]), key


@pytest.mark.parametrize("option", ["structureLoss", "structureLossUnweightedBCE"])
def test_regions_with_an_ignore_label_train_from_random_weights(
    plans: str, make_trainer: Callable, tmp_path: Path, option: str
) -> None:
    name = f"nnUNetTrainerSAM2UNet_scratch_{option}_1epochs_3iters_seed1"
    trainer = run(make_trainer, name, tmp_path / option, dataset="502")
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
    assert trainer.loss.loss.regions and trainer.loss.loss.ignore_label == 3
    assert trainer.loss.loss.weighted_bce == (option == "structureLoss")
    settings = json.loads((tmp_path / option / "settings.json").read_text())["settings"]
    assert settings["loss"] == {"value": "StructureLoss", "source": f"suffix _{option}"}
    assert (
        read(tmp_path / option / "checkpoint_final.pth")["network_weights"].keys()
        == trainer.network.state_dict().keys()
    )


def test_the_recipe_is_the_published_one(plans: str, make_trainer: Callable) -> None:
    trainer = make_trainer("nnUNetTrainerSAM2UNet_20epochs_10iters", configuration=CONFIGURATION, plans=plans)
    trainer.initialize()
    assert type(trainer.optimizer) is torch.optim.AdamW
    (group,) = trainer.optimizer.param_groups
    assert group["weight_decay"] == 5e-4
    assert [id(p) for p in group["params"]] == [
        id(p) for p in trainer.network.parameters() if p.requires_grad
    ]
    published = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], 1e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(published, 20, eta_min=1e-7)
    for epoch in range(20):
        for iteration in (0, 9):
            assert trainer.lr_scheduler.lr(10 * epoch + iteration) == pytest.approx(cosine.get_last_lr()[0])
        published.step()
        cosine.step()


def test_the_loss_is_the_sum_over_three_outputs_at_full_resolution(
    plans: str, make_trainer: Callable
) -> None:
    trainer = make_trainer("nnUNetTrainerSAM2UNet_scratch", configuration=CONFIGURATION, plans=plans)
    trainer.initialize()
    assert isinstance(trainer.loss, DeepSupervisionWrapper)
    height, width = trainer.configuration_manager.patch_size
    outputs = trainer.network(torch.randn(2, 1, height, width))
    assert [tuple(o.shape) for o in outputs] == [(2, 3, height, width)] * 3
    target = torch.randint(0, 3, (2, 1, height, width)).float()
    each = [trainer.loss.loss(output, target) for output in outputs]
    assert float(trainer.loss(outputs, [target] * 3)) == pytest.approx(float(sum(each)), rel=1e-6)
    assert trainer._get_deep_supervision_scales() == [[1.0, 1.0]] * 3


# ---- names


def stock_plans(nnunet: SimpleNamespace, fixed: dict | None = None) -> PlansManager:
    content = json.loads((nnunet.preprocessed / "Dataset501_Tiny" / "nnUNetPlans.json").read_text())
    if fixed is not None:
        content["configurations"]["2d"]["architecture"] = architecture(fixed)
    return PlansManager(content)


def test_suffixes_choose_trunk_and_weights_where_plans_leave_them_open(nnunet: SimpleNamespace) -> None:
    open_plans = stock_plans(nnunet)
    for suffix, trunk in [
        ("seed0", "sam2_hiera_l"),
        ("tiny", "sam2_hiera_t"),
        ("small", "sam2_hiera_s"),
        ("base", "sam2_hiera_b+"),
        ("large", "sam2_hiera_l"),
    ]:
        trainer = getattr(trainer_sam2unet, f"nnUNetTrainerSAM2UNet_{suffix}")
        trainer.check(open_plans, "2d")
        assert trainer.needed_weights(open_plans, "2d") == trunk
        assert trainer.architecture(open_plans.get_configuration("2d"))["arch_kwargs"] == {"backbone": trunk}


@pytest.mark.parametrize(
    ("suffixes", "message"),
    [
        ("tiny_large", "exclude each other"),
        ("structureLoss_structureLossUnweightedBCE", "exclude each other"),
        ("structureLoss_GDL", "exclude each other"),
        ("scratch_lean", "_scratch trains from random weights"),
        ("tiny_structureLoss_huge", "unknown suffix _huge"),
    ],
)
def test_suffixes_that_contradict_each_other_are_refused(
    nnunet: SimpleNamespace, suffixes: str, message: str
) -> None:
    with pytest.raises(SamnnError, match=message):
        getattr(trainer_sam2unet, f"nnUNetTrainerSAM2UNet_{suffixes}").check(stock_plans(nnunet), "2d")


def test_a_suffix_that_contradicts_the_plans_is_refused(nnunet: SimpleNamespace) -> None:
    with pytest.raises(SamnnError, match="plans fix backbone sam2_hiera_s"):
        trainer_sam2unet.nnUNetTrainerSAM2UNet_tiny.check(
            stock_plans(nnunet, {"backbone": "sam2_hiera_s"}), "2d"
        )


def test_without_weights_training_stops_with_the_command_that_gets_them(
    nnunet: SimpleNamespace, make_trainer: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMNN_WEIGHTS", str(tmp_path))
    with pytest.raises(SamnnError, match="samnn weights get sam2_hiera_t"):
        make_trainer("nnUNetTrainerSAM2UNet_tiny_1epochs_1iters").run_training()


def test_the_structure_loss_takes_the_place_of_nnunets(plans: str, make_trainer: Callable) -> None:
    trainer = make_trainer(
        "nnUNetTrainerSAM2UNet_scratch_structureLoss", configuration=CONFIGURATION, plans=plans
    )
    trainer.initialize()
    assert isinstance(trainer.loss.loss, StructureLoss) and trainer.loss.weight_factors == (1.0, 1.0, 1.0)

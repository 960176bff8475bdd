"""The optimisation step: micro-batches, the guard, precision, parameter groups."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from samnn import hardware
from samnn.errors import SamnnError
from samnn.training.randomness import seed_all


def started(make_trainer: Callable, name: str, **kwargs: object) -> object:
    trainer = make_trainer(name, **kwargs)
    trainer.on_train_start()
    return trainer


def gradient(trainer: object, batch: dict, size: int | None) -> tuple[float, torch.Tensor]:
    trainer.optimizer.zero_grad()
    trainer.effective_micro_batch = size
    seed_all(3)
    loss = trainer.backward(batch["data"], batch["target"])
    flat = [p.grad.flatten() for p in trainer.network.parameters() if p.grad is not None]
    return float(loss), torch.cat(flat)


@pytest.mark.parametrize("dataset", ["501", "502"])
def test_a_split_batch_gives_the_whole_batchs_loss_and_gradient(make_trainer: Callable, dataset: str) -> None:
    """With deep supervision, Dice over the batch, regions and the ignore label: nothing of it is a sum over samples."""
    trainer = started(make_trainer, "nnUNetTrainerUNet_seed0", dataset=dataset)
    trainer.network.double()
    batch = next(trainer.dataloader_train)
    batch["data"] = batch["data"].double()
    loss, whole = gradient(trainer, batch, None)
    for size in (1, 3):
        split_loss, split = gradient(trainer, batch, size)
        assert split_loss == pytest.approx(loss, rel=1e-6)
        assert (split - whole).norm() < 1e-5 * whole.norm()


def test_splitting_repeats_dropout_and_leaves_batch_statistics_as_one_pass_would(
    make_trainer: Callable,
) -> None:
    trainer = started(make_trainer, "nnUNetTrainerENet_seed0")
    batch = next(trainer.dataloader_train)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items() if "num_batches" in k}
    gradient(trainer, batch, 1)
    after = trainer.network.state_dict()
    assert all(after[k] == v + len(batch["data"]) for k, v in before.items())
    first, second = gradient(trainer, batch, 2), gradient(trainer, batch, 2)
    assert torch.equal(first[1], second[1])


def test_the_micro_batch_follows_free_memory(make_trainer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = started(make_trainer, "nnUNetTrainerENet_seed0")
    pair = torch.zeros(2, 1, *trainer.configuration_manager.patch_size)
    per_sample = hardware.saved_activation_bytes(trainer.network, pair)  # a little less or more: dropout
    assert trainer.choose_micro_batch() is None  # gigabytes are free here
    monkeypatch.setattr(hardware, "free_memory_bytes", lambda device: int(2.6 * per_sample))
    assert trainer.choose_micro_batch() == 2
    monkeypatch.setattr(hardware, "free_memory_bytes", lambda device: 0)
    assert trainer.choose_micro_batch() == 1


def test_measured_activations_are_those_a_linear_layer_keeps() -> None:
    """A linear layer keeps its input, (8, 100) floats, and no copy of its weight."""
    layer = torch.nn.Linear(100, 50)
    assert hardware.saved_activation_bytes(layer, torch.zeros(8, 100)) == 8 * 100 * 4


def test_a_step_that_is_not_finite_changes_no_weight(make_trainer: Callable) -> None:
    trainer = started(make_trainer, "nnUNetTrainerUNet_seed0")
    trainer.on_epoch_start(), trainer.on_train_epoch_start()
    good, bad = next(trainer.dataloader_train), next(trainer.dataloader_train)
    bad["data"][0, 0, 0, 0] = math.nan
    first = trainer.train_step(good)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    outputs = [first, trainer.train_step(bad)]
    assert all(torch.equal(v, before[k]) for k, v in trainer.network.state_dict().items())
    assert (trainer.skipped_in_a_row, trainer.skipped_in_epoch) == (1, 1)
    trainer.on_train_epoch_end(outputs)
    assert trainer.logger.get_value("train_losses", -1) == pytest.approx(float(first["loss"]))
    trainer.train_step(good)
    assert trainer.skipped_in_a_row == 0


def test_many_bad_steps_in_a_row_stop_with_a_cure(make_trainer: Callable) -> None:
    trainer = started(make_trainer, "nnUNetTrainerUNet_seed0")
    trainer.on_train_epoch_start()
    trainer.max_skipped_steps = 3
    bad = next(trainer.dataloader_train)
    bad["data"][:] = math.inf
    trainer.train_step(bad), trainer.train_step(bad)
    with pytest.raises(SamnnError, match=r"3 steps in a row.*not finite.*_fp32"):
        trainer.train_step(bad)


def test_norms_and_biases_are_not_decayed_and_frozen_weights_not_optimised(make_trainer: Callable) -> None:
    trainer = make_trainer("nnUNetTrainerENet")
    trainer.initialize()
    trainer.network.encoder_frozen = None
    frozen = next(p for p in trainer.network.parameters() if p.ndim > 1)
    frozen.requires_grad_(False)
    groups = trainer.build_optimizer().param_groups
    assert [g["weight_decay"] for g in groups] == [1e-4, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"]) and all(p.ndim <= 1 for p in groups[1]["params"])
    ids = {id(p) for g in groups for p in g["params"]}
    assert ids == {id(p) for p in trainer.network.parameters()} - {id(frozen)}


def test_precision_follows_the_hardware(make_trainer: Callable) -> None:
    expected = torch.bfloat16 if hardware.native_bf16(torch.device("cpu")) else None
    assert make_trainer("nnUNetTrainerENet").autocast_dtype() is expected
    assert make_trainer("nnUNetTrainerENet_fp32").autocast_dtype() is None
    assert make_trainer("nnUNetTrainerUNet").autocast_dtype() is None  # nnU-Net's own on a CPU


def test_bf16_steps_are_finite_and_validation_runs_in_them(
    make_trainer: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "native_bf16", lambda device: True)
    trainer = started(make_trainer, "nnUNetTrainerENet_seed0")
    trainer.on_train_epoch_start()
    seen = []
    trainer.network.register_forward_hook(
        lambda module, args, output: seen.append(torch.is_autocast_enabled("cpu"))
    )
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    trainer.network.eval()
    with torch.no_grad():
        assert np.isfinite(trainer.validation_step(next(trainer.dataloader_val))["loss"])
    assert seen == [True, True]


def test_the_generalised_dice_takes_the_place_of_dice(make_trainer: Callable) -> None:
    for name in ("nnUNetTrainerUNet_GDL", "nnUNetTrainerENet_GDL"):
        for dataset in ("501", "502"):
            trainer = started(make_trainer, name, dataset=dataset)
            trainer.on_train_epoch_start()
            assert trainer.settings()["loss"]["value"].endswith("+ GeneralisedDiceLoss")
            assert trainer.settings()["loss"]["source"] == "suffix _GDL"
            assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])


def test_a_2d_network_on_a_3d_configuration_stops_and_names_the_right_one(make_trainer: Callable) -> None:
    with pytest.raises(SamnnError, match=r"takes 2D patches, but configuration 3d_fullres .* Use -c 2d"):
        make_trainer("nnUNetTrainerENet", configuration="3d_fullres")


def test_no_more_threads_than_are_asked_for(make_trainer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    try:
        torch.set_num_threads(2)  # as nnU-Net's command does, whatever the variable says
        make_trainer("nnUNetTrainerENet_seed0")
        assert torch.get_num_threads() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "8")
        assert hardware.cores() == 1  # never more than torch uses
    finally:
        torch.set_num_threads(before)

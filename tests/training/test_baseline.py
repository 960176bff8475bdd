"""nnUNetTrainerUNet without an option is nnU-Net."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from samnn.training.loaders import _fix_timed_choices
from samnn.training.randomness import seed_all


def losses(trainer: object, n_steps: int) -> np.ndarray:
    """Training and validation losses of the first steps from one seed, nnU-Net's timed choices taken out."""
    seed_all(0)
    trainer.initialize()
    trainer.on_train_start()
    _fix_timed_choices(trainer.dataloader_train.data_loader.transforms)
    seed_all(1)
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    training = [trainer.train_step(next(trainer.dataloader_train))["loss"] for _ in range(n_steps)]
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        validation = [trainer.validation_step(next(trainer.dataloader_val))["loss"] for _ in range(2)]
    return np.array(training + validation)


@pytest.mark.parametrize(("dataset", "configuration"), [("501", "2d"), ("501", "3d_fullres"), ("502", "2d")])
def test_losses_equal_nnunets_step_by_step(make_trainer: Callable, dataset: str, configuration: str) -> None:
    """Two classes in 2D and 3D, regions with an ignore label in 2D."""
    stock = make_trainer("nnUNetTrainer", dataset=dataset, configuration=configuration)
    ours = make_trainer("nnUNetTrainerUNet", dataset=dataset, configuration=configuration)
    np.testing.assert_array_equal(losses(ours, 4), losses(stock, 4))


def test_the_recipe_is_nnunets(make_trainer: Callable) -> None:
    stock, ours = make_trainer("nnUNetTrainer"), make_trainer("nnUNetTrainerUNet")
    for name in (
        "num_epochs",
        "num_iterations_per_epoch",
        "num_val_iterations_per_epoch",
        "initial_lr",
        "weight_decay",
    ):
        assert getattr(ours, name) == getattr(stock, name)
    stock.initialize(), ours.initialize()
    assert ours.optimizer.state_dict()["param_groups"] == stock.optimizer.state_dict()["param_groups"]
    assert type(ours.lr_scheduler) is type(stock.lr_scheduler)


def test_iterations_keep_nnunets_ratio_of_validation(make_trainer: Callable) -> None:
    assert make_trainer("nnUNetTrainerUNet_60iters").num_val_iterations_per_epoch == 12
    assert make_trainer("nnUNetTrainerUNet_2iters").num_val_iterations_per_epoch == 1

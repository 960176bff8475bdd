"""Seeded batches depend on the seed and their number, and on nothing else."""

import os
from collections.abc import Callable

import pytest
import torch


def batches(
    make_trainer: Callable, name: str, *, n_workers: int, skip: int = 0, n: int = 5
) -> list[torch.Tensor]:
    os.environ["nnUNet_n_proc_DA"] = str(n_workers)
    try:
        trainer = make_trainer(name)
        trainer.initialize()
        trainer.iteration_in_epoch = skip
        training, validation = trainer.get_dataloaders()
        drawn = [next(training)["data"].clone() for _ in range(n)] + [next(validation)["data"].clone()]
        if n_workers:
            training._finish(), validation._finish()
        return drawn
    finally:
        os.environ["nnUNet_n_proc_DA"] = "0"


def test_the_sequence_is_the_same_for_any_number_of_workers(make_trainer: Callable) -> None:
    alone = batches(make_trainer, "nnUNetTrainerENet_seed4", n_workers=0)
    helped = batches(make_trainer, "nnUNetTrainerENet_seed4", n_workers=2)
    for one, other in zip(alone, helped, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_resumed_loader_starts_where_the_other_stopped(make_trainer: Callable) -> None:
    whole = batches(make_trainer, "nnUNetTrainerENet_seed4", n_workers=0)
    rest = batches(make_trainer, "nnUNetTrainerENet_seed4", n_workers=0, skip=3, n=2)
    assert all(torch.equal(one, other) for one, other in zip(whole[3:5], rest[:2], strict=True))


def test_seeds_batches_and_streams_differ(make_trainer: Callable) -> None:
    four = batches(make_trainer, "nnUNetTrainerENet_seed4", n_workers=0)
    five = batches(make_trainer, "nnUNetTrainerENet_seed5", n_workers=0)
    assert not torch.equal(four[0], five[0])
    assert not torch.equal(four[0], four[1])


def test_a_seed_draws_the_networks_first_weights(make_trainer: Callable) -> None:
    def first_weights(name: str) -> torch.Tensor:
        trainer = make_trainer(name)
        trainer.initialize()
        return next(trainer.network.parameters()).detach().clone()

    assert torch.equal(first_weights("nnUNetTrainerUNet_seed1"), first_weights("nnUNetTrainerUNet_seed1"))
    assert not torch.equal(first_weights("nnUNetTrainerUNet_seed1"), first_weights("nnUNetTrainerUNet_seed2"))


@pytest.mark.parametrize("name", ["nnUNetTrainerENet", "nnUNetTrainerUNet"])
def test_without_a_seed_the_loaders_are_nnunets_own(make_trainer: Callable, name: str) -> None:
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

    trainer = make_trainer(name)
    trainer.initialize()
    assert type(trainer.get_dataloaders()[0].data_loader) is nnUNetDataLoader

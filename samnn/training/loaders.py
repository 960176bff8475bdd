"""Loaders whose batches depend on the seed and their number alone, not on workers or restarts."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from samnn.training.randomness import borrowed_random_state

TRAINING, VALIDATION = 0, 1  # the two streams of a seed


class SeededBatches:
    """Wraps an nnU-Net loader: batch number i is a function of (seed, stream, i).

    Worker w of n makes the batches w, w + n, w + 2n, …, so the sequence is the same for any number of workers, and
    a resumed run starts at any number. The loader finds the epoch that will use a batch in its attribute `epoch`,
    however far ahead of the training its worker is. Lives here, not in a plugin, because spawned workers must
    unpickle it.
    """

    def __init__(
        self, loader: Any, seed: int, stream: int, *, first: int, n_workers: int, batches_per_epoch: int
    ) -> None:
        self.loader = loader
        self.seed = seed
        self.stream = stream
        self.number = first
        self.stride = max(n_workers, 1)
        self.batches_per_epoch = batches_per_epoch

    def set_thread_id(self, thread_id: int) -> None:
        """Called once in each worker process by batchgenerators."""
        torch.set_num_threads(1)
        self.number += thread_id

    def __iter__(self) -> SeededBatches:
        return self

    def __next__(self) -> dict[str, Any]:
        with borrowed_random_state(self.seed, self.stream, self.number):
            self.loader.epoch = self.number // self.batches_per_epoch
            batch = next(self.loader)
        self.number += self.stride
        return batch


class SeededLoaders(nnUNetTrainer):
    """Without a seed nnU-Net's loaders as they are; with one, the same loaders behind `SeededBatches`.

    An option that puts its own training loader in the place of nnU-Net's sets `numbered_batches`: then batches are
    numbered without a seed, too, from one that is drawn at the start and kept in the checkpoint.
    """

    seed: int | None = None
    numbered_batches = False
    loader_seed: int | None = None  # what the batches are drawn from; settled at the start of training

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's hook: the training and the validation loader, workers started."""
        if self.seed is None and not self.numbered_batches:
            return super().get_dataloaders()
        if self.loader_seed is None:
            self.loader_seed = secrets.randbits(63) if self.seed is None else self.seed
        n_workers = get_allowed_n_proc_DA()
        with _environment(
            "nnUNet_n_proc_DA", "0"
        ):  # build nnU-Net's own loaders without starting its workers
            training, validation = super().get_dataloaders()
        done = self.current_epoch * self.num_iterations_per_epoch + self.iteration_in_epoch
        validated = self.current_epoch * self.num_val_iterations_per_epoch
        rank = self.local_rank  # every DDP rank draws its own batches
        return (
            self._start(
                self.training_loader(training.data_loader),
                2 * rank + TRAINING,
                done,
                n_workers,
                self.num_iterations_per_epoch,
            ),
            self._start(
                validation.data_loader,
                2 * rank + VALIDATION,
                validated,
                (n_workers + 1) // 2,
                self.num_val_iterations_per_epoch,
            ),
        )

    def training_loader(self, loader: nnUNetDataLoader) -> nnUNetDataLoader:
        """What draws the training batches; an option puts its own in the place of nnU-Net's."""
        return loader

    def _start(
        self, loader: nnUNetDataLoader, stream: int, first: int, n_workers: int, batches_per_epoch: int
    ) -> Any:
        _fix_timed_choices(loader.transforms)
        batches = SeededBatches(
            loader,
            self.loader_seed,
            stream,
            first=first,
            n_workers=n_workers,
            batches_per_epoch=batches_per_epoch,
        )
        if n_workers == 0:
            return SingleThreadedAugmenter(batches, None)
        return MultiThreadedAugmenter(
            batches,
            None,
            n_workers,
            num_cached_per_queue=2,
            pin_memory=self.device.type == "cuda",
            wait_time=0.002,
        )


def _fix_timed_choices(transform: BasicTransform) -> None:
    """Gaussian blur picks its implementation by timing both; that choice must not depend on the clock."""
    if getattr(transform, "benchmark", False):
        transform.benchmark = False
    for child in [*getattr(transform, "transforms", []), getattr(transform, "transform", None)]:
        if child is not None:
            _fix_timed_choices(child)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

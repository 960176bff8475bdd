"""Training that survives: frequent whole checkpoints, signals, and a continuation that goes on exactly."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from time import time
from types import FrameType
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist

from samnn.atomic import whole_file
from samnn.hardware import kept_memory
from samnn.inference.predictor import bare
from samnn.training.randomness import random_state, set_random_state

FORECAST_AFTER = 50  # iterations


class Resumable(nnUNetTrainer):
    """nnU-Net's run loop with checkpoints that hold everything and can be taken between any two iterations.

    `checkpoint_latest.pth` is written after the first epoch and then after every epoch that ends more than
    `minutes_between_checkpoints` after the last one. SIGTERM writes it at once and stops with exit code 143; SIGUSR1
    (a scheduler's warning) writes it at once and goes on. `--c` continues at the very iteration, with the random
    states of the main process; which batches follow is reproduced where the loader has no workers
    (`nnUNet_n_proc_DA=0`) or a `_seed<N>` is part of the name.
    """

    minutes_between_checkpoints: float = 5.0

    iteration_in_epoch = 0
    stop_signal: int | None = None
    save_requested = False
    _resumed: dict[str, Any] | None = None
    _train_outputs: list[dict[str, Any]]
    _random_state_of_iteration: dict[str, Any] | None = None
    _latest_written = float("-inf")
    _began = 0.0
    _iterations_since_start = 0

    def run_training(self) -> None:
        """nnU-Net's entry: all epochs, from the iteration a checkpoint stopped at."""
        self.save_every = self.num_epochs + 1  # ours is the rule for checkpoint_latest
        self.on_train_start()
        if self._resumed is not None:
            set_random_state(
                self._resumed["random_state"]
            )  # after the loaders have drawn their first batches
        with self._listening(), kept_memory() if self.device.type == "cpu" else nullcontext():
            self._began = time()
            while self.current_epoch < self.num_epochs:
                self._run_epoch()
        self.on_train_end()

    def _run_epoch(self) -> None:
        self._train_outputs = self._resumed["train_outputs"] if self._resumed else []
        self._resumed = None
        self.on_epoch_start()
        self.on_train_epoch_start()
        while self.iteration_in_epoch < self.num_iterations_per_epoch:
            self._train_outputs.append(self.train_step(self._next(self.dataloader_train)))
            self.iteration_in_epoch += 1
            self._iterations_since_start += 1
            if self._iterations_since_start == FORECAST_AFTER:
                self._forecast()
            self._answer_signals()
        self._random_state_of_iteration = random_state()  # a stop during validation repeats the validation
        outputs = self._train_outputs
        self.on_train_epoch_end(outputs)
        with torch.no_grad():
            self.on_validation_epoch_start()
            validation_outputs = []
            for _ in range(self.num_val_iterations_per_epoch):
                validation_outputs.append(self.validation_step(self._next(self.dataloader_val)))
                self._answer_signals()
            self.on_validation_epoch_end(validation_outputs)
        self._random_state_of_iteration = None
        self.iteration_in_epoch, self._train_outputs = 0, []
        self.on_epoch_end()
        self._answer_signals()

    def on_epoch_end(self) -> None:
        """nnU-Net's hook; writes `checkpoint_latest` where it is due."""
        super().on_epoch_end()  # counts the epoch
        due = time() - self._latest_written > 60 * self.minutes_between_checkpoints
        if due and self.current_epoch < self.num_epochs:
            self._save_latest()

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's hook, called at the end of an epoch: its keys and ours, whole or not at all."""
        self._save(filename, self.checkpoint(epochs_done=self.current_epoch + 1))

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """nnU-Net's hook: also takes back the schedule and, for `run_training`, iteration and random states."""
        super().load_checkpoint(filename_or_checkpoint)
        content = torch.load(filename_or_checkpoint, map_location="cpu", weights_only=False, mmap=True).get(
            "samnn"
        )
        if content is None:  # written by a stock trainer
            return
        self.lr_scheduler.load_state_dict(content["lr_scheduler_state"])
        self.iteration_in_epoch = content["iteration_in_epoch"]
        self.skipped_in_epoch = content["skipped_in_epoch"]
        self.loader_seed = content.get("loader_seed")
        self._resumed = content

    def _save_latest(self) -> None:
        if not self.disable_checkpointing:
            latest = os.path.join(self.output_folder, "checkpoint_latest.pth")
            self._save(latest, self.checkpoint(epochs_done=self.current_epoch, to_continue=True))
        self._latest_written = time()

    def checkpoint(self, *, epochs_done: int, to_continue: bool = False) -> dict[str, Any]:
        """What a checkpoint holds: nnU-Net's keys and ours; `to_continue` for `checkpoint_latest`."""
        between_epochs = self.iteration_in_epoch == 0
        logging = self.logger.get_checkpoint()
        if not between_epochs:  # what this epoch has logged so far will be logged again
            logging = {key: values[:epochs_done] for key, values in logging.items()}
        scaler = self.grad_scaler
        return {
            "network_weights": bare(self.network).state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": None if scaler is None else scaler.state_dict(),
            "logging": logging,
            "_best_ema": self._best_ema,
            "current_epoch": epochs_done,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "samnn": {
                "lr_scheduler_state": self.lr_scheduler.state_dict(),
                "random_state": self._random_state_of_iteration or random_state(),
                "iteration_in_epoch": self.iteration_in_epoch,
                "train_outputs": [] if between_epochs else self._train_outputs,
                "skipped_in_epoch": self.skipped_in_epoch,
                "loader_seed": self.loader_seed,
            },
        }

    def _save(self, filename: str, checkpoint: dict[str, Any]) -> None:
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        with whole_file(Path(filename)) as part:
            torch.save(checkpoint, part)

    def _next(self, loader: Any) -> dict[str, Any]:
        try:
            batch = next(loader)
        except RuntimeError as error:
            # A scheduler's SIGTERM also reaches the loader's workers; their death is then no error of ours.
            self._answer_signals()
            if not (self.is_ddp and self.save_requested):
                raise
            batch = error
        if self.is_ddp:  # here, for a step that one rank cannot take would leave the others waiting for it
            self._agree_on_signals()
            self._act_on_signals()
        if isinstance(batch, RuntimeError):
            raise batch
        return batch

    def _agree_on_signals(self) -> None:
        """What one rank was asked, all do, at the same iteration."""
        asked = torch.tensor([self.save_requested, self.stop_signal is not None], dtype=torch.float32)
        asked = asked.to(self.device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        self.save_requested = bool(asked[0])
        if asked[1]:
            self.stop_signal = signal.SIGTERM

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Handle SIGTERM and SIGUSR1 for the block; set after the loader's workers have started without it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = [signal.SIGTERM] + ([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])
        if self.is_ddp:  # what torch sends to the ranks when the process that started them is terminated
            names.append(signal.SIGINT)
        before = {name: signal.signal(name, self._note_signal) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self.save_requested = True
        if number != getattr(signal, "SIGUSR1", None):
            self.stop_signal = signal.SIGTERM

    def _answer_signals(self) -> None:
        if not self.is_ddp:  # ranks answer together, before their next step
            self._act_on_signals()

    def _act_on_signals(self) -> None:
        if not self.save_requested:
            return
        self.save_requested = False
        self._save_latest()
        where = f"epoch {self.current_epoch}, iteration {self.iteration_in_epoch}"
        if self.stop_signal is None:
            self.print_to_log_file(f"Asked by a signal: wrote checkpoint_latest.pth at {where}.")
            return
        self.print_to_log_file(
            f"Stopped by a signal: wrote checkpoint_latest.pth at {where}. Repeat the command with --c to go on."
        )
        raise SystemExit(128 + self.stop_signal)

    def _forecast(self) -> None:
        """Say once how long an epoch takes and when the run will end, validation steps counted as a third."""
        per_iteration = (time() - self._began) / self._iterations_since_start
        epoch_s = per_iteration * (self.num_iterations_per_epoch + self.num_val_iterations_per_epoch / 3)
        left_s = epoch_s * (
            self.num_epochs - self.current_epoch - self.iteration_in_epoch / self.num_iterations_per_epoch
        )
        end = datetime.now() + timedelta(seconds=left_s)
        self.print_to_log_file(
            f"{per_iteration:.3g} s per iteration, about {timedelta(seconds=round(epoch_s))} per epoch; the remaining "
            f"{self.num_epochs - self.current_epoch} epochs end around {end:%Y-%m-%d %H:%M} "
            f"(in {timedelta(seconds=round(left_s))})"
        )

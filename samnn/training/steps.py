"""The optimisation step: precision by hardware, micro-batches, and a guard against numbers that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from samnn import hardware
from samnn.errors import SamnnError
from samnn.inference.predictor import bare
from samnn.training.randomness import random_state, set_random_state
from samnn.training.schedules import IterationSchedule

OUR_KEY = "samnn"  # in a configuration of plans: what nnU-Net has no place for


class GuardedSteps(nnUNetTrainer):
    """nnU-Net's training step with hooks: `autocast_dtype`, `choose_micro_batch`, `backward`."""

    gradient_clip: float = 12.0  # nnU-Net's value
    micro_batch: int | str | None = (
        "auto"  # samples per forward pass; "auto": what the plans say, or what fits; None: the whole batch
    )
    memory_share: float = 0.8  # of the free memory that "auto" may fill with activations
    max_skipped_steps: int = 50  # in a row, before training stops

    skipped_in_a_row = 0
    skipped_in_epoch = 0
    effective_micro_batch: int | None = None  # set at the start of training

    def autocast_dtype(self) -> torch.dtype | None:
        """The precision of forward passes; None is float32."""
        return hardware.autocast_dtype(self.device)

    def initialize(self) -> None:
        """nnU-Net's hook; gradient scaling stays only where the precision is fp16."""
        super().initialize()
        if self.autocast_dtype() is not torch.float16:
            self.grad_scaler = None

    def train_step(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """nnU-Net's hook: one optimiser step on a loader batch.

        The loss is returned as computed; a step whose loss or gradient is not finite changes no weight.

        Raises:
            SamnnError: `max_skipped_steps` steps in a row were not finite.
        """
        data = batch["data"].to(self.device, non_blocking=True)
        target = _to_device(batch["target"], self.device)
        if isinstance(self.lr_scheduler, IterationSchedule):
            done_epochs = self.current_epoch * self.num_iterations_per_epoch
            self.lr_scheduler.step_iteration(done_epochs + self.iteration_in_epoch)

        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(data, target)
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clip)
        if self._finite_everywhere(loss, norm):
            self.skipped_in_a_row = 0
            if self.grad_scaler is not None:
                self.grad_scaler.step(self.optimizer)
            else:
                self.optimizer.step()
        else:
            self._skip_step(loss, norm)
        if self.grad_scaler is not None:
            self.grad_scaler.update()
        return {"loss": loss.detach().cpu().numpy()}

    def backward(self, data: Tensor, target: Tensor | list[Tensor]) -> Tensor:
        """Gradients of the loss over the whole batch, in parts of the micro-batch; → the loss.

        data: (B, C, *spatial); target: (B, 1 or regions, *spatial), or a list of those with deep supervision.

        Split, the loss stays that of the whole batch, whatever it sums over: a first pass without gradients
        collects the outputs, the loss is taken on all of them, and its gradient at the outputs drives a second
        pass part by part (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited
        setup", section 3). Batch norm sees the parts, not the batch.
        """
        size = self.effective_micro_batch or len(data)
        if size >= len(data):
            with self._autocast():
                loss = self.loss(self.network(data), target)
            self._scaled(loss).backward()
            return loss

        parts = data.split(size)
        states, outputs = [], []
        with torch.no_grad(), _frozen_batch_statistics(self.network), self._autocast():
            for part in parts:
                states.append(random_state())
                outputs.append(_as_list(self.network(part)))
        joined = [torch.cat(maps).float().requires_grad_() for maps in zip(*outputs, strict=True)]
        del outputs
        with self._autocast():
            loss = self.loss(joined if isinstance(target, list) else joined[0], target)
        self._scaled(loss).backward()
        gradients = [j.grad.split(size) if j.grad is not None else None for j in joined]

        for i, (part, state) in enumerate(zip(parts, states, strict=True)):
            set_random_state(state)  # dropout must fall as in the first pass
            last = i == len(parts) - 1
            synced = nullcontext() if last or not self.is_ddp else self.network.no_sync()
            with synced:
                with self._autocast():
                    maps = _as_list(self.network(part))
                pairs = [(m, g[i].to(m.dtype)) for m, g in zip(maps, gradients, strict=True) if g is not None]
                torch.autograd.backward([m for m, _ in pairs], [g for _, g in pairs])
        return loss

    def validation_step(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """nnU-Net's hook, in the precision of the training steps."""
        with self.own_precision(), self._autocast():
            return super().validation_step(batch)

    def on_train_start(self) -> None:
        """nnU-Net's hook; settles the micro-batch once the network stands."""
        super().on_train_start()
        self.effective_micro_batch = self.choose_micro_batch()

    def on_train_epoch_end(self, train_outputs: list[dict[str, np.ndarray]]) -> None:
        """nnU-Net's hook; skipped steps are counted in the log and left out of the mean loss."""
        if self.skipped_in_epoch:
            self.print_to_log_file(
                f"{self.skipped_in_epoch} of {len(train_outputs)} steps skipped in this epoch: loss or gradient not finite"
            )
            losses = np.array([output["loss"] for output in train_outputs])
            finite = losses[np.isfinite(losses)]
            train_outputs = [{"loss": finite.mean() if len(finite) else np.float32(np.nan)}]
        self.skipped_in_epoch = 0
        super().on_train_epoch_end(train_outputs)

    def planned_micro_batch(self) -> int | None:
        """The micro-batch that the plans say, under our key; None: nothing said."""
        return self.configuration_manager.configuration.get(OUR_KEY, {}).get("micro_batch")

    def choose_micro_batch(self) -> int | None:
        """Samples per forward pass: the attribute, or for "auto" the plans' or what fits into memory; None: all."""
        if self.micro_batch != "auto":
            return self.micro_batch
        if (planned := self.planned_micro_batch()) is not None:
            return planned
        pair = torch.zeros(  # batch norm refuses a single value per channel, which one small patch may come down to
            (2, self.num_input_channels, *self.configuration_manager.patch_size), device=self.device
        )
        state = random_state()
        with _frozen_batch_statistics(self.network), self._autocast():
            # Twice what autograd saves for one: gradients of activations and workspace live beside them.
            per_sample = hardware.saved_activation_bytes(bare(self.network), pair)
        set_random_state(state)
        free = hardware.free_memory_bytes(self.device)
        fits = max(1, int(self.memory_share * free / max(per_sample, 1)))
        chosen = None if fits >= self.batch_size else fits
        self.print_to_log_file(
            f"micro-batch: {chosen or self.batch_size} of {self.batch_size} samples per forward pass "
            f"(about {per_sample / 2**20:.0f} MiB each, {free / 2**30:.1f} GiB free)"
        )
        if chosen and any(isinstance(module, _BatchNorm) for module in self.network.modules()):
            self.print_to_log_file("batch norm sees micro-batches, so results depend on their size")
        return chosen

    @contextmanager
    def own_precision(self) -> Iterator[None]:
        """Make our precision the default of nnU-Net's own autocast blocks on CUDA, which name none."""
        if self.device.type != "cuda":
            yield
            return
        before = torch.get_autocast_dtype("cuda")
        torch.set_autocast_dtype("cuda", self.autocast_dtype() or torch.float32)
        try:
            yield
        finally:
            torch.set_autocast_dtype("cuda", before)

    def _autocast(self) -> Any:
        dtype = self.autocast_dtype()
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.grad_scaler is None else self.grad_scaler.scale(loss)

    def _finite_everywhere(self, loss: Tensor, norm: Tensor) -> bool:
        finite = torch.isfinite(loss.detach()).all() & torch.isfinite(norm)
        if self.is_ddp:  # all ranks must agree, or their weights drift apart
            flag = finite.float()
            dist.all_reduce(flag, dist.ReduceOp.MIN)
            return bool(flag)
        return bool(finite)

    def _skip_step(self, loss: Tensor, norm: Tensor) -> None:
        self.skipped_in_a_row += 1
        self.skipped_in_epoch += 1
        if self.skipped_in_a_row >= self.max_skipped_steps:
            raise SamnnError(
                f"Training stopped in epoch {self.current_epoch}: {self.skipped_in_a_row} steps in a row had a loss "
                f"or gradient that is not finite (last loss {float(loss.detach()):.4g}, gradient norm "
                f"{float(norm):.4g}). Checkpoints hold the last good weights. Check the images for NaN, try the "
                "suffix _fp32, or a lower learning rate."
            )


def _to_device(target: Tensor | list[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    if isinstance(target, list):
        return [t.to(device, non_blocking=True) for t in target]
    return target.to(device, non_blocking=True)


def _as_list(outputs: Tensor | list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


@contextmanager
def _frozen_batch_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norm normalises as in training but leaves its running statistics alone."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked

"""Learning-rate schedules as pure functions of the iteration, so that a resumed run continues exactly."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer


class IterationSchedule:
    """Linear warm-up, then a decay over the rest of the run; one value per iteration.

    nnU-Net calls `step(epoch)` at the start of each epoch, our trainers `step_iteration(i)` before each step.

    Args:
        initial_lr: the peak learning rate, reached at the end of the warm-up.
        total_iterations: length of the whole run (epochs · iterations per epoch).
        warmup_iterations: length of the warm-up; cut to 10 % of the run where it is longer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        initial_lr: float,
        *,
        total_iterations: int,
        iterations_per_epoch: int,
        warmup_iterations: int,
    ) -> None:
        self.optimizer = optimizer
        self.initial_lr = initial_lr
        self.total_iterations = total_iterations
        self.iterations_per_epoch = iterations_per_epoch
        self.warmup_iterations = min(warmup_iterations, total_iterations // 10)
        self.step_iteration(0)

    def decay(self, progress: float) -> float:
        """The factor on `initial_lr` at `progress` from 0 (end of warm-up) to 1 (end of the run)."""
        raise TypeError(f"{type(self).__name__} does not say how it decays; define decay(progress).")

    def lr(self, iteration: int) -> float:
        """The learning rate of `iteration`, counted from 0 over the whole run."""
        if iteration < self.warmup_iterations:
            return self.initial_lr * (iteration + 1) / self.warmup_iterations
        progress = (iteration - self.warmup_iterations) / (self.total_iterations - self.warmup_iterations)
        return self.initial_lr * self.decay(min(progress, 1.0))

    def step_iteration(self, iteration: int) -> None:
        """Set the learning rate of every parameter group to that of `iteration`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(iteration)

    def step(self, epoch: int) -> None:
        """Set the learning rate of the first iteration of `epoch` (the call nnU-Net makes)."""
        self.step_iteration(epoch * self.iterations_per_epoch)

    def state_dict(self) -> dict[str, Any]:
        """What the schedule was built with: the iteration itself is the trainer's."""
        return {"initial_lr": self.initial_lr, "total_iterations": self.total_iterations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the peak and length of the run that is being continued."""
        self.initial_lr = state["initial_lr"]
        self.total_iterations = state["total_iterations"]


class PolyWarmup(IterationSchedule):
    """(1 − progress)^0.9 after the warm-up: nnU-Net's exponent, per iteration."""

    def decay(self, progress: float) -> float:
        return (1 - progress) ** 0.9


class PolyWarmupWholeRun(PolyWarmup):
    """(1 − i/N)^0.9 at iteration i after the warm-up, N being the whole run: SAMed's (Zhang, Liu 2023, code)."""

    def decay(self, progress: float) -> float:
        return super().decay(progress * (1 - self.warmup_iterations / self.total_iterations))


class CosineWarmup(IterationSchedule):
    """Half a cosine from 1 to 0 after the warm-up (Loshchilov & Hutter 2017, SGDR, equation 5, no restart)."""

    def decay(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


class CosinePerEpoch(IterationSchedule):
    """Half a cosine from the peak to 1e-7, one value an epoch: SAM2-UNet's (Xiong et al. 2024, code). Takes no warm-up."""

    floor_lr = 1e-7

    def lr(self, iteration: int) -> float:
        """The learning rate of the epoch of `iteration`."""
        epoch_start = iteration - iteration % self.iterations_per_epoch
        return self.floor_lr + (self.initial_lr - self.floor_lr) * self.decay(
            epoch_start / self.total_iterations
        )

    def decay(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))

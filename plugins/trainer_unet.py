"""nnUNetTrainerUNet: nnU-Net's own network and recipe, as the baseline that can take the options too."""

from typing import Any

import torch

from samnn.training.base import SamnnTrainer
from samnn.training.variants import resolve


class nnUNetTrainerUNet(SamnnTrainer):
    """The stock network, SGD, schedule, loss, augmentation, deep supervision and precision, untouched.

    Without an option its losses equal those of `nnUNetTrainer` step by step. What it adds changes no number:
    resume, signals, the guard, the settings file.
    """

    micro_batch = None

    def build_optimizer(self) -> torch.optim.Optimizer:
        """nnU-Net's SGD, which decays every parameter (that is trained)."""
        return torch.optim.SGD(
            [p for p in self.network.parameters() if p.requires_grad],
            self.initial_lr,
            weight_decay=self.weight_decay,
            momentum=0.99,
            nesterov=True,
        )

    def autocast_dtype(self) -> torch.dtype | None:
        """nnU-Net's: fp16 on CUDA, float32 elsewhere."""
        return torch.float16 if self.device.type == "cuda" else None


def __getattr__(name: str) -> Any:
    return resolve(nnUNetTrainerUNet, name)

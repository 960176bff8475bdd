"""What the suffixes of a trainer's name switch on: one mixin an option, one hook a mixin."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

from samnn.training import schedules
from samnn.training.base import SamnnTrainer
from samnn.training.losses import GeneralisedDiceLoss
from samnn.training.structure_loss import StructureLoss


class AdamW(SamnnTrainer):
    """AdamW (Loshchilov & Hutter 2019), learning rate 5e-4, weight decay 1e-4."""

    learning_rate = 5e-4
    decay = 1e-4

    def build_optimizer(self) -> torch.optim.Optimizer:
        """AdamW on the trainable parameters, norms and biases not decayed."""
        return torch.optim.AdamW(self.parameter_groups(), self.initial_lr)


class PolyWarmup(SamnnTrainer):
    """Linear warm-up over 1000 iterations (at most 10 % of the run), then polynomial decay, per iteration."""

    warmup_iterations = 1000
    schedule_class: type[schedules.IterationSchedule] = schedules.PolyWarmup

    def build_schedule(self, optimizer: torch.optim.Optimizer) -> Any:
        """The schedule of `schedule_class` over the whole run."""
        return self.schedule_class(
            optimizer,
            self.initial_lr,
            total_iterations=self.num_epochs * self.num_iterations_per_epoch,
            iterations_per_epoch=self.num_iterations_per_epoch,
            warmup_iterations=self.warmup_iterations,
        )


class CosineWarmup(PolyWarmup):
    """Linear warm-up over 1000 iterations (at most 10 % of the run), then half a cosine to 0, per iteration."""

    schedule_class = schedules.CosineWarmup


class GDL(SamnnTrainer):
    """Generalised Dice (Sudre 2017) in the place of nnU-Net's Dice, beside its cross-entropy."""

    def _build_loss(self) -> torch.nn.Module:
        loss = super()._build_loss()
        compound = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
        dice = getattr(compound.dc, "_orig_mod", compound.dc)
        compound.dc = GeneralisedDiceLoss(dice.apply_nonlin, batch_dice=dice.batch_dice, ddp=dice.ddp)
        return loss


class structureLoss(SamnnTrainer):
    """SAM2-UNet's structure loss in the place of nnU-Net's, on 2D patches."""

    weighted_bce = True

    def _build_loss(self) -> torch.nn.Module:
        loss = super()._build_loss()
        labels = self.label_manager
        structure = StructureLoss(
            regions=labels.has_regions, ignore_label=labels.ignore_label, weighted_bce=self.weighted_bce
        )
        if not isinstance(loss, DeepSupervisionWrapper):
            return structure
        loss.loss = structure
        return loss


class structureLossUnweightedBCE(structureLoss):
    """The structure loss as the public code of SAM2-UNet computes it: cross-entropy without the weights of edges."""

    weighted_bce = False

    def _build_loss(self) -> torch.nn.Module:  # of its own, so that settings.json names this suffix
        return super()._build_loss()


class fp32(SamnnTrainer):
    """Float32 throughout, no autocast."""

    def autocast_dtype(self) -> torch.dtype | None:
        """None: float32."""
        return None

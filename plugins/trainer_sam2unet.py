"""nnUNetTrainerSAM2UNet: SAM 2's frozen image encoder with adapters and a small U-shaped decoder on 2D patches."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from samnn.training.options import AdamW, structureLoss, structureLossUnweightedBCE
from samnn.training.planned import Planned
from samnn.training.pretrained import Pretrained
from samnn.training.schedules import CosinePerEpoch
from samnn.training.variants import Option, resolve


class nnUNetTrainerSAM2UNet(Pretrained, AdamW):
    """SAM2-UNet with its published optimizer, AdamW 1e-3, weight decay 5e-4, cosine to 1e-7, and nnU-Net's CE + Dice.

    The loss is the sum of those of the main output and two side outputs, all at full resolution.
    """

    weights: ClassVar[dict[str, str]] = {
        "": "sam2_hiera_l",
        "tiny": "sam2_hiera_t",
        "small": "sam2_hiera_s",
        "base": "sam2_hiera_b+",
        "large": "sam2_hiera_l",
    }
    suffixes = (
        Option("tiny", "SAM 2's tiny trunk", attribute="backbone", value="sam2_hiera_t", group="backbone"),
        Option("small", "SAM 2's small trunk", attribute="backbone", value="sam2_hiera_s", group="backbone"),
        Option("base", "SAM 2's base+ trunk", attribute="backbone", value="sam2_hiera_b+", group="backbone"),
        Option("large", "SAM 2's large trunk, the default", attribute="backbone", value="sam2_hiera_l", group="backbone"),
        Option("scratch", "start from random weights; the trunk stays frozen", attribute="scratch", value=True),
        Option("lean", "leave frozen weights of your own file out of checkpoints too", attribute="lean", value=True),
        Option("structureLoss", "edge-weighted cross-entropy and IoU", structureLoss, group="loss"),
        Option(
            "structureLossUnweightedBCE",
            "the same as the public code computes it: only the IoU is edge-weighted",
            structureLossUnweightedBCE,
            group="loss",
        ),
    )  # fmt: skip

    network_class_name = "samnn.nn.sam2_unet.SAM2UNet"
    network_options = ("backbone",)
    backbone = "sam2_hiera_l"

    learning_rate = 1e-3
    decay = 5e-4
    deep_supervision = True
    spatial_dims = (2,)
    planned = Planned(
        "sam2unet", batch_size=12, multiple=32, token=4, outputs=3,
        savings=({}, {"gradient_checkpointing": "all"}),
    )  # fmt: skip

    @staticmethod
    def load_weights(network: nn.Module, state_dict: Mapping[str, Tensor]) -> Collection[str]:
        """Load the image encoder of SAM 2's checkpoint."""
        return network.load_trunk(state_dict)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All trainable parameters, decayed alike, as published."""
        trainable = [p for p in self.network.parameters() if p.requires_grad]
        return [{"params": trainable, "weight_decay": self.weight_decay}]

    def build_schedule(self, optimizer: torch.optim.Optimizer) -> CosinePerEpoch:
        """The published schedule over the whole run."""
        return CosinePerEpoch(
            optimizer,
            self.initial_lr,
            total_iterations=self.num_epochs * self.num_iterations_per_epoch,
            iterations_per_epoch=self.num_iterations_per_epoch,
            warmup_iterations=0,
        )

    def _get_deep_supervision_scales(self) -> list[list[float]]:
        """nnU-Net's hook: targets for three outputs at full resolution."""
        return [[1.0, 1.0]] * 3

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        loss.weight_factors = (1.0, 1.0, 1.0)
        return loss


def __getattr__(name: str) -> Any:
    return resolve(nnUNetTrainerSAM2UNet, name)

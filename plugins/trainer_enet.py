"""nnUNetTrainerENet: ENet on 2D patches."""

from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from samnn.nn.enet import ENet
from samnn.training.options import AdamW, PolyWarmup
from samnn.training.variants import resolve


class nnUNetTrainerENet(AdamW, PolyWarmup):
    """ENet with AdamW 5e-4, weight decay 1e-4, warm-up, polynomial decay, and nnU-Net's CE + Dice."""

    learning_rate = 5e-4
    decay = 1e-4
    deep_supervision = False
    spatial_dims = (2,)

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        """nnU-Net's hook, called at prediction time too: patches (B, C, H, W) → logits (B, classes, H, W)."""
        return ENet(num_input_channels, num_output_channels)


def __getattr__(name: str) -> Any:
    return resolve(nnUNetTrainerENet, name)

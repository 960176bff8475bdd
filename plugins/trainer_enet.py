"""nnUNetTrainerENet: ENet on 2D patches."""

from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from samnn.training.options import AdamW, PolyWarmup
from samnn.training.variants import resolve


class nnUNetTrainerENet(AdamW, PolyWarmup):
    """ENet with AdamW 5e-4, weight decay 1e-4, warm-up, polynomial decay, and nnU-Net's CE + Dice."""

    learning_rate = 5e-4
    decay = 1e-4
    deep_supervision = False
    spatial_dims = (2,)

    @classmethod
    def architecture(cls, configuration: ConfigurationManager) -> dict[str, Any]:
        """ENet, whatever network the plans name."""
        return {"network_class_name": "samnn.nn.enet.ENet", "arch_kwargs": {}, "_kw_requires_import": []}


def __getattr__(name: str) -> Any:
    return resolve(nnUNetTrainerENet, name)

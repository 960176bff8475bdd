"""nnUNetTrainerENet: ENet on 2D patches."""

from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from samnn.training.options import AdamW, PolyWarmup
from samnn.training.planned import Planned
from samnn.training.variants import resolve

NETWORK = "samnn.nn.enet.ENet"


class nnUNetTrainerENet(AdamW, PolyWarmup):
    """ENet with AdamW 5e-4, weight decay 1e-4, warm-up, polynomial decay, and nnU-Net's CE + Dice."""

    learning_rate = 5e-4
    decay = 1e-4
    deep_supervision = False
    spatial_dims = (2,)
    planned = Planned("enet", batch_size=8, multiple=8, token=2)

    @classmethod
    def architecture(cls, configuration: ConfigurationManager) -> dict[str, Any]:
        """The plans' ENet where they name one, otherwise ours."""
        planned = configuration.configuration["architecture"]
        if planned["network_class_name"] == NETWORK:
            return planned
        return {"network_class_name": NETWORK, "arch_kwargs": {}, "_kw_requires_import": []}


def __getattr__(name: str) -> Any:
    return resolve(nnUNetTrainerENet, name)

"""nnUNetTrainerSAMed: SAM's image encoder with LoRA and a prompt-free decoder on 2D patches."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from samnn.errors import SamnnError
from samnn.training.options import AdamW, PolyWarmup
from samnn.training.planned import Planned
from samnn.training.pretrained import Pretrained
from samnn.training.schedules import PolyWarmupWholeRun
from samnn.training.variants import Option, resolve


class nnUNetTrainerSAMed(Pretrained, AdamW, PolyWarmup):
    """SAMed with its published recipe: AdamW 5e-3, weight decay 0.1, 250 warm-up iterations, 0.2 CE + 0.8 Dice."""

    weights: ClassVar[dict[str, str]] = {
        "": "sam_vit_b",
        "vitl": "sam_vit_l",
        "vith": "sam_vit_h",
        "medsam": "medsam_vit_b",
    }
    suffixes = (
        Option("vitl", "SAM's ViT-L", attribute="backbone", value="sam_vit_l", group="backbone"),
        Option("vith", "SAM's ViT-H", attribute="backbone", value="sam_vit_h", group="backbone"),
        Option("medsam", "MedSAM's weights (ViT-B)", attribute="initial_weights", value="medsam_vit_b", group="backbone"),
        Option("rank<N>", "rank of LoRA instead of 4", attribute="lora_rank"),
        Option("frozen", "train the decoder alone", attribute="adapt", value="frozen", group="adapt"),
        Option("full", "train every parameter", attribute="adapt", value="full", group="adapt"),
        Option("decoderLoRA", "LoRA in the decoder too (SAMed_s)", attribute="adapt", value="lora_decoder", group="adapt"),
        Option("scratch", "start from random weights", attribute="scratch", value=True),
        Option("lean", "leave frozen weights of your own file out of checkpoints too", attribute="lean", value=True),
    )  # fmt: skip

    network_class_name = "samnn.nn.samed.SAMed"
    network_options = ("backbone", "lora_rank", "adapt")
    backbone = "sam_vit_b"
    lora_rank = 4
    adapt = "lora"

    learning_rate = 5e-3
    decay = 0.1
    warmup_iterations = 250
    schedule_class = PolyWarmupWholeRun
    loss_weights: ClassVar[dict[str, float]] = {"ce": 0.2, "dice": 0.8}
    deep_supervision = False
    spatial_dims = (2,)
    planned = Planned(
        "samed", batch_size=24, multiple=224, token=16, resizes=True,
        savings=({}, {"gradient_checkpointing": True}),
    )  # fmt: skip

    @staticmethod
    def load_weights(network: nn.Module, state_dict: Mapping[str, Tensor]) -> Collection[str]:
        """Load SAM's or MedSAM's checkpoint."""
        return network.load_sam(state_dict).loaded

    @classmethod
    def architecture(cls, configuration: ConfigurationManager) -> dict[str, Any]:
        """SAMed; refuses also suffixes without a meaning for what the others or the plans say."""
        network = super().architecture(configuration)
        backbone, adapt = (network["arch_kwargs"][name] for name in ("backbone", "adapt"))
        if "lora_rank" in cls.options_in_name and not adapt.startswith("lora"):
            raise SamnnError(
                f"{cls.__name__}: there is no LoRA with adapt {adapt}. Leave _rank{cls.lora_rank} out."
            )
        if cls.initial_weights is not None and backbone != "sam_vit_b":
            raise SamnnError(
                f"{cls.__name__}: the plans fix backbone {backbone}, MedSAM's is sam_vit_b. Leave _medsam out."
            )
        return network

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All trainable parameters, decayed alike, as in SAMed."""
        trainable = [p for p in self.network.parameters() if p.requires_grad]
        return [{"params": trainable, "weight_decay": self.weight_decay}]

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        loss.weight_ce, loss.weight_dice = self.loss_weights["ce"], self.loss_weights["dice"]
        return loss

    def settings(self) -> dict[str, dict[str, Any]]:
        """Also the weights in the loss."""
        settings = super().settings()
        settings["loss_weights"] = {"value": self.loss_weights, "source": self._source("loss_weights")}
        return settings


def __getattr__(name: str) -> Any:
    return resolve(nnUNetTrainerSAMed, name)

"""SAM2-UNet: the frozen encoder of SAM 2 with adapters, and a small U-shaped decoder (Xiong et al. 2024, arXiv 2408.08870)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samnn.errors import SamnnError

from . import sam2_layouts
from .adapted_hiera import ADAPTER_INITS, CHECKPOINTING, AdaptedHiera, hiera_sizes
from .receptive_field import ReceptiveField

WIDTH = 64  # channels everywhere in the decoder


class SAM2UNet(nn.Module):
    """Segment pictures of any size: one main and two side outputs.

    Args:
        input_channels: channels of the picture. One is what SAM 2 makes of a grey picture, three are taken as they
            are, any other number is brought to three by a learned 1x1 convolution.
        num_classes: channels of the logits.
        deep_supervision: whether `forward` returns the side outputs too, as nnU-Net's deep supervision wants them;
            later `decoder.deep_supervision` says so.
        backbone: sam2_hiera_t, sam2_hiera_s, sam2_hiera_b+ or sam2_hiera_l.
        architecture: sizes of another trunk than the named ones, in the names of Meta's configuration files.
        adapter_dim: hidden units of an adapter.
        adapter_init: "zero": adapters change nothing at first; "published": they start at random, as published.
        adapter_from: the first block whose adapter is trained. The blocks before it keep nothing for the backward
            pass; their adapters stay as they are (zero, or loaded).
        gradient_checkpointing: what is computed again in the backward pass instead of being kept: "none"; "light", what
            takes much room for its time: the adapters and the norms after them, the trunk's second stage, and the
            branches of the decoder's receptive-field blocks; "all", these and every block of the trunk.
        scratch: train without pretrained weights. Otherwise the first forward in training mode raises unless weights
            were loaded.
        strides: not used here. nnU-Net's own trainers read it in the plans: how much coarser each output of deep
            supervision is than the one before; [[1, 1]] for each, and two more.

    The trunk is frozen and in evaluation mode, whatever the mode of the network. All but the first two arguments are
    JSON, as nnU-Net's plans need them. The names of the layers whose shapes depend on `num_classes` contain
    `.seg_layers.`, which nnU-Net leaves out of `-pretrained_weights`.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        backbone: str = "sam2_hiera_l",
        architecture: Mapping[str, Any] | None = None,
        adapter_dim: int = 32,
        adapter_init: str = "zero",
        adapter_from: int = 0,
        gradient_checkpointing: str = "light",
        scratch: bool = False,
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        _check(input_channels, num_classes, adapter_dim, adapter_init, adapter_from, gradient_checkpointing)
        self.sizes = hiera_sizes(backbone, architecture)
        self.backbone = backbone if architecture is None else "architecture"
        self.pretrained = scratch
        self.register_load_state_dict_post_hook(_now_pretrained)

        channels = 1 if input_channels == 1 else 3
        self.project = nn.Identity()
        if input_channels not in (1, 3):
            self.project = nn.Conv2d(input_channels, channels, 1)
            nn.init.orthogonal_(self.project.weight)  # keeps the contrast
        self.encoder = AdaptedHiera(
            self.sizes,
            channels,
            adapter_dim=adapter_dim,
            adapter_init=adapter_init,
            adapter_from=adapter_from,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.decoder = Decoder(
            [self.sizes["embed_dim"] * 2**stage for stage in range(4)],
            num_classes,
            recompute=gradient_checkpointing != "none",
        )
        self.decoder.deep_supervision = deep_supervision
        # the encoder halves the picture five times, and tiles a map of positions over the first stage
        self.multiple = math.lcm(32, 4 * self.sizes["window_spec"][0])

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(B, input_channels, H, W) → logits (B, num_classes, H, W), for any H and W; with deep supervision the list
        of the main output and those after one and two of the decoder's three stages, all of that size.

        The picture is padded with zeros at the bottom and on the right to multiples of 32, the logits are cropped
        back.
        """
        if self.training and not self.pretrained:
            raise SamnnError(
                "This SAM2UNet was to be trained from SAM 2's weights, but none were loaded. Load them (load_trunk), or "
                "ask for training from random weights (scratch=True; a trainer's suffix _scratch)."
            )
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % self.multiple, 0, -height % self.multiple))
        outputs = self.decoder(self.encoder(self.project(padded)))
        outputs = [logits[..., :height, :width] for logits in outputs]
        return outputs if self.decoder.deep_supervision else outputs[0]

    @property
    def output_layers(self) -> list[nn.Module]:
        """The last layers, of the main output first: what remains trainable where everything else is frozen."""
        return list(self.decoder.seg_layers)

    def load_trunk(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Load SAM 2's image encoder from a checkpoint of Meta's, 2.0 or 2.1; → the names of its tensors here.

        The rest of the network stays as it is.

        Raises:
            SamnnError: another layout or another size, told with what was found and expected; nothing is loaded.
        """
        own = self.state_dict()
        found = sam2_layouts.trunk(state_dict)
        fitted = sam2_layouts.fitted(found, own, wanted=("encoder.trunk.",), network=self.backbone)
        self.load_state_dict(own | fitted)
        return list(fitted)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load a whole state dict of the public project WZH0120/SAM2-UNet; its unused `up4` is accepted.

        With other than one or three input channels, the projection before the trunk stays as it is.

        Raises:
            SamnnError: another layout or other sizes, told with what was found and expected; nothing is loaded.
        """
        own = self.state_dict()
        fitted = sam2_layouts.fitted(
            sam2_layouts.reference(state_dict), own, wanted=("encoder.", "decoder."), network=self.backbone
        )
        self.load_state_dict(own | fitted)


class Decoder(nn.Module):
    """Four maps → a main and two side outputs at four times the resolution of the first map."""

    deep_supervision: bool  # set by nnU-Net's trainers
    seg_layers: nn.ModuleList  # of the main output, after the first stage, after the second

    def __init__(self, channels: list[int], num_classes: int, *, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.receptive_fields = nn.ModuleList(ReceptiveField(c, WIDTH) for c in channels)
        self.ups = nn.ModuleList(Up(2 * WIDTH, WIDTH) for _ in channels[1:])
        self.seg_layers = nn.ModuleList(nn.Conv2d(WIDTH, num_classes, 1) for _ in range(3))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """(B, C, H/4, W/4) to (B, 8C, H/32, W/32) → the main output, and without its side outputs where nobody asks
        for them: (B, num_classes, H, W) each."""
        recompute = self.recompute and torch.is_grad_enabled()
        first, second, third, fourth = (
            field(m, recompute=recompute) for field, m in zip(self.receptive_fields, maps, strict=True)
        )
        x1 = self.ups[0](fourth, third)  # (B, 64, H/16, W/16)
        x2 = self.ups[1](x1, second)  # (B, 64, H/8, W/8)
        x3 = self.ups[2](x2, first)  # (B, 64, H/4, W/4)
        wanted = [(x3, 4), (x1, 16), (x2, 8)] if self.deep_supervision else [(x3, 4)]
        return [
            F.interpolate(layer(x), scale_factor=float(scale), mode="bilinear")
            for layer, (x, scale) in zip(self.seg_layers, wanted, strict=False)
        ]


class Up(nn.Module):
    """Twice the resolution, joined with a map of that resolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolve = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(B, C, H, W) and (B, C, 2H, 2W) → (B, out_channels, 2H, 2W)."""
        up = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=True)
        return self.convolve(torch.cat([fine, up], dim=1))


def _check(
    input_channels: int,
    num_classes: int,
    adapter_dim: int,
    adapter_init: str,
    adapter_from: int,
    checkpointing: str,
) -> None:
    if input_channels < 1 or num_classes < 1 or adapter_dim < 1:
        raise SamnnError(
            f"SAM2UNet needs channels, classes and adapters; got {input_channels=}, {num_classes=}, {adapter_dim=}."
        )
    if adapter_init not in ADAPTER_INITS:
        raise SamnnError(f"SAM2UNet has no {adapter_init=}; there are {', '.join(ADAPTER_INITS)}.")
    if checkpointing not in CHECKPOINTING:
        raise SamnnError(
            f"SAM2UNet has no gradient_checkpointing={checkpointing!r}; there are {', '.join(CHECKPOINTING)}."
        )
    if adapter_from > 0 and input_channels not in (1, 3):
        raise SamnnError(
            f"adapter_from={adapter_from} keeps nothing before that block, but {input_channels} input channels need a "
            "learned projection there. Use adapter_from=0, or a picture of one or three channels."
        )


def _now_pretrained(network: nn.Module, _: Any) -> None:
    network.pretrained = True

"""A CRF at the end of any network, without a new name for any of the network's own weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samnn.errors import SamnnError

from .crf import MeanFieldCRF


class CRFHead(MeanFieldCRF):
    """A MeanFieldCRF that knows its network's spacing, and whose state dict says whether the channels are regions.

    Args:
        spacing_mm: of the logits' axes.
        options: those of MeanFieldCRF.
    """

    def __init__(self, spacing_mm: Sequence[float], **options: Any) -> None:
        super().__init__(len(spacing_mm), **options)
        self.register_buffer("spacing_mm", torch.tensor(spacing_mm, dtype=torch.float32), persistent=False)
        # A network for prediction is built before anybody says what its channels mean: its weights do.
        self.register_buffer("has_regions", torch.tensor(int(self.regions), dtype=torch.uint8))
        self.register_load_state_dict_post_hook(_take_regions)

    def set_regions(self, regions: bool) -> None:
        """Say whether each channel is a binary label of its own."""
        self.regions = regions
        self.has_regions.fill_(int(regions))


def attach_crf(network: nn.Module, head: CRFHead) -> None:
    """Send the main output of `network` through `head`: its output, or the first of a list of outputs.

    A forward hook does it, so the network stays what it is: its class, its attributes (`decoder`) and the names of its
    weights. The head's are `crf.seg_layers.*`, a name by which nnU-Net knows what pretrained weights need not hold.
    """
    if hasattr(network, "crf"):
        raise SamnnError(f"{type(network).__name__} has something called `crf` already.")
    network.crf = nn.ModuleDict({"seg_layers": head})
    network.register_forward_hook(_refine)


def crf_of(network: nn.Module) -> CRFHead:
    """The head that `attach_crf` gave to `network`."""
    return network.crf["seg_layers"]


def _refine(network: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | list[Tensor]) -> Any:
    head = crf_of(network)
    image = inputs[0] if head.has_appearance else None
    if isinstance(output, Tensor):
        return head(output, head.spacing_mm, image)
    return [head(output[0], head.spacing_mm, image), *output[1:]]


def _take_regions(head: CRFHead, _: Any) -> None:
    head.regions = bool(head.has_regions)

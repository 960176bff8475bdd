"""SAM 2's image encoder, frozen, with a small trainable adapter before each of its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.hieradet_sam2 import HieraDet, MultiScaleBlock
from torch import Tensor, nn

from samnn.errors import SamnnError

from .elementwise import plus
from .hiera_windows import block_without_filling
from .recompute import recomputed

# Sizes in the names of Meta's configuration files (facebookresearch/sam2, sam2/configs); 2.0 and 2.1 have the same.
META_DEFAULTS = {
    "embed_dim": 96,
    "num_heads": 1,
    "stages": (2, 3, 16, 3),
    "global_att_blocks": (12, 16, 20),
    "window_pos_embed_bkg_spatial_size": (14, 14),
    "window_spec": (8, 4, 14, 7),
}
_SMALL_POSITIONS = {"window_pos_embed_bkg_spatial_size": (7, 7)}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "sam2_hiera_t": {"stages": (1, 2, 7, 2), "global_att_blocks": (5, 7, 9), **_SMALL_POSITIONS},
    "sam2_hiera_s": {"stages": (1, 2, 11, 2), "global_att_blocks": (7, 10, 13), **_SMALL_POSITIONS},
    "sam2_hiera_b+": {"embed_dim": 112, "num_heads": 2},
    "sam2_hiera_l": {
        "embed_dim": 144,
        "num_heads": 2,
        "stages": (2, 6, 36, 4),
        "global_att_blocks": (23, 33, 43),
        "window_spec": (8, 4, 16, 8),
        **_SMALL_POSITIONS,
    },
}
ADAPTER_INITS = ("zero", "published")
CHECKPOINTING = ("none", "light", "all")


class AdaptedHiera(nn.Module):
    """Picture → the four maps of Hiera, at a quarter to a thirty-second of the resolution.

    Args:
        sizes: of the trunk, see `hiera_sizes`.
        in_chans: 1 or 3, channels of the picture.
        adapter_dim, adapter_init, adapter_from, gradient_checkpointing: see `SAM2UNet`.
    """

    def __init__(
        self,
        sizes: Mapping[str, Any],
        in_chans: int,
        *,
        adapter_dim: int,
        adapter_init: str,
        adapter_from: int,
        gradient_checkpointing: str,
    ) -> None:
        super().__init__()
        self.trunk = _trunk(sizes, in_chans).requires_grad_(False).eval()
        depth = len(self.trunk.blocks)
        if not 0 <= adapter_from <= depth:
            raise SamnnError(f"adapter_from counts blocks and lies in 0 … {depth}; got {adapter_from}.")
        self.adapters = nn.ModuleList(Adapter(block.dim, adapter_dim) for block in self.trunk.blocks)
        for number, adapter in enumerate(self.adapters):
            adapter.requires_grad_(number >= adapter_from)
            if adapter_init == "zero" or number < adapter_from:
                adapter.start_as_identity()
        self.adapter_from = adapter_from
        self.gradient_checkpointing = gradient_checkpointing

    def train(self, mode: bool = True) -> AdaptedHiera:
        """The trunk is frozen and stays in evaluation mode."""
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) → (B, C, H/4, W/4), (B, 2C, H/8, W/8), (B, 4C, H/16, W/16), (B, 8C, H/32, W/32)."""
        trunk = self.trunk
        x = trunk._pos_embed(trunk.patch_embed(image))  # (B, H/4, W/4, C)
        maps = []
        for number, (adapter, block) in enumerate(zip(self.adapters, trunk.blocks, strict=True)):
            frozen = number < self.adapter_from and not image.requires_grad
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                x = self._block(number, adapter, block, x)
            if number in trunk.stage_ends:
                maps.append(x.permute(0, 3, 1, 2))
        return maps

    def _block(self, number: int, adapter: Adapter, block: MultiScaleBlock, x: Tensor) -> Tensor:
        """An adapter and its block; what `gradient_checkpointing` says is computed again in the backward pass."""
        if not torch.is_grad_enabled() or self.gradient_checkpointing == "none":
            return block_without_filling(block, *_entry(adapter, block, x))
        first, second = self.trunk.stage_ends[:2]
        if self.gradient_checkpointing == "all" or first < number <= second:
            return recomputed(lambda x: block_without_filling(block, *_entry(adapter, block, x)), x)
        return block_without_filling(block, *recomputed(partial(_entry, adapter, block), x))


class Adapter(nn.Module):
    """x + GELU(expand(GELU(reduce(x)))): what the block that follows is given in the place of x."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, channels)

    def start_as_identity(self) -> None:
        """GELU(0) = 0 and GELU'(0) = 1/2: nothing is added at first, and `expand` learns at once."""
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, channels) → (…, channels)."""
        return plus(F.gelu(self.expand(F.gelu(self.reduce(x)))), x)


def hiera_sizes(backbone: str, architecture: Mapping[str, Any] | None) -> dict[str, Any]:
    """The sizes of a named trunk, or those of `architecture` completed by Meta's defaults.

    Raises:
        SamnnError: an unknown name or size.
    """
    if architecture is None:
        if backbone not in ARCHITECTURES:
            raise SamnnError(f"There is no backbone {backbone!r}; there are {', '.join(ARCHITECTURES)}.")
        architecture = ARCHITECTURES[backbone]
    unknown = architecture.keys() - META_DEFAULTS.keys()
    if unknown:
        raise SamnnError(
            f"architecture does not know {', '.join(sorted(unknown))}; it takes {', '.join(META_DEFAULTS)}."
        )
    sizes = {**META_DEFAULTS, **architecture}
    if len(sizes["stages"]) != 4 or len(sizes["window_spec"]) != 4:
        raise SamnnError(
            "architecture needs four stages and four windows (the decoder takes four maps); "
            f"got stages={sizes['stages']}, window_spec={sizes['window_spec']}."
        )
    return sizes


def _entry(adapter: Adapter, block: MultiScaleBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a block starts with: its input, adapted, and that normalised."""
    x = adapter(x)
    return x, block.norm1(x)


def _trunk(sizes: Mapping[str, Any], in_chans: int) -> HieraDet:
    own = {name: value for name, value in sizes.items() if name != "window_pos_embed_bkg_spatial_size"}
    trunk = HieraDet(
        in_chans=in_chans,
        num_classes=0,
        global_pos_size=tuple(sizes["window_pos_embed_bkg_spatial_size"]),
        **own,
    )
    trunk.head = nn.Identity()  # its norm would stay
    return trunk

"""Linear layers with trainable low-rank updates beside frozen weights (LoRA: Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoRALinear(nn.Linear):
    """y = W x + bias, and for every part, a range of y's rows: y[rows] += B (A x), without a scaling.

    Args:
        in_features, out_features: as of nn.Linear.
        rank: rows of A and columns of B.
        parts: name → (first row, row after the last) of y. SAMed adapts "q" and "v" of a joint projection.

    A is drawn at random and B starts at zero, so the layer starts as the plain one. The parameters of the plain layer
    keep their names; those of a part are `lora.<part>.a` and `lora.<part>.b`.

    `merge` folds the updates into a copy of the weight, which `forward` uses until training mode or the next merge.
    The weight itself stays as it is, so the state dict has the same keys and values before and after, and loading
    another one merges again.
    """

    def __init__(
        self, in_features: int, out_features: int, *, rank: int, parts: Mapping[str, tuple[int, int]]
    ) -> None:
        super().__init__(in_features, out_features)
        self.rows = dict(parts)
        self.lora = nn.ModuleDict(
            {name: LowRank(in_features, end - start, rank) for name, (start, end) in parts.items()}
        )
        self.register_buffer("merged", None, persistent=False)
        self.register_load_state_dict_post_hook(_merge_again)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features)."""
        if self.merged is not None:
            return F.linear(x, self.merged, self.bias)
        y = F.linear(x, self.weight, self.bias)
        low = F.linear(x, torch.cat([part.a for part in self.lora.values()]))  # (..., parts × rank)
        ranges = zip(self.lora.values(), self.rows.values(), strict=True)
        spread = [F.pad(part.b, (0, 0, start, self.out_features - end)) for part, (start, end) in ranges]
        spread = torch.cat(spread, dim=1)  # (out_features, parts × rank)
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), spread.T).view(y.shape)

    def merge(self) -> None:
        """Fold the updates into a copy of the weight."""
        self.merged = self.folded()

    @torch.no_grad()
    def folded(self) -> Tensor:
        """The weight with the updates in it."""
        weight = self.weight.detach().clone()
        for name, (start, end) in self.rows.items():
            weight[start:end] += self.lora[name].product()
        return weight

    def train(self, mode: bool = True) -> LoRALinear:
        """As of nn.Module; a layer that is trained is not merged."""
        if mode:
            self.merged = None
        return super().train(mode)


class LowRank(nn.Module):
    """The factors of an update: `a`, (rank, in_features), and `b`, (out_features, rank)."""

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, in_features))
        self.b = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def product(self) -> Tensor:
        """B A: (out_features, in_features)."""
        return self.b @ self.a


def _merge_again(layer: LoRALinear, incompatible_keys: Any) -> None:
    """After a state dict is loaded; called however the network around the layer is wrapped."""
    if layer.merged is not None:
        layer.merge()


def merge(network: nn.Module) -> None:
    """Merge every adapted layer of a network; it must be in eval mode."""
    for module in network.modules():
        if isinstance(module, LoRALinear):
            module.merge()


def merged_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of the same network without LoRA, its updates folded into the weights."""
    state = {name: value for name, value in network.state_dict().items() if ".lora." not in name}
    for name, module in network.named_modules():
        if isinstance(module, LoRALinear):
            state[f"{name}.weight"] = module.folded()
    return state

"""Counts what a network keeps, and how much it computes, without computing: on torch's meta device."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

FLOAT = 4  # bytes
_PAIR = 2  # batch norm refuses a single value per channel, which one small picture may come down to


@dataclass(frozen=True)
class Count:
    """Of one network and one patch size, in float32; everything but the first two is for one picture."""

    weight_bytes: int  # of all parameters and buffers
    state_bytes: int  # gradients of the trained parameters, and AdamW's two moments
    saved_bytes: int  # what a forward pass keeps for the backward pass
    logits_bytes: int  # the maps it returns
    forward_flops: int
    step_flops: int  # forward and backward
    batch_norm: bool  # whether the result depends on the size of a micro-batch


def count(
    architecture: Mapping[str, Any], channels: int, classes: int, patch: tuple[int, int], *, outputs: int = 1
) -> Count:
    """Count what a training step of the network in `architecture` (as plans write it) takes: seconds, once.

    patch: pixels (height, width); classes: maps of the network; outputs: maps of deep supervision, 1 for none. Attention
    is counted as kept by fused kernels, which do not keep scores.
    """
    return _count(json.dumps(architecture), channels, classes, tuple(patch), outputs)


@functools.cache
def _count(written: str, channels: int, classes: int, patch: tuple[int, int], outputs: int) -> Count:
    architecture = json.loads(written)
    arguments, imports = architecture["arch_kwargs"], architecture["_kw_requires_import"]
    with torch.device("meta"):
        network = get_network_from_plans(
            architecture["network_class_name"],
            arguments,
            imports,
            channels,
            classes,
            deep_supervision=outputs > 1,
        )
        picture = torch.empty(_PAIR, channels, *patch)
    network.train()
    network.pretrained = True  # ours refuse to train from random weights
    with FlopCounterMode(display=False) as forward:
        maps = _as_list(network(picture))
    with FlopCounterMode(display=False) as backward:
        torch.autograd.backward(maps, [torch.empty_like(one) for one in maps])
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return Count(
        weight_bytes=sum(t.nbytes for t in (*network.parameters(), *network.buffers())),
        state_bytes=3 * FLOAT * trained,
        saved_bytes=_saved_bytes(network, picture) // _PAIR,
        logits_bytes=sum(one.nbytes for one in maps) // _PAIR,
        forward_flops=forward.get_total_flops() // _PAIR,
        step_flops=(forward.get_total_flops() + backward.get_total_flops()) // _PAIR,
        batch_norm=any(isinstance(module, _BatchNorm) for module in network.modules()),
    )


def _saved_bytes(network: nn.Module, picture: Tensor) -> int:
    """Bytes of the storages that autograd keeps, parameters not counted; each counts once."""
    parameters = {p.untyped_storage()._cdata for p in network.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}  # kept, lest another gets the address of one that is gone

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            storages[storage._cdata] = storage
        return tensor

    with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(picture)
    return sum(storage.nbytes() for storage in storages.values())


class _FusedAttention(TorchFunctionMode):
    """On the meta device torch takes the form of attention that keeps all scores; on real ones it rarely does."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is nn.functional.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
        return function(*args, **(kwargs or {}))


def _as_list(outputs: Tensor | list[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)

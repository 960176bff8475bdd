"""Names and shapes of SAM 2 and SAM2-UNet checkpoints, brought to the names of our network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from samnn.errors import Problems, SamnnError

from .adapted_hiera import ARCHITECTURES, META_DEFAULTS

_TRUNK = "encoder.trunk."
_PATCHES = "patch_embed.proj.weight"
_POSITIONS = "pos_embed_window"


def trunk(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The image encoder in a checkpoint of Meta's ({"model": {"image_encoder.trunk.*"}}) → under our names.

    The wrapping "model" and the prefix may be absent; the rest of SAM 2 is left out.

    Raises:
        SamnnError: there is no such encoder.
    """
    tensors = state_dict.get("model", state_dict)
    prefixes = [key.removesuffix(_POSITIONS) for key in tensors if key.endswith(_POSITIONS)]
    if not prefixes or prefixes[0] + _PATCHES not in tensors:
        raise SamnnError(
            "These weights are not SAM 2's: expected Meta's image_encoder.trunk.patch_embed.*, "
            f"image_encoder.trunk.blocks.*, …; found {_some(tensors)}."
        )
    own = {
        key.removeprefix(prefixes[0]): value for key, value in tensors.items() if key.startswith(prefixes[0])
    }
    return {_TRUNK + _mlp_name(key): value for key, value in own.items()}


def reference(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole state dict of WZH0120/SAM2-UNet → under our names, without `up4`, of which it makes no use.

    A prefix before every key (`module.`, `_orig_mod.`) is taken off.

    Raises:
        SamnnError: it is not of that project.
    """
    anchor = "encoder." + _POSITIONS
    prefixes = [key.removesuffix(anchor) for key in state_dict if key.endswith(anchor)]
    if not prefixes or prefixes[0] + "rfb1.conv_cat.conv.weight" not in state_dict:
        raise SamnnError(
            "These weights are not of the public SAM2-UNet: expected encoder.*, rfb1.*, up1.*, head.*, …; "
            f"found {_some(state_dict)}."
        )
    given = {key.removeprefix(prefixes[0]): value for key, value in state_dict.items()}
    return {_our_name(key): value for key, value in given.items() if not key.startswith("up4.")}


def fitted(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], *, wanted: tuple[str, ...], network: str
) -> dict[str, Tensor]:
    """`given` in the shapes of those tensors of `own` whose names start with `wanted`.

    A patch embedding for three channels serves one: summed over them, it does what it does with a repeated channel.

    Raises:
        Problems: names are missing or unexpected, or shapes differ.
    """
    expected = {key: value for key, value in own.items() if key.startswith(wanted)}
    result = dict(given)
    patches = _TRUNK + _PATCHES
    if patches in given and given[patches].shape[1] == 3 and own[patches].shape[1] == 1:
        result[patches] = given[patches].sum(dim=1, keepdim=True)
    problems = [
        *_listed("missing", [key for key in expected if key not in given]),
        *_listed("unexpected", [key for key in given if key not in expected]),
        *_listed(
            "another shape",
            [
                f"{key}: found {tuple(result[key].shape)}, expected {tuple(value.shape)}"
                for key, value in expected.items()
                if key in result and result[key].shape != value.shape
            ],
        ),
    ]
    if problems:
        raise Problems(
            f"These weights do not fit this SAM2UNet ({network}): found a trunk of {_described(given)}, "
            f"expected {_described(own)}.",
            problems,
        )
    return result


def _our_name(key: str) -> str:
    for pattern, name in _NAMES:
        if re.match(pattern, key):
            key = re.sub(pattern, name, key)
            break
    return re.sub(r"#(\d+)", lambda number: str(int(number[1]) - 1), _mlp_name(key))


_NAMES = [  # '#' counts from one there, from zero here
    (r"encoder\.blocks\.(\d+)\.block\.", rf"{_TRUNK}blocks.\1."),
    (r"encoder\.blocks\.(\d+)\.prompt_learn\.0\.", r"encoder.adapters.\1.reduce."),
    (r"encoder\.blocks\.(\d+)\.prompt_learn\.2\.", r"encoder.adapters.\1.expand."),
    (r"encoder\.", _TRUNK),
    (r"rfb(\d)\.branch(\d)\.(\d)\.conv\.", r"decoder.receptive_fields.#\1.branches.\2.\3.0."),
    (r"rfb(\d)\.branch(\d)\.(\d)\.bn\.", r"decoder.receptive_fields.#\1.branches.\2.\3.1."),
    (r"rfb(\d)\.conv_cat\.conv\.", r"decoder.receptive_fields.#\1.merge.0."),
    (r"rfb(\d)\.conv_cat\.bn\.", r"decoder.receptive_fields.#\1.merge.1."),
    (r"rfb(\d)\.conv_res\.conv\.", r"decoder.receptive_fields.#\1.shortcut.0."),
    (r"rfb(\d)\.conv_res\.bn\.", r"decoder.receptive_fields.#\1.shortcut.1."),
    (r"up(\d)\.conv\.double_conv\.", r"decoder.ups.#\1.convolve."),
    (r"head\.", "decoder.seg_layers.0."),
    (r"side(\d)\.", r"decoder.seg_layers.\1."),
]


def _mlp_name(key: str) -> str:
    """timm's name for the layers of an MLP, from Meta's."""
    return key.replace(".mlp.layers.0.", ".mlp.fc1.").replace(".mlp.layers.1.", ".mlp.fc2.")


def _described(tensors: Mapping[str, Tensor]) -> str:
    """The sizes one can see in a trunk, and the published trunk that has them."""
    channels = tensors[_TRUNK + _POSITIONS].shape[1]
    blocks = {key.split(".")[3] for key in tensors if key.startswith(f"{_TRUNK}blocks.")}
    names = [
        name
        for name, sizes in ARCHITECTURES.items()
        if (channels, len(blocks)) == (
            (full := {**META_DEFAULTS, **sizes})["embed_dim"], sum(full["stages"])
        )
    ]  # fmt: skip
    return f"{len(blocks)} blocks and {channels} channels" + (f" ({names[0]})" if names else "")


def _some(keys: Iterable[str]) -> str:
    return ", ".join(list(keys)[:3]) or "nothing"


def _listed(what: str, keys: list[str], shown: int = 5) -> list[str]:
    if not keys:
        return []
    more = f" … and {len(keys) - shown} more" if len(keys) > shown else ""
    return [f"{what}: {', '.join(keys[:shown])}{more}"]

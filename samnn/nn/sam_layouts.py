"""Names and shapes of published SAM and SAMed checkpoints, brought to the names of our network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from samnn.errors import SamnnError

from .sam_encoder import resize_positions

Tensors = Mapping[str, Tensor]


@dataclass
class LoadReport:
    """What became of a checkpoint: names of our network's tensors, and for `unused` those that Meta gives them."""

    layout: str
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.layout} layout: {len(self.loaded)} tensors loaded, {len(self.resized)} of them resized, "
            f"{len(self.new)} newly made, {len(self.unused)} of the file unused"
        )


def meta_layout(state_dict: Tensors) -> tuple[str, dict[str, Tensor]]:
    """A checkpoint of SAM in Meta's, timm's or Hugging Face's layout → that layout's name, and Meta's names.

    MedSAM's is Meta's. A prefix before every key (`module.`, `sam.`) is taken off.

    Raises:
        SamnnError: it is none of these.
    """
    for layout, anchor in _ANCHORS.items():
        found = [key for key in state_dict if key == anchor or key.endswith(f".{anchor}")]
        if found:
            prefix = found[0].removesuffix(anchor)
            tensors = {key.removeprefix(prefix): value for key, value in state_dict.items()}
            return layout, {_meta_name(key, layout): value for key, value in tensors.items()}
    some = ", ".join(list(state_dict)[:3]) or "nothing"
    raise SamnnError(
        f"These weights are not SAM's: found {some} …; expected Meta's image_encoder.*, timm's patch_embed.*, blocks.* "
        "or Hugging Face's vision_encoder.*."
    )


PER_CLASS = ("mask_decoder.mask_tokens.", "mask_decoder.output_hypernetworks_mlps.")
_ANCHORS = {  # the first that fits; timm's is the end of Meta's
    "Meta": "image_encoder.patch_embed.proj.weight",
    "Hugging Face": "vision_encoder.patch_embed.projection.weight",
    "timm": "patch_embed.proj.weight",
}
_HUGGING_FACE = [  # order matters
    (r"\.layer_norm", ".norm"),
    (r"^vision_encoder\.", "image_encoder."),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"^image_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^image_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^image_encoder\.neck\.norm1\.", "image_encoder.neck.1."),
    (r"^image_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^image_encoder\.neck\.norm2\.", "image_encoder.neck.3."),
    (r"^(?:shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"^(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))\.layers\.0\.", r"\1.layers.1."),
    (r"^(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))\.proj_in\.", r"\1.layers.0."),
    (r"^(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))\.proj_out\.", r"\1.layers.2."),
]  # fmt: skip


def _meta_name(key: str, layout: str) -> str:
    if layout == "timm":
        return "image_encoder." + key.replace(".mlp.fc", ".mlp.lin")
    if layout == "Hugging Face":
        for pattern, name in _HUGGING_FACE:
            key = re.sub(pattern, name, key)
    return key


def our_tensors(meta: Tensors) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under Meta's names → under ours, and the names for which our network has no use."""
    ours, unused = {}, []
    for key, value in meta.items():
        if key == "mask_decoder.mask_tokens.weight":
            ours |= {f"decoder.seg_layers.{k}.token": value[k : k + 1] for k in range(len(value))}
        elif (name := _our_name(key)) is not None:
            ours[name] = value
        else:
            unused.append(key)
    return ours, unused


def _our_name(key: str) -> str | None:
    for pattern, name in _OURS:
        if re.match(pattern, key):
            return re.sub(pattern, name, key)
    return None


_OURS = [
    (r"^image_encoder\.(blocks\.\d+\.mlp)\.lin", r"encoder.\1.fc"),
    (r"^image_encoder\.", "encoder."),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", "decoder.position_matrix"),
    (r"^prompt_encoder\.no_mask_embed\.weight$", "decoder.no_mask_embed"),
    (r"^mask_decoder\.iou_token\.weight$", "decoder.iou_token"),
    (r"^mask_decoder\.output_hypernetworks_mlps\.(\d+)\.", r"decoder.seg_layers.\1."),
    (r"^mask_decoder\.(transformer|output_upscaling)\.", r"decoder.\1."),
]


def without_wrappers(meta: Tensors) -> dict[str, Tensor]:
    """The names of a full state dict of SAMed's classes, which wrap the layers they adapt → names of `from_adapter`."""
    renamed = {}
    for key, value in meta.items():
        for pattern, name in _WRAPPED:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed


_WRAPPED = [
    (r"\.attn\.qkv\.qkv\.", ".attn.qkv."),
    (r"\.attn\.qkv\.linear_(a|b)_(q|v)\.weight$", r".attn.qkv.lora.\2.\1"),
    (r"\.(q|v)_proj\.proj\.", r".\1_proj."),
    (r"\.(q|v)_proj\.w_(a|b)\.weight$", r".\1_proj.lora.out.\2"),
]


def first_token_silent(ours: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Class 0 becomes the silent token, class k + 1 becomes class k; its own small network is dropped, by name."""
    renamed, dropped = {}, []
    for name, value in ours.items():
        if not (match := re.match(r"decoder\.seg_layers\.(\d+)\.(.*)", name)):
            renamed[name] = value
        elif (index := int(match[1])) > 0:
            renamed[f"decoder.seg_layers.{index - 1}.{match[2]}"] = value
        elif match[2] == "token":
            renamed["decoder.silent_token"] = value
        else:
            dropped.append(f"mask_decoder.output_hypernetworks_mlps.0.{match[2]}")
    return renamed, dropped


def from_adapter(state_dict: Tensors) -> dict[str, Tensor]:
    """SAMed's adapter file → Meta's names, and for LoRA `<layer>.lora.<part>.<a or b>`."""
    renamed = {}
    for key, value in state_dict.items():
        short = re.fullmatch(r"(w|sa|cti|cit)_(a|b)_(\d{3})", key)
        last = re.fullmatch(r"fati_(q|v)(a|b)", key)
        if short:
            kind, matrix, number = short[1], short[2], int(short[3])
            index, part = number // 2, "qv"[number % 2]
            if kind == "w":
                key = f"image_encoder.blocks.{index}.attn.qkv.lora.{part}.{matrix}"
            else:
                layer = f"mask_decoder.transformer.layers.{index}.{_ATTENTIONS[kind]}"
                key = f"{layer}.{part}_proj.lora.out.{matrix}"
        elif last:
            key = f"mask_decoder.transformer.final_attn_token_to_image.{last[1]}_proj.lora.out.{last[2]}"
        renamed[key] = value
    return renamed


_ATTENTIONS = {"sa": "self_attn", "cti": "cross_attn_token_to_image", "cit": "cross_attn_image_to_token"}


def missing_for_adapter(own: Tensors, base: Tensors) -> list[str]:
    """What `to_adapter` needs and `base`, with Meta's names, has not: our names, or Meta's of what we do not keep."""
    found = {_our_name(key) for key in base}
    shared = [
        name for name in own if name.startswith("decoder.") and not re.search(r"\.(lora|seg_layers)\.", name)
    ]
    return [name for name in shared if name not in found] + [key for key in _THEIRS if key not in base]


_THEIRS = [
    *(f"prompt_encoder.point_embeddings.{k}.weight" for k in range(4)),
    "prompt_encoder.not_a_point_embed.weight",
    *(f"prompt_encoder.mask_downscaling.{k}.{kind}" for k in (0, 1, 3, 4, 6) for kind in ("weight", "bias")),
    *(f"mask_decoder.iou_prediction_head.layers.{k}.{kind}" for k in range(3) for kind in ("weight", "bias")),
]


def to_adapter(own: Tensors, base: Tensors) -> dict[str, Tensor]:
    """Our state dict → SAMed's adapter file, or SAMed_s's if the decoder has LoRA.

    `base` has Meta's names. The head that predicts the masks' quality, which has an output a mask, gets zeros for
    those that the base has not.
    """
    classes = sum(name.endswith(".token") for name in own)
    in_decoder = any(name.startswith("decoder.") and ".lora." in name for name in own)
    file: dict[str, Tensor] = {}
    for name, value in own.items():
        if ".lora." in name:
            file[_adapter_name(name)] = value
    for key, value in base.items():
        if key.startswith("prompt_encoder.") or (
            key.startswith("mask_decoder.")
            and not key.startswith(PER_CLASS)
            and not (in_decoder and key.startswith("mask_decoder.transformer."))
        ):
            name = _our_name(key)
            file[key] = own.get(name, value)
    for kind in ("weight", "bias"):
        key = f"mask_decoder.iou_prediction_head.layers.2.{kind}"
        head = base[key]
        file[key] = head.new_zeros(classes, *head.shape[1:])
        file[key][: len(head)] = head[:classes]
    tokens = [own[f"decoder.seg_layers.{k}.token"] for k in range(classes)]
    file["mask_decoder.mask_tokens.weight"] = torch.cat(tokens)
    for name, value in own.items():
        if match := re.fullmatch(r"decoder\.seg_layers\.(\d+)\.(layers\..*)", name):
            file[f"mask_decoder.output_hypernetworks_mlps.{match[1]}.{match[2]}"] = value
    return file


def _adapter_name(name: str) -> str:
    """Our name of a LoRA matrix → SAMed's."""
    if match := re.fullmatch(r"encoder\.blocks\.(\d+)\.attn\.qkv\.lora\.(q|v)\.(a|b)", name):
        return f"w_{match[3]}_{2 * int(match[1]) + 'qv'.index(match[2]):03d}"
    part, matrix = name[-len("q_proj.lora.out.a")], name[-1]
    if match := re.match(r"decoder\.transformer\.layers\.(\d+)\.(\w+)\.", name):
        kind = next(short for short, attention in _ATTENTIONS.items() if attention == match[2])
        return f"{kind}_{matrix}_{2 * int(match[1]) + 'qv'.index(part):03d}"
    return f"fati_{part}{matrix}"


def fitted(name: str, value: Tensor, shape: torch.Size) -> Tensor | None:
    """A tensor brought to the shape our network has: positions resized, RGB summed up; None if it cannot be."""
    if value.shape == shape:
        return value
    if name == "encoder.pos_embed" and value.shape[-1] == shape[-1]:
        return resize_positions(value, shape[1:3])
    if ".rel_pos_" in name and value.shape[1] == shape[1]:
        lengths = value.T[None].float()  # (1, channels, length)
        return F.interpolate(lengths, shape[0], mode="linear", align_corners=False)[0].T
    if name == "encoder.patch_embed.proj.weight" and value.shape[1] == 3 and shape[1] == 1:
        return value.sum(dim=1, keepdim=True)  # what the three do with a channel that is repeated
    return None


def encoder_sizes(meta: Tensors) -> dict[str, int]:
    """The sizes of a checkpoint's image encoder, read from its shapes."""
    weight = meta["image_encoder.patch_embed.proj.weight"]
    blocks = {key.split(".")[2] for key in meta if key.startswith("image_encoder.blocks.")}
    heads = {key: len(value[0]) for key, value in meta.items() if key.endswith("rel_pos_h")}
    return {
        "embed_dim": weight.shape[0],
        "depth": len(blocks),
        "num_heads": weight.shape[0] // next(iter(heads.values()), weight.shape[0]),
        "patch_size": weight.shape[-1],
    }

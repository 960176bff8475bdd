"""SAMed: SAM's image encoder with LoRA and a prompt-free mask decoder for several classes (Zhang, Liu 2023, arXiv 2304.13785)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samnn.atomic import whole_file
from samnn.errors import Problems, SamnnError

from . import lora, sam_layouts
from .coarse import Coarse
from .sam_decoder import MaskDecoder
from .sam_encoder import SAMEncoder
from .sam_layouts import LoadReport

_COMMON = {
    "window_size": 14, "patch_size": 16, "mlp_ratio": 4, "prompt_dim": 256, "decoder_heads": 8,
    "decoder_mlp_dim": 2048, "base_image_size": 1024,
}  # fmt: skip
ARCHITECTURES = {
    "sam_vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_attn_indexes": [2, 5, 8, 11], **_COMMON},
    "sam_vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "global_attn_indexes": [5, 11, 17, 23], **_COMMON},
    "sam_vit_h": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": [7, 15, 23, 31], **_COMMON},
}  # fmt: skip
ADAPTATIONS = ("lora", "lora_decoder", "frozen", "full")


class SAMed(Coarse):
    """Segment pictures of any size with SAM's image encoder, adapted.

    Args:
        input_channels: channels of the picture. One is what SAM makes of a grey picture, three are taken as they are,
            any other number is brought to three by a learned 1x1 convolution.
        num_classes: channels of the logits, one token of the decoder each: the background first and then the classes,
            or, with regions, which have no background, the regions alone.
        deep_supervision: what nnU-Net asks for. There is one output, so it only decides how that is handed over:
            while `decoder.deep_supervision` is true, `forward` returns `[logits]`.
        backbone: sam_vit_b, sam_vit_l or sam_vit_h.
        image_size: pictures are resized to it, in pixels, multiples of 16. An int is a square, whatever the aspect of
            the picture; (height, width) is as given; None is the square with the smallest multiple of 224 as its
            side that is not below the longer side of the picture, 224 being SAM's window of 14 tokens.
        lora_rank: rank of LoRA on query and value.
        adapt: "lora" trains LoRA in the encoder, and the decoder (SAMed); "lora_decoder" trains LoRA in both, and
            of the decoder besides all but its transformer (SAMed_s); "frozen" trains the decoder; "full" everything.
        architecture: sizes of another network than the named backbones, in the names of `ARCHITECTURES`.
        gradient_checkpointing: compute the blocks of the encoder again in the backward pass instead of keeping
            their insides.
        scratch: train from random weights. Without it the first forward in training mode raises unless weights were
            loaded.
        silent_token: a token before those of the classes that has no map, as in AI4MI's networks; loading one of
            those adds it.
        merged: stand in evaluation mode with LoRA merged, which following loads merge anew: for prediction.
        strides: not used here. nnU-Net's own trainers read it in the plans: how much coarser each output of deep
            supervision is than the one before; [[1, 1]] for each, and two more.

    All but the first two arguments are JSON, as nnU-Net's plans need them. The names of all parameters whose shape
    depends on `num_classes` contain `.seg_layers.`, which nnU-Net leaves out of `-pretrained_weights`.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        backbone: str = "sam_vit_b",
        image_size: int | Sequence[int] | None = None,
        lora_rank: int = 4,
        adapt: str = "lora",
        architecture: Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        scratch: bool = False,
        silent_token: bool = False,
        merged: bool = False,
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if input_channels < 1 or num_classes < 1 or lora_rank < 1:
            raise SamnnError(
                f"SAMed needs channels, classes and a rank; got {input_channels=}, {num_classes=}, {lora_rank=}."
            )
        if adapt not in ADAPTATIONS:
            raise SamnnError(f"SAMed has no adapt={adapt!r}; there are {', '.join(ADAPTATIONS)}.")
        self.sizes = sizes = _sizes(backbone, architecture)
        self.backbone = backbone if architecture is None else "another architecture"
        self.adapt, self.lora_rank = adapt, lora_rank
        self.image_size = _image_size(image_size, sizes["patch_size"])
        self.window = sizes["window_size"] * sizes["patch_size"]
        self.pretrained = scratch
        self.register_load_state_dict_post_hook(_now_pretrained)

        channels = 1 if input_channels == 1 else 3
        self.project = nn.Identity()
        if input_channels not in (1, 3):
            self.project = nn.Conv2d(input_channels, channels, 1)
            nn.init.orthogonal_(self.project.weight)  # keeps the contrast
        base = sizes["base_image_size"]
        self.encoder = SAMEncoder(
            self.image_size or (base, base),
            channels,
            lora_rank=lora_rank if adapt.startswith("lora") else 0,
            neck_chans=sizes["prompt_dim"],
            **{name: sizes[name] for name in _ENCODER_SIZES},
        )
        self.encoder.grad_checkpointing = gradient_checkpointing
        self.decoder = MaskDecoder(
            num_classes,
            sizes["prompt_dim"],
            sizes["decoder_heads"],
            sizes["decoder_mlp_dim"],
            lora_rank=lora_rank if adapt == "lora_decoder" else 0,
            silent_token=silent_token,
        )
        self.decoder.deep_supervision = deep_supervision
        frozen = [] if adapt == "full" else [self.encoder]
        if adapt == "lora_decoder":
            frozen.append(self.decoder.transformer)
        for part in frozen:
            for name, parameter in part.named_parameters():
                parameter.requires_grad = ".lora." in name
        if merged:
            self.merge()

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(B, input_channels, H, W) → logits (B, num_classes, H, W), for any H and W."""
        if self.training and not self.pretrained:
            raise SamnnError(
                "This SAMed was to be trained from SAM's weights, but none were loaded. Load them (load_sam), or ask "
                "for training from random weights (scratch=True; a trainer's suffix _scratch)."
            )
        logits = self.enlarge(self.coarse_logits(self.resize(image)), tuple(image.shape[-2:]))
        return [logits] if self.decoder.deep_supervision else logits

    def resize(self, image: Tensor) -> Tensor:
        """(B, input_channels, H, W) → (B, input_channels, *image_size)."""
        patch = tuple(image.shape[-2:])
        size = self.image_size or self.square(patch)
        return image if size == patch else F.interpolate(image, size, mode="bilinear", antialias=True)

    def coarse_logits(self, resized: Tensor) -> Tensor:
        """(B, input_channels, h, w) → (B, num_classes, h / 4, w / 4)."""
        return self.decoder(self.encoder(self.project(resized)))

    def enlarge(self, logits: Tensor, size: tuple[int, ...]) -> Tensor:
        """(B, num_classes, h / 4, w / 4) → (B, num_classes, *size)."""
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)

    def square(self, patch: tuple[int, int]) -> tuple[int, int]:
        """The image size for a patch when none was given, both in pixels (height, width)."""
        side = -(-max(patch) // self.window) * self.window
        return side, side

    @property
    def output_layers(self) -> list[nn.Module]:
        """The last layer of each class: what remains trainable where everything else is frozen."""
        return [head.layers[-1] for head in self.decoder.seg_layers]

    def merge(self) -> None:
        """Fold LoRA into the weights and go to evaluation mode; `train()` unfolds it.

        The weights themselves and the state dict stay as they are; loading another state dict folds anew.
        """
        self.eval()
        lora.merge(self)

    def load_sam(self, state_dict: Mapping[str, Tensor]) -> LoadReport:
        """Load a checkpoint of SAM or MedSAM in Meta's, timm's or Hugging Face's layout.

        Positions are resized to `image_size` as in SAMed. timm's layout has no decoder. The classes' tokens and
        networks, LoRA and the 1x1 projection are newly made in any case, that is, left as they are.

        Raises:
            SamnnError: it is none of these, of another variant, or incomplete; nothing is loaded.
        """
        layout, meta = sam_layouts.meta_layout(state_dict)
        self._refuse_other_variant(meta)
        classes = [key for key in meta if key.startswith(sam_layouts.PER_CLASS)]
        ours, unused = sam_layouts.our_tensors({key: meta[key] for key in meta if key not in classes})
        parts = [".lora.", ".seg_layers.", "project.", ".silent_token"]
        if not any(name.startswith("decoder.") for name in ours):
            parts.append("decoder.")
        new = [name for name in self.state_dict() if any(part in name for part in parts)]
        loaded, resized = self._load(ours, missing_is_fine=new)
        return LoadReport(layout, loaded, resized, new, classes + unused)

    def load_samed(self, state_dict: Mapping[str, Tensor]) -> LoadReport:
        """Load what SAMed or SAMed_s trained (an adapter file, after `load_sam`), or a full state dict of AI4MI.

        AI4MI's decoder has a token before those of the classes, whose map is thrown away; this network gets it then.

        Raises:
            SamnnError: it is none of these, has another rank, other classes or LoRA elsewhere; nothing is loaded.
        """
        new = [name for name in self.state_dict() if name.startswith("project.")]
        if "w_a_000" in state_dict:
            if not self.pretrained:
                raise SamnnError(
                    "This file holds what SAMed changed of SAM: load SAM's weights before (load_sam)."
                )
            ours, unused = sam_layouts.our_tensors(sam_layouts.from_adapter(state_dict))
            frozen = [name for name, value in self.named_parameters() if not value.requires_grad]
            loaded, resized = self._load(ours, missing_is_fine=[*frozen, *new])
            return LoadReport("SAMed", loaded, resized, new, unused)
        _, meta = sam_layouts.meta_layout(state_dict)
        self._refuse_other_variant(meta)
        ours, unused = sam_layouts.our_tensors(sam_layouts.without_wrappers(meta))
        ours, dropped = sam_layouts.first_token_silent(ours)
        before = self.decoder.silent_token
        self.decoder.silent_token = nn.Parameter(torch.empty_like(self.decoder.iou_token))
        try:
            loaded, resized = self._load(ours, missing_is_fine=new)
        except SamnnError:
            self.decoder.silent_token = before
            raise
        return LoadReport("AI4MI", loaded, resized, new, unused + dropped)

    def save_samed(self, path: str | os.PathLike[str], base: Mapping[str, Tensor]) -> None:
        """Write SAMed's adapter file (SAMed_s's for adapt="lora_decoder"), which the public project can load.

        Args:
            path: of the file.
            base: the checkpoint of SAM it builds on. Tensors that the public project asks for and this network has no
                use for are taken from it; they have no influence on SAMed's maps.

        Raises:
            SamnnError: this network is no SAMed, or `base` lacks something.
        """
        layout, meta = sam_layouts.meta_layout(base)
        self._refuse_other_variant(meta)
        if not self.adapt.startswith("lora") or self.decoder.silent_token is not None:
            raise SamnnError(
                "SAMed's layout holds LoRA and a decoder with one token a class; this network is another."
            )
        if not isinstance(self.project, nn.Identity):
            raise SamnnError(
                "SAMed's layout has no place for the 1x1 convolution of this network's channels."
            )
        if layout == "timm":
            raise SamnnError(
                "timm's layout of SAM lacks the decoder: give Meta's or Hugging Face's checkpoint."
            )
        if missing := sam_layouts.missing_for_adapter(self.state_dict(), meta):
            raise Problems(
                "The base checkpoint is incomplete; give one of SAM as published. It lacks", missing
            )
        with whole_file(Path(path)) as part:
            torch.save(sam_layouts.to_adapter(self.state_dict(), meta), part)

    def _load(self, ours: dict[str, Tensor], missing_is_fine: list[str]) -> tuple[list[str], list[str]]:
        """Load tensors under our names, brought to our shapes; return the names of all, and of those so brought."""
        own = self.state_dict()
        self._refuse_other_lora(ours)
        classes = len({name.split(".")[2] for name in ours if name.startswith("decoder.seg_layers.")})
        if classes not in (0, len(self.decoder.seg_layers)):
            raise SamnnError(
                f"These weights are for {classes} maps, background included; this network has "
                f"{len(self.decoder.seg_layers)}: build it with num_classes={classes}."
            )
        problems = [f"missing: {name}" for name in own if name not in ours and name not in missing_is_fine]
        problems += [f"unexpected: {name}" for name in ours if name not in own]
        fitted = {name: sam_layouts.fitted(name, ours[name], own[name].shape) for name in ours if name in own}
        problems += [
            f"another shape: {name} {tuple(ours[name].shape)}, expected {tuple(own[name].shape)}"
            for name, value in fitted.items()
            if value is None
        ]
        if problems:
            raise Problems("These weights do not fit this SAMed.", problems)
        self.load_state_dict(fitted, strict=False)
        return list(fitted), [name for name in fitted if ours[name].shape != own[name].shape]

    def _refuse_other_variant(self, meta: Mapping[str, Tensor]) -> None:
        """Say in one sentence which encoder a checkpoint holds when it is not this network's."""
        found = sam_layouts.encoder_sizes(meta)
        expected = {name: self.sizes[name] for name in found}
        if found != expected:
            named = [name for name, sizes in ARCHITECTURES.items() if found.items() <= sizes.items()]
            raise SamnnError(
                f"These weights are of {named[0] if named else 'another encoder'} ({_spelled(found)}); this network is "
                f"{self.backbone} ({_spelled(expected)}). Load a checkpoint of that, or build the other network."
            )

    def _refuse_other_lora(self, ours: Mapping[str, Tensor]) -> None:
        """Say in one sentence where a checkpoint has LoRA, and of which rank, when that is not this network's."""
        given = {name: len(value) for name, value in ours.items() if name.endswith(".a")}
        if not given:
            return
        adapt = "lora_decoder" if any(name.startswith("decoder.") for name in given) else "lora"
        rank = next(iter(given.values()))
        if (adapt, rank) != (self.adapt, self.lora_rank):
            raise SamnnError(
                f"These weights are of adapt={adapt!r}, lora_rank={rank}; this network has adapt={self.adapt!r}, "
                f"lora_rank={self.lora_rank}: build it like that."
            )


_ENCODER_SIZES = (
    "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "window_size", "global_attn_indexes",
)  # fmt: skip


def _sizes(backbone: str, architecture: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The sizes of a named backbone, or those given, of which none may be missing."""
    if architecture is None:
        if backbone not in ARCHITECTURES:
            raise SamnnError(f"SAMed has no backbone {backbone!r}; there are {', '.join(ARCHITECTURES)}.")
        return ARCHITECTURES[backbone]
    missing = [name for name in ARCHITECTURES["sam_vit_b"] if name not in architecture]
    if missing:
        raise SamnnError(f"The architecture lacks {', '.join(missing)}.")
    return architecture


def _image_size(given: int | Sequence[int] | None, patch_size: int) -> tuple[int, int] | None:
    """(height, width), or None."""
    if given is None:
        return None
    size = (given, given) if isinstance(given, int) else tuple(given)
    if len(size) != 2 or any(not isinstance(side, int) or side < 1 or side % patch_size for side in size):
        raise SamnnError(
            f"image_size must be multiples of {patch_size}, a side or (height, width); got {given!r}."
        )
    return size


def _now_pretrained(network: SAMed, incompatible_keys: Any) -> None:
    """After a state dict is loaded, also as part of a wrapper's."""
    network.pretrained = True


def _spelled(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sizes.items())

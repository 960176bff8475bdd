"""The pretrained checkpoints samnn knows: where they come from, and how to tell that a file is the right one.

Each sha256 stands on the page `sha256_page` names; none was computed here. Where no page publishes one, it is None:
then tensors and their shapes decide, and the sha256 of the first file that fits is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from samnn.errors import SamnnError

if TYPE_CHECKING:
    from torch import Tensor

_META_SAM = "https://dl.fbaipublicfiles.com/segment_anything"
_META_SAM2 = "https://dl.fbaipublicfiles.com/segment_anything_2"
_SAM_PAGE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
_SAM2_PAGE = "https://github.com/facebookresearch/sam2#download-checkpoints"
# Meta publishes no hashes: these are where others do, beside Meta's links or as pointers to the same large files.
_SAM_SHA256 = "https://huggingface.co/mashb1t/misc/commit/78e181357bf2e286bf2e76635c0b5cd89583c5d9"
_SAM2_SHA256 = (
    "https://github.com/computational-cell-analytics/micro-sam/blob/"
    "4f6cca85a2e9ca9e25ec4df0eab4e239f9a48fcc/micro_sam/v2/util.py"
)
_MEDSAM_SHA256 = (
    "https://huggingface.co/spaces/dennistrujillo/MedSAMTest/commit/2c1bc6a7c8a18a6e72538a8f284f21657b1a7236"
)


@dataclass(frozen=True)
class Entry:
    """One public checkpoint.

    `shapes` are telling tensors, and `absent` tensors that only its larger or later relatives have. Checkpoints that
    differ by training alone (SAM's and MedSAM's ViT-B) share both.
    """

    name: str
    file: str  # in a weights folder
    url: str
    page: str
    licence: str
    size_bytes: int | None
    sha256: str | None
    sha256_page: str | None
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    absent: tuple[str, ...] = field(default=(), repr=False)

    def misfit(self, state: Mapping[str, Tensor]) -> str | None:
        """The first way in which a state dict is not of this architecture, or None where it is."""
        for key, shape in self.shapes.items():
            if key not in state:
                return f"it has no tensor {key}"
            if tuple(state[key].shape) != shape:
                return f"{key} is {_times(state[key].shape)}, not {_times(shape)}"
        extra = next((key for key in self.absent if key in state), None)
        return None if extra is None else f"it has a tensor {extra}, too"


def entry(name: str) -> Entry:
    """The checkpoint called `name`.

    Raises:
        SamnnError: there is none; the message lists those there are.
    """
    if name not in REGISTRY:
        raise SamnnError(f"{name}: no such weights. There are: {', '.join(REGISTRY)}.")
    return REGISTRY[name]


def of_sha256(sha256: str) -> Entry | None:
    """The checkpoint with that hash, if one is known."""
    return next((known for known in REGISTRY.values() if known.sha256 == sha256), None)


def fitting(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the checkpoints whose architecture a state dict has."""
    return [known.name for known in REGISTRY.values() if known.misfit(state) is None]


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(str(length) for length in shape)


def _vit(width: int, depth: int) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    shapes = {
        "image_encoder.patch_embed.proj.weight": (width, 3, 16, 16),
        "image_encoder.pos_embed": (1, 64, 64, width),
        f"image_encoder.blocks.{depth - 1}.attn.qkv.weight": (3 * width, width),
        "prompt_encoder.no_mask_embed.weight": (1, 256),
        "mask_decoder.mask_tokens.weight": (4, 256),
    }
    return shapes, (f"image_encoder.blocks.{depth}.attn.qkv.weight",)


def _sam(letter: str, digits: str, size_bytes: int, sha256: str, width: int, depth: int) -> Entry:
    file = f"sam_vit_{letter}_{digits}.pth"
    url = f"{_META_SAM}/{file}"
    known = (_SAM_PAGE, "Apache-2.0", size_bytes, sha256, _SAM_SHA256)
    return Entry(f"sam_vit_{letter}", file, url, *known, *_vit(width, depth))


def _medsam(size_bytes: int, sha256: str) -> Entry:
    return Entry(
        name="medsam_vit_b",
        file="medsam_vit_b.pth",
        url="https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
        page="https://github.com/bowang-lab/MedSAM",
        licence="Apache-2.0",
        size_bytes=size_bytes,
        sha256=sha256,
        sha256_page=_MEDSAM_SHA256,
        shapes=_vit(768, 12)[0],
        absent=_vit(768, 12)[1],
    )


_HIERA = {  # letter → long name, width of the first stage, blocks, side of the position embedding
    "t": ("tiny", 96, 12, 7),
    "s": ("small", 96, 16, 7),
    "b+": ("base_plus", 112, 24, 14),
    "l": ("large", 144, 48, 7),
}


def _sam2(version: str, letter: str, size_bytes: int, sha256: str) -> Entry:
    long_name, width, depth, side = _HIERA[letter]
    stem, day = {"2.0": ("sam2_hiera", "072824"), "2.1": ("sam2.1_hiera", "092824")}[version]
    file = f"{stem}_{long_name}.pt"
    trunk = "image_encoder.trunk"
    shapes = {
        f"{trunk}.patch_embed.proj.weight": (width, 3, 7, 7),
        f"{trunk}.pos_embed": (1, width, side, side),
        f"{trunk}.blocks.{depth - 1}.attn.qkv.weight": (3 * 8 * width, 8 * width),
    }
    absent: tuple[str, ...] = (f"{trunk}.blocks.{depth}.attn.qkv.weight",)
    if version == "2.1":
        shapes["no_obj_embed_spatial"] = (1, 64)
    else:
        absent += ("no_obj_embed_spatial",)
    url = f"{_META_SAM2}/{day}/{file}"
    known = (_SAM2_PAGE, "Apache-2.0", size_bytes, sha256, _SAM2_SHA256)
    return Entry(f"{stem}_{letter}", file, url, *known, shapes, absent)


# fmt: off
_ENTRIES = (
    _sam("b", "01ec64", 375_042_383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", 768, 12),
    _sam("l", "0b3195", 1_249_524_607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", 1024, 24),
    _sam("h", "4b8939", 2_564_550_879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 1280, 32),
    _medsam(375_049_145, "34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74"),
    _sam2("2.0", "t", 155_906_050, "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125"),
    _sam2("2.0", "s", 184_309_650, "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3"),
    _sam2("2.0", "b+", 323_493_298, "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071"),
    _sam2("2.0", "l", 897_952_466, "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b"),
    _sam2("2.1", "t", 156_008_466, "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
    _sam2("2.1", "s", 184_416_285, "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
    _sam2("2.1", "b+", 323_606_802, "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
    _sam2("2.1", "l", 898_083_611, "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
)
# fmt: on
REGISTRY: dict[str, Entry] = {known.name: known for known in _ENTRIES}

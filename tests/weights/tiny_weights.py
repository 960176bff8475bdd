"""A small checkpoint with random values in SAM's layout."""

from __future__ import annotations

import io

import torch

KEYS = {
    "image_encoder.patch_embed.proj.weight": (24, 3, 16, 16),
    "image_encoder.blocks.1.attn.qkv.weight": (72, 24),
    "mask_decoder.mask_tokens.weight": (4, 256),
}


def state(seed: int = 0, **other: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = KEYS | {"padding": (150_000,)} | other
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def as_bytes(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()

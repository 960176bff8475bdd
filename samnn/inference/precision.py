"""Which numbers a network computes with in prediction: asked for, or chosen by what the hardware has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from samnn import hardware
from samnn.errors import SamnnError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def chosen(name: str, device: torch.device) -> torch.dtype | None:
    """The type of autocast, None being float32. "auto": fp16 on CUDA, as nnU-Net; on a CPU bf16 where it is native.

    Raises:
        SamnnError: there is no such precision.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if hardware.native_bf16(device) else None
    if name not in PRECISIONS:
        raise SamnnError(f"There is no precision {name!r}; there are auto, {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]


def is_emulated(dtype: torch.dtype | None, device: torch.device) -> bool:
    """Whether a CPU computes in `dtype` by way of float32, which is slower than float32 itself."""
    return (
        device.type == "cpu"
        and dtype is not None
        and not (dtype is torch.bfloat16 and hardware.native_bf16(device))
    )


def autocast(dtype: torch.dtype | None, device: torch.device) -> Any:
    """The context of a forward pass; of the calling thread alone."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@contextmanager
def exact_products(dtype: torch.dtype | None, device: torch.device) -> Iterator[None]:
    """For float32 on CUDA: no TF32, which torch allows convolutions by default."""
    if dtype is not None or device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before

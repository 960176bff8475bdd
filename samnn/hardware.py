"""What the hardware has natively and how much memory is free: asked, never assumed."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def native_bf16(device: torch.device) -> bool:
    """Whether `device` computes in bfloat16 itself instead of emulating it (AVX512-BF16, AMX, Ampere and newer)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        try:
            flags = Path("/proc/cpuinfo").read_text()
        except OSError:
            return False
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bf16 where native, on CUDA without bf16 fp16 (needs gradient scaling), else None: float32."""
    if native_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else None


def cores() -> int:
    """Cores this process may compute on: those torch uses, less where its environment allows fewer.

    That is the scheduler, a container's quota, or OMP_NUM_THREADS, which nnU-Net overrides with all cores there are. A
    thread too many is dear: the others of a layer wait for it, spinning.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    wanted = int(asked) if asked.isdecimal() and int(asked) else allowed
    return max(1, min(torch.get_num_threads(), allowed, wanted, _quota()))


def _quota() -> int:
    """Cores that a container's quota amounts to; many where there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return os.cpu_count() or 1


def free_memory_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on `device`; on a CPU the machine's or, where smaller, the cgroup's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return free if limit == "max" else max(0, min(free, int(limit) - used))
    except (OSError, KeyError, ValueError):
        return free


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory for the next layer: glibc would return large blocks, and fresh ones cost a fault a page."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # not glibc
        yield
        return
    if not libc.mallopt(_MMAP_THRESHOLD, 1 << 30):  # refused: there are versions with a limit
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)  # where glibc's own rule ends up after large arrays
        libc.mallopt(_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def saved_activation_bytes(network: torch.nn.Module, sample: torch.Tensor) -> int:
    """Bytes one forward pass of `sample` keeps for its backward pass, parameters not counted.

    Measured with a hook on what autograd saves, so it holds for every device; each storage counts once.
    """
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    storages: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = network(sample)
    del outputs
    return sum(storages.values())

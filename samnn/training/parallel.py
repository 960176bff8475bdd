"""Several processes on any device: nnU-Net wraps its networks for CUDA and nccl alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as host
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def wrapped_for(device: torch.device) -> Iterator[None]:
    """While nnU-Net builds a network: on CUDA all is as it has it; elsewhere batch norm stays that of each process
    (SyncBatchNorm exists for GPUs alone), and DDP is told no device."""
    if device.type == "cuda":
        yield
        return
    norm = nn.SyncBatchNorm
    stock = host.DDP, vars(norm)["convert_sync_batchnorm"]
    host.DDP = lambda network, device_ids: DistributedDataParallel(network)
    norm.convert_sync_batchnorm = staticmethod(lambda network: network)
    try:
        yield
    finally:
        host.DDP, norm.convert_sync_batchnorm = stock

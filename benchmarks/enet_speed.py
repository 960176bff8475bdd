"""How fast ENet predicts and trains: beside AI4MI's, which does the same work, in one run, at batch 8 and 256 x 256.

    git clone https://github.com/HKervadec/ai4mi_project scratch/ai4mi
    git clone https://github.com/davidtvs/PyTorch-ENet scratch/PyTorch-ENet
    python benchmarks/enet_speed.py scratch/ai4mi [--pytorch-enet scratch/PyTorch-ENet]

PyTorch-ENet is another variant: ReLU in its decoder, other layers. All networks keep the memory that layers free, as our
trainers do.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from samnn.hardware import kept_memory
from samnn.inference.precision import autocast, is_emulated
from samnn.nn.enet import ENet

CLASSES, BATCH, SIDE = 5, 8, 256


@dataclass
class Way:
    """A network in one memory format and precision."""

    name: str
    network: nn.Module
    channels_last: bool
    dtype: torch.dtype | None

    def __post_init__(self) -> None:
        self.format = torch.channels_last if self.channels_last else torch.contiguous_format
        self.network.to(memory_format=self.format)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 5e-4)

    def forward(self, image: Tensor) -> None:
        self.network.eval()
        with torch.inference_mode(), autocast(self.dtype, image.device):
            self.network(image.contiguous(memory_format=self.format))

    def step(self, image: Tensor, target: Tensor) -> None:
        self.network.train()
        with autocast(self.dtype, image.device):
            logits = self.network(image.contiguous(memory_format=self.format))
        loss = nn.functional.cross_entropy(logits.float(), target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def ways(ai4mi: Path, pytorch_enet: Path | None, device: torch.device) -> list[Way]:
    """AI4MI's network as it is used, then ours; all also with channels last, and in bf16 where that is native."""
    build = {"AI4MI": lambda: _module(ai4mi, "ENet").ENet(1, CLASSES), "samnn": lambda: ENet(1, CLASSES)}
    if pytorch_enet is not None:
        build["PyTorch-ENet"] = lambda: _grey(_module(pytorch_enet, "models.enet").ENet(CLASSES))
    found = []
    for dtype in (None, torch.bfloat16):
        if is_emulated(dtype, device):
            continue
        for channels_last in (False, True):
            for name, network in build.items():
                if name != "samnn" or not channels_last:  # ours turns to channels last by itself
                    how = f"{'fp32' if dtype is None else 'bf16'}{', channels last' * channels_last}"
                    found.append(Way(f"{name}, {how}", network().to(device), channels_last, dtype))
    return found


def _module(folder: Path, name: str) -> ModuleType:
    sys.path.insert(0, str(folder))
    return importlib.import_module(name)


def _grey(network: nn.Module) -> nn.Module:
    """PyTorch-ENet with a first layer for pictures of one channel instead of three."""
    first = network.initial_block.main_branch
    network.initial_block.main_branch = nn.Conv2d(
        1, 15, first.kernel_size, first.stride, first.padding, bias=False
    )
    return network


def seconds(work: object, *args: Tensor) -> float:
    cuda = args[0].device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    work(*args)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ai4mi", type=Path, help="clone of github.com/HKervadec/ai4mi_project")
    parser.add_argument("--pytorch-enet", type=Path, help="clone of github.com/davidtvs/PyTorch-ENet")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if asked.device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    torch.manual_seed(0)
    image = torch.randn(BATCH, 1, SIDE, SIDE, device=device)
    target = torch.randint(0, CLASSES, (BATCH, SIDE, SIDE), device=device)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {asked.device}, batch {BATCH}, {SIDE} x {SIDE}"
    )
    compared = ways(asked.ai4mi, asked.pytorch_enet, device)
    taken = {(way.name, what): [] for way in compared for what in ("forward", "step")}
    with kept_memory():
        for repeat in range(asked.repeats + 1):  # the first is not timed
            for way in compared:
                forward, step = seconds(way.forward, image), seconds(way.step, image, target)
                if repeat:
                    taken[way.name, "forward"].append(forward)
                    taken[way.name, "step"].append(step)
    print(
        "| network | forward, ms | times the first | training step, ms | times the first |\n|---|---|---|---|---|"
    )
    for way in compared:
        cells = [way.name]
        for what in ("forward", "step"):
            mine, first = taken[way.name, what], taken[compared[0].name, what]
            cells.append(
                f"{1e3 * statistics.median(mine):.0f} ({1e3 * min(mine):.0f} to {1e3 * max(mine):.0f})"
            )
            cells.append(f"{statistics.median(first) / statistics.median(mine):.2f}")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

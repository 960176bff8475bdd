"""How fast the CRF is, forward and backward, and how much memory it takes (on Linux): beside crfseg, in one run."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from samnn.nn.crf import MeanFieldCRF

SHAPES = {"2D": (8, 5, 256, 256), "3D": (1, 5, 32, 128, 128)}  # batch, classes, *spatial


def build(name: str, n_dims: int) -> torch.nn.Module:
    """The CRF of a name, with the defaults that both packages share: window 11, 5 iterations, weight 1, θ 1."""
    if name == "crfseg":
        try:
            from crfseg import CRF
        except ImportError:
            sys.exit("This compares with crfseg: pip install crfseg (or put a clone of it on PYTHONPATH).")
        return CRF(n_dims)
    return MeanFieldCRF(n_dims, kernel="dense" if name == "samnn dense" else "crfseg")


def pictures(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def step(crf: torch.nn.Module, logits: torch.Tensor) -> tuple[float, float]:
    """Seconds of a forward pass, and of forward and backward pass together."""
    logits.grad = None
    start = time.perf_counter()
    loss = crf(logits).square().mean()
    middle = time.perf_counter()
    loss.backward()
    return middle - start, time.perf_counter() - start


def peak_mib(name: str, shape: tuple[int, ...]) -> float:
    """Memory one step adds to a process of its own that holds the logits and has done a tiny step."""
    command = [sys.executable, __file__, "--peak-of", name, *map(str, shape)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(name: str, shape: tuple[int, ...]) -> None:
    crf = build(name, len(shape) - 2)
    step(crf, pictures((1, 2, *[12] * (len(shape) - 2))))
    logits = pictures(shape)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    before = memory_kib("VmRSS")
    step(crf, logits)
    print((memory_kib("VmHWM") - before) / 1024)


def memory_kib(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peak-of", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.peak_of:
        print_peak(asked.peak_of[0], tuple(map(int, asked.peak_of[1:])))
        return
    print(
        f"torch {torch.__version__}, {asked.threads} threads, median of {asked.repeats} (lowest to highest)"
    )
    names = ("crfseg", "samnn", "samnn dense")
    for title, shape in SHAPES.items():
        crfs = {name: build(name, len(shape) - 2) for name in names}
        logits = pictures(shape)
        with torch.no_grad():
            apart = (crfs["samnn"](logits) - crfs["crfseg"](logits)).abs().max().item()
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for _ in range(asked.repeats):
            for name, crf in crfs.items():  # in turn, so that a busy moment hits all
                taken[name].append(step(crf, logits))
        print(f"{title} {shape}: samnn and crfseg at most {apart:.1g} apart")
        baseline = statistics.median(both for _, both in taken["crfseg"])
        for name, seconds in taken.items():
            forward = statistics.median(f for f, _ in seconds)
            both = [b for _, b in seconds]
            median = statistics.median(both)
            print(
                f"  {name:12} forward {forward:6.3f} s, with backward {median:6.3f} s ({min(both):.3f} to "
                f"{max(both):.3f}), {baseline / median:5.2f} times as fast, peak {peak_mib(name, shape):5.0f} MiB"
            )


if __name__ == "__main__":
    main()

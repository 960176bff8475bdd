"""How fast SAMed trains, and in how much memory: beside the public SAMed code, run from its own source."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import statistics
import sys
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samnn.hardware import kept_memory, native_bf16
from samnn.nn.samed import SAMed

CLASSES = 9  # Synapse's eight organs and the background, as SAMed is published
RANK = 4


@dataclass
class Way:
    """One way of making a training step."""

    name: str
    picture: int  # side of the picture, pixels
    source: Path | None = None  # of the public code; None is samnn
    package: str = ""  # of the public code within its source
    logits: str = "low_res_logits"  # those of the public code's outputs that its loss takes
    bf16: bool = False
    gradient_checkpointing: bool = False

    def network(self) -> nn.Module:
        if self.source is not None:
            return Public(self)
        return SAMed(
            3, CLASSES, image_size=self.picture, lora_rank=RANK, scratch=True,
            gradient_checkpointing=self.gradient_checkpointing,
        )  # fmt: skip


class Public(nn.Module):
    """The public code's network, built for 512 x 512, to which it pads smaller pictures."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        sys.path.insert(0, str(way.source))
        package = f"{way.package}." if way.package else ""
        lora = importlib.import_module(f"{package}{'sam_lora' if package else 'sam_lora_image_encoder'}")
        registry = importlib.import_module(f"{package}segment_anything").sam_model_registry
        sam, _ = registry["vit_b"](
            image_size=512, num_classes=CLASSES - 1, pixel_mean=[0, 0, 0], pixel_std=[1, 1, 1]
        )
        self.network = lora.LoRA_Sam(sam, RANK)
        self.logits = way.logits

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image, True, 512)[self.logits]


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    """SAMed's: 0.2 cross-entropy + 0.8 soft Dice loss."""
    p = logits.softmax(1)
    truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1).float()
    overlap = (p * truth).sum((0, 2, 3))
    dice = 1 - (2 * overlap + 1e-5) / ((p * p).sum((0, 2, 3)) + truth.sum((0, 2, 3)) + 1e-5)
    return 0.2 * F.cross_entropy(logits, target) + 0.8 * dice.mean()


def child(way: Way, batch: int, device: str, pipe: Connection) -> None:
    """Make a step whenever asked, and answer its seconds; asked for None, answer the peak memory and end."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    network = way.network().to(device).train()
    optimizer = torch.optim.AdamW(
        (p for p in network.parameters() if p.requires_grad), 5e-3, weight_decay=0.1
    )
    image = torch.randn(batch, 3, way.picture, way.picture, device=device)
    with torch.no_grad():
        n_classes, side = network(image[:1]).shape[1:3]  # AI4MI's code has no class for the background
    target = torch.randint(0, n_classes, (batch, side, side), device=device)
    kept = contextlib.ExitStack()
    if isinstance(network, SAMed):
        kept.enter_context(kept_memory())  # as our trainers have it
    pipe.send("ready")
    while pipe.recv() is not None:
        start = time.perf_counter()
        autocast = torch.autocast(device, torch.bfloat16) if way.bf16 else contextlib.nullcontext()
        with autocast:
            logits = network(image)
        loss = loss_of(logits.float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - start)
    if device == "cuda":
        pipe.send(torch.cuda.max_memory_allocated() / 2**20)
        return
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    pipe.send(int(status["VmHWM"].split()[0]) / 1024)


def compare(title: str, ways: list[Way], batch: int, device: str, repeats: int) -> None:
    """Make steps in turn, after one that is not timed (three on a GPU), and print medians, spreads and ratios to the first way."""
    pipes = []
    for way in ways:
        ours, theirs = get_context("spawn").Pipe()
        get_context("spawn").Process(target=child, args=(way, batch, device, theirs), daemon=True).start()
        theirs.close()
        ours.recv()
        pipes.append(ours)
    seconds: list[list[float]] = [[] for _ in ways]
    untimed = 3 if device == "cuda" else 1
    for repeat in range(1 - untimed, 1 + repeats):
        for way, pipe, taken in zip(ways, pipes, seconds, strict=True):
            pipe.send("step")
            last = pipe.recv()
            if repeat > 0:
                taken.append(last)
                print(f"  run {repeat}, {way.name}: {last:.3f} s", file=sys.stderr, flush=True)
    peaks = []
    for pipe in pipes:
        pipe.send(None)
        peaks.append(pipe.recv())
    print(f"{title}; median of {repeats} steps (lowest to highest), and the first way beside it")
    first = statistics.median(seconds[0])
    for way, taken, peak in zip(ways, seconds, peaks, strict=True):
        median = statistics.median(taken)
        print(
            f"  {way.name:44} {median:7.3f} s ({min(taken):.3f} to {max(taken):.3f})  {first / median:5.2f} x as fast  "
            f"{peak:5.0f} MiB  {peak / peaks[0]:5.2f} of the memory"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samed", type=Path, help="clone of github.com/hitachinsk/SAMed (needs icecream)")
    parser.add_argument("--ai4mi", type=Path, help="clone of github.com/WouterBant/AI4MI")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="also where the processor only emulates it")
    asked = parser.parse_args()
    native = native_bf16(torch.device(asked.device))
    where = (
        torch.cuda.get_device_name() if asked.device == "cuda" else f"{len(os.sched_getaffinity(0))} cores"
    )
    print(f"torch {torch.__version__}, {where}, bf16 {'native' if native else 'emulated'}")
    ways = [
        Way("public SAMed, fp32", 512, asked.samed),
        Way("samnn, fp32", 512),
        Way("samnn, fp32, gradient checkpointing", 512, gradient_checkpointing=True),
    ]
    if native or asked.bf16:
        ways += [
            Way("public SAMed, bf16 autocast", 512, asked.samed, bf16=True),
            Way("samnn, bf16 autocast", 512, bf16=True),
            Way("samnn, bf16 autocast, gradient checkpointing", 512, bf16=True, gradient_checkpointing=True),
        ]
    compare(f"ViT-B, 512 x 512, batch {asked.batch}", ways, asked.batch, asked.device, asked.repeats)
    if asked.ai4mi:
        source = asked.ai4mi / "src"
        ways = [
            Way("AI4MI, padded to 512 x 512, fp32", 256, source, "samed_fast", "masks"),
            Way("samnn, fp32", 256),
        ]
        if native or asked.bf16:
            ways.append(Way("samnn, bf16 autocast", 256, bf16=True))
        compare(f"ViT-B, 256 x 256, batch {asked.batch}", ways, asked.batch, asked.device, asked.repeats)


if __name__ == "__main__":
    main()

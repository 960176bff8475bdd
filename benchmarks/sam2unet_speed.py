"""How fast and how small a training step of our SAM2-UNet is, beside the public code run from its own source.

Get the public code and the packages it imports into a folder of their own, then name that folder:

    git clone https://github.com/WZH0120/SAM2-UNet scratch/SAM2-UNet
    pip install --target scratch/packages --no-deps hydra-core==1.3.2 omegaconf antlr4-python3-runtime==4.9.3 iopath portalocker
    PYTHONPATH=scratch/packages python benchmarks/sam2unet_speed.py --public scratch/SAM2-UNet
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import gc
import importlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samnn.hardware import kept_memory
from samnn.nn.sam2_unet import SAM2UNet

HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1", "MALLOC_MMAP_THRESHOLD_": "4194304"}
SIDE = 352  # of the published training's pictures


def public_network(source: Path) -> nn.Module:
    """The public project's network with random weights; its constructor asks for a GPU, here it gets the CPU."""
    sys.path.insert(0, str(source))
    module = importlib.import_module("SAM2UNet")
    module.build_sam2 = functools.partial(module.build_sam2, device="cpu")
    return module.SAM2UNet()


def our_network(weights: Path, **options: int | str) -> nn.Module:
    network = SAM2UNet(3, 1, True, backbone="sam2_hiera_l", **options)
    network.load_reference(torch.load(weights, weights_only=True, mmap=True))
    return network


def serve(
    build: Callable[[], nn.Module],
    dtype: torch.dtype | None,
    device: str,
    batch: int,
    connection: Connection,
) -> None:
    """One network in a process of its own: for every message a training step, answered with its seconds."""
    torch.set_num_threads(n_threads())
    torch.manual_seed(0)
    network = build().to(device).train()
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad], 1e-3, weight_decay=5e-4
    )
    image = torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).to(device)
    target = (F.avg_pool2d(image[:, :1], 31, 1, 15) > 0).float()
    cast = contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building
    kept = contextlib.ExitStack()
    if isinstance(network, SAM2UNet):
        kept.enter_context(kept_memory())  # as our trainers have it
    connection.send(None)
    first: tuple[list[Tensor], float] | None = None
    while connection.recv():
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with cast:
            outputs = network(image)
            loss = sum(F.binary_cross_entropy_with_logits(logits.float(), target) for logits in outputs)
        loss.backward()
        gradient = nn.utils.clip_grad_norm_([p for p in network.parameters() if p.grad is not None], 1e9)
        optimizer.step()
        if first is None:
            first = [logits.detach().float().cpu() for logits in outputs], float(gradient)
        if device == "cuda":
            torch.cuda.synchronize()
        connection.send(time.perf_counter() - start)
        del outputs, loss
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else peak_of_process()
    connection.send(([logits.numpy() for logits in first[0]], first[1], peak))


def peak_of_process() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def n_threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))


def compare(
    ways: dict[str, tuple[Callable[[], nn.Module], torch.dtype | None]], device: str, batch: int, steps: int
) -> None:
    """The ways in turn, `steps` times after one (on a GPU three) that does not count; prints the ratios to the first."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name, (build, dtype) in ways.items():
        pipes[name], theirs = context.Pipe()
        os.environ |= HUGE_PAGES if "huge pages" in name else {}
        processes.append(
            context.Process(target=serve, args=(build, dtype, device, batch, theirs), daemon=True)
        )
        processes[-1].start()
        theirs.close()  # so that the end of a process ends the wait for it
        for variable in HUGE_PAGES:
            os.environ.pop(variable, None)
        pipes[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(-2 if device == "cuda" else 0, steps + 1):
        for name, pipe in pipes.items():
            pipe.send(True)
            taken = pipe.recv()
            seconds[name] += [taken] if step > 0 else []
            print(f"  step {step}, {name}: {taken:.3f} s", file=sys.stderr, flush=True)
    baseline = None
    print(f"{'':28} seconds a step (lowest to highest)   faster   GiB   of the peak   outputs   gradient")
    for name, pipe in pipes.items():
        pipe.send(False)
        outputs, gradient, peak = pipe.recv()
        outputs = [torch.from_numpy(o) for o in outputs]
        median = statistics.median(seconds[name])
        baseline = baseline or (median, peak, outputs, gradient)
        apart = max(float((o - b).abs().max() / b.std()) for o, b in zip(outputs, baseline[2], strict=True))
        print(
            f"{name:28} {median:7.3f} ({min(seconds[name]):.3f} to {max(seconds[name]):.3f})"
            f"   {baseline[0] / median:16.2f}   {peak:5.2f}   {peak / baseline[1]:6.2f}   "
            f"{apart:10.1e}   {abs(gradient / baseline[3] - 1):.1e}",
            flush=True,
        )
    for process in processes:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--public", type=Path, required=True, help="a clone of WZH0120/SAM2-UNet")
    parser.add_argument("--bf16", action="store_true", help="both under bf16 autocast")
    parser.add_argument(
        "--adapter-from", type=int, nargs="*", help="our network alone, for these first blocks"
    )
    parser.add_argument("--checkpointing", nargs="*", default=["light"], help="none, light, all")
    parser.add_argument("--huge-pages", action="store_true", help=f"ours with {HUGE_PAGES}, too")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch", type=int, default=2)
    asked = parser.parse_args()
    dtype = torch.bfloat16 if asked.bf16 else None
    print(
        f"large trunk, {asked.batch} pictures of {SIDE}x{SIDE}, {'bf16 autocast' if asked.bf16 else 'fp32'}, "
        f"{torch.cuda.get_device_name() if asked.device == 'cuda' else f'{n_threads()} threads'}, "
        f"torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "public.pt"
        torch.manual_seed(0)
        torch.save(public_network(asked.public).state_dict(), weights)
        ways = {}
        if asked.adapter_from is None:
            ways["public"] = functools.partial(public_network, asked.public), dtype
        for checkpointing in asked.checkpointing:
            for block in asked.adapter_from or [0]:
                name = f"samnn, {checkpointing}" + (f", from block {block}" if block else "")
                options = {"gradient_checkpointing": checkpointing, "adapter_from": block}
                for memory in ("", ", huge pages") if asked.huge_pages else ("",):
                    ways[name + memory] = functools.partial(our_network, weights, **options), dtype
        compare(ways, asked.device, asked.batch, asked.steps)


if __name__ == "__main__":
    main()

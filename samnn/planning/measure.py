"""Makes real training steps in a process of its own, and says how long one takes and how much memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from samnn.errors import SamnnError
from samnn.training.base import SamnnTrainer

STEPS = 2  # that are timed, after one that is not


@dataclass(frozen=True)
class Measured:
    """Of one training step of a whole batch."""

    seconds: float  # median
    peak_bytes: int  # CUDA: of torch's allocator; CPU: what the process takes above what it took before


def real_step(
    trainer: type[SamnnTrainer],
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    device: torch.device,
) -> Measured | None:
    """Train on random pictures for some steps, as `nnUNetv2_train` would, eagerly; None: out of memory.

    The network starts from random weights, and what nnU-Net writes goes to a folder that is removed.

    Raises:
        SamnnError: a step failed otherwise.
    """
    context = multiprocessing.get_context("forkserver")
    network = plans["configurations"][configuration]["architecture"]["network_class_name"]
    context.set_forkserver_preload([__name__, trainer.__module__, network.rpartition(".")[0]])
    ours, theirs = context.Pipe(duplex=False)
    job = (trainer, plans, configuration, dataset_json, device)
    process = context.Process(target=_answer, args=(theirs, *job), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:  # killed, which on a CPU is how memory ends
        answer = None
    process.join()
    if isinstance(answer, str):
        raise SamnnError(f"{configuration}: a training step on {device} failed: {answer}")
    return answer


def _answer(pipe: Connection, *job: Any) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        try:
            pipe.send(_steps(Path(folder), *job))
        except torch.OutOfMemoryError:
            pipe.send(None)
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


def _steps(
    folder: Path,
    trainer_class: type[SamnnTrainer],
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    device: torch.device,
) -> Measured:
    trainer = _initialized(folder, trainer_class, plans, configuration, dataset_json, device)
    batch = _random_batch(trainer)
    seconds = []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        trainer.train_step(batch)  # copies the loss to the CPU, and so waits for it
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = _resident("VmHWM") - trainer.resident_before
    return Measured(statistics.median(seconds[1:]), peak)


def _initialized(
    folder: Path,
    trainer_class: type[SamnnTrainer],
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    device: torch.device,
) -> SamnnTrainer:
    """A trainer with its network, in training mode, that finds a dataset without cases."""
    os.environ |= {name: str(folder) for name in ("nnUNet_preprocessed", "nnUNet_results")}
    os.environ |= {"nnUNet_compile": "false", "nnUNet_wandb_enabled": "0"}
    trainer = trainer_class({**plans, "continue_training": False}, configuration, 0, dataset_json, device)
    cases = Path(trainer.preprocessed_dataset_folder)
    cases.mkdir(parents=True, exist_ok=True)
    (cases / "none.b2nd").touch()  # nnU-Net looks at the ending
    if device.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        trainer.resident_before = _resident("VmRSS")
    trainer.initialize()
    trainer.network.pretrained = True
    trainer.network.train()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.effective_micro_batch = trainer.planned_micro_batch()
    return trainer


def _random_batch(trainer: SamnnTrainer) -> dict[str, Any]:
    patch = trainer.configuration_manager.patch_size
    data = torch.randn(trainer.batch_size, trainer.num_input_channels, *patch)
    labels = trainer.label_manager
    channels = labels.num_segmentation_heads if labels.has_regions else 1
    highest = 1 if labels.has_regions else max(labels.all_labels)
    scales = trainer._get_deep_supervision_scales()
    targets = [
        torch.randint(
            0, highest + 1, (len(data), channels, *(round(s * f) for s, f in zip(patch, scale, strict=True)))
        ).float()
        for scale in scales or [[1.0] * len(patch)]
    ]
    return {"data": data, "target": targets if scales else targets[0]}


def _resident(name: str) -> int:
    """VmRSS, what this process holds in memory, or VmHWM, the most it held, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024

"""Memory and time of real training steps: measures a grid of sizes, and fits the planner's coefficients to it."""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from samnn.planning.counting import count
from samnn.planning.measure import real_step
from samnn.plugins.trainer_enet import nnUNetTrainerENet
from samnn.plugins.trainer_sam2unet import nnUNetTrainerSAM2UNet
from samnn.plugins.trainer_samed import nnUNetTrainerSAMed
from samnn.training.base import SamnnTrainer

CLASSES = 5  # background included, as SegTHOR
SAVE = {"gradient_checkpointing": True}
SAVE_ALL = {"gradient_checkpointing": "all"}
B, L = {"backbone": "sam_vit_b"}, {"backbone": "sam_vit_l"}
TINY, LARGE = {"backbone": "sam2_hiera_t"}, {"backbone": "sam2_hiera_l"}
# trainer, arguments of the network, side of the patch, batch, micro-batch
Point = tuple[type[SamnnTrainer], dict[str, Any], int, int, int]
ON_CUDA: list[Point] = [
    (nnUNetTrainerSAMed, B | {"image_size": 224}, 224, 8, 8),
    (nnUNetTrainerSAMed, B | {"image_size": 448}, 448, 2, 2),
    (nnUNetTrainerSAMed, B | {"image_size": 448}, 448, 12, 12),
    (nnUNetTrainerSAMed, B | {"image_size": 672}, 512, 4, 4),
    (nnUNetTrainerSAMed, B | {"image_size": 672}, 512, 12, 4),
    (nnUNetTrainerSAMed, B | {"image_size": 672} | SAVE, 512, 4, 4),
    (nnUNetTrainerSAMed, B | {"image_size": 672} | SAVE, 512, 16, 16),
    (nnUNetTrainerSAMed, L | {"image_size": 448}, 448, 4, 4),
    (nnUNetTrainerSAM2UNet, TINY, 256, 12, 12),
    (nnUNetTrainerSAM2UNet, TINY, 512, 4, 4),
    (nnUNetTrainerSAM2UNet, TINY, 512, 12, 4),
    (nnUNetTrainerSAM2UNet, LARGE, 256, 4, 4),
    (nnUNetTrainerSAM2UNet, LARGE, 512, 4, 4),
    (nnUNetTrainerSAM2UNet, LARGE | SAVE_ALL, 512, 8, 8),
    (nnUNetTrainerENet, {}, 256, 8, 8),
    (nnUNetTrainerENet, {}, 512, 2, 2),
    (nnUNetTrainerENet, {}, 512, 8, 8),
    (nnUNetTrainerENet, {}, 512, 8, 2),
]
ON_CPU: list[Point] = [
    (nnUNetTrainerSAMed, B | {"image_size": 224}, 224, 2, 2),
    (nnUNetTrainerSAMed, B | {"image_size": 224}, 224, 4, 4),
    (nnUNetTrainerSAMed, B | {"image_size": 224}, 224, 4, 1),
    (nnUNetTrainerSAMed, B | {"image_size": 224} | SAVE, 224, 4, 4),
    (nnUNetTrainerSAMed, B | {"image_size": 448}, 448, 2, 2),
    (nnUNetTrainerSAM2UNet, TINY, 128, 4, 4),
    (nnUNetTrainerSAM2UNet, TINY, 256, 2, 2),
    (nnUNetTrainerSAM2UNet, TINY, 256, 4, 4),
    (nnUNetTrainerSAM2UNet, TINY | SAVE_ALL, 256, 4, 4),
    (nnUNetTrainerSAM2UNet, LARGE, 256, 2, 2),
    (nnUNetTrainerENet, {}, 128, 8, 8),
    (nnUNetTrainerENet, {}, 256, 2, 2),
    (nnUNetTrainerENet, {}, 256, 8, 8),
    (nnUNetTrainerENet, {}, 256, 8, 2),
    (nnUNetTrainerENet, {}, 512, 4, 4),
]


@dataclass
class Row:
    """One measured point: what was counted (as of samnn.planning.counting), and what was measured."""

    device: str
    network: str
    arguments: str
    patch: int
    batch: int
    micro_batch: int
    weight_bytes: int
    state_bytes: int
    saved_bytes: int
    logits_bytes: int
    forward_flops: int
    step_flops: int
    batch_norm: bool
    seconds: float
    peak_bytes: int


def measure(points: list[Point], device: torch.device) -> Iterator[Row]:
    """Make real steps at every point."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    for trainer, arguments, side, batch, micro_batch in points:
        planned = trainer.planned
        plans, dataset_json = _plans(trainer, arguments, side, batch, micro_batch)
        architecture = plans["configurations"]["2d"]["architecture"]
        counted = count(architecture, 1, CLASSES, (side, side), outputs=planned.outputs)
        start = time.perf_counter()
        measured = real_step(trainer, plans, "2d", dataset_json, device)
        spent = time.perf_counter() - start
        said = ", ".join(f"{key} {value}" for key, value in arguments.items()) or "-"
        where = f"{planned.name} ({said}), patch {side}, batch {batch}, micro-batch {micro_batch}"
        if measured is None:
            print(f"{where}: out of memory", file=sys.stderr)
            continue
        print(
            f"{where}: {measured.seconds:.3f} s, {measured.peak_bytes / 2**30:.2f} GiB ({spent:.0f} s in all)",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        yield Row(
            name, planned.name, said, side, batch, micro_batch,
            **asdict(counted), seconds=measured.seconds, peak_bytes=measured.peak_bytes,
        )  # fmt: skip


def _plans(
    trainer: type[SamnnTrainer], arguments: dict[str, Any], side: int, batch: int, micro_batch: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans and dataset.json of a dataset that does not exist."""
    architecture = {"network_class_name": "another", "arch_kwargs": {}, "_kw_requires_import": []}
    configuration = {
        "data_identifier": "none", "batch_size": batch, "patch_size": [side, side], "spacing": [1.0, 1.0],
        "batch_dice": True, "architecture": architecture, "samnn": {"micro_batch": micro_batch},
        "normalization_schemes": ["ZScoreNormalization"],
    }  # fmt: skip
    plans = {
        "dataset_name": "Dataset999_None", "plans_name": "none", "label_manager": "LabelManager",
        "configurations": {"2d": configuration},
    }  # fmt: skip
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    named = trainer.architecture(PlansManager(plans).get_configuration("2d"))
    configuration["architecture"] = named | {"arch_kwargs": named["arch_kwargs"] | arguments}
    labels = {"background": 0} | {f"organ_{label}": label for label in range(1, CLASSES)}
    return plans, {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}


def fit(rows: list[Row]) -> None:
    """Print coefficients of each network, not negative, that make relative errors small, and those errors.

    peak = weights + state + a · saved · micro-batch + b · logits · batch + c, in bytes;
    seconds = d · 1e-12 FLOP + e · GB kept + f, a batch that is split having its forward pass twice.
    The errors are of points that were left out of the fit, one at a time.
    """
    for network in dict.fromkeys(row.network for row in rows):
        own = [row for row in rows if row.network == network]
        for what, features, target, offset in [
            ("memory", _memory_features, lambda row: row.peak_bytes, lambda row: row.weight_bytes + row.state_bytes),
            ("time", _time_features, lambda row: row.seconds, lambda row: 0),
        ]:  # fmt: skip
            fitted = _fitted(own, features, target, offset)
            errors = []
            for left_out in own:
                others = _fitted([row for row in own if row is not left_out], features, target, offset)
                estimate = offset(left_out) + features(left_out) @ others
                errors.append(estimate / target(left_out) - 1)
            print(
                f"{rows[0].device}, {network}, {what}: {', '.join(f'{value:.4g}' for value in fitted)}; "
                f"errors of points left out: median {statistics.median(map(abs, errors)):.1%}, "
                f"from {min(errors):+.1%} to {max(errors):+.1%} ({len(own)} points)"
            )


def _memory_features(row: Row) -> np.ndarray:
    return np.array([row.saved_bytes * row.micro_batch, row.logits_bytes * row.batch, 2**20])


def _time_features(row: Row) -> np.ndarray:
    flops = row.step_flops + (row.forward_flops if row.micro_batch < row.batch else 0)
    return np.array([row.batch * flops * 1e-12, row.batch * row.saved_bytes * 1e-9, 1.0])


def _fitted(rows: list[Row], features: Any, target: Any, offset: Any) -> np.ndarray:
    weights = np.array([target(row) for row in rows], float)
    x = np.array([features(row) for row in rows], float) / weights[:, None]
    y = np.array([target(row) - offset(row) for row in rows]) / weights
    scale = np.maximum(np.abs(x).max(0), 1e-30)
    return nnls(x / scale, y)[0] / scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--csv", type=Path, default=Path("plan_memory.csv"), help="where the measured points go"
    )
    parser.add_argument("--fit-only", action="store_true", help="fit to the points in that file")
    asked = parser.parse_args()
    names = [field.name for field in fields(Row)]
    if not asked.fit_only:
        device = torch.device(asked.device)
        print(f"torch {torch.__version__}, {asked.device}, {torch.get_num_threads()} thread(s)")
        with open(asked.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            for row in measure(ON_CUDA if device.type == "cuda" else ON_CPU, device):
                writer.writerow(asdict(row))
                file.flush()
    with open(asked.csv, newline="") as file:
        rows = [_row(line) for line in csv.DictReader(file)]
    print(asked.csv.read_text())
    fit(rows)


def _row(line: dict[str, str]) -> Row:
    text = {"device", "network", "arguments"}
    return Row(
        **{k: v if k in text else v == "True" if k == "batch_norm" else float(v) for k, v in line.items()}
    )


if __name__ == "__main__":
    main()

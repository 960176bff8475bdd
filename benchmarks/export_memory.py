"""How much memory, and time, the way from logits to a label map takes: beside nnU-Net's export, each in its own process.

    python benchmarks/export_memory.py                                  # 14 classes, 512 x 512 x 300
    python benchmarks/export_memory.py --predicted 300 500 500          # predicted at nearly the same resolution

Memory is the peak of the process less what it held before it had the logits; those count: nnU-Net keeps them in fp16,
samnn in float32.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from nnunetv2.inference.export_prediction import export_prediction_from_logits as theirs
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from samnn.inference.export import export_prediction_from_logits as ours

SPACING = (1.0, 0.8, 0.8)  # mm, of the original grid


def measure(who: str, classes: int, predicted: list[int], shape: list[int], threads: int) -> None:
    """Export random logits, and print MiB and seconds."""
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    planned = [mm * n / p for mm, n, p in zip(SPACING, shape, predicted, strict=True)]
    plans = PlansManager(
        {
            "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
            "label_manager": "LabelManager",
            "configurations": {
                "3d_fullres": {
                    "spacing": planned, "architecture": {},
                    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                    "resampling_fn_probabilities_kwargs": resampling,
                }
            },
        }
    )  # fmt: skip
    dataset = {
        "labels": {"background": 0} | {f"class {i}": i for i in range(1, classes)},
        "file_ending": ".nii.gz",
    }
    properties = {
        "spacing": SPACING, "shape_before_cropping": shape, "shape_after_cropping_and_before_resampling": tuple(shape),
        "bbox_used_for_cropping": [[0, n] for n in shape],
        "sitk_stuff": {"spacing": SPACING[::-1], "origin": (0, 0, 0), "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)},
    }  # fmt: skip
    before = kib("VmRSS")
    logits = np.empty((classes, *predicted), np.float16 if who == "theirs" else np.float32)
    random = np.random.default_rng(0)
    for one in logits:
        one[:] = random.standard_normal(predicted, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        export = theirs if who == "theirs" else ours
        export(
            logits,
            properties,
            plans.get_configuration("3d_fullres"),
            plans,
            dataset,
            f"{folder}/case",
            False,
            threads,
        )
        print(time.perf_counter() - start, (kib("VmHWM") - before) / 1024)


def kib(what: str) -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[what].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--predicted", type=int, nargs=3, default=[200, 273, 273], help="the network's grid")
    parser.add_argument("--shape", type=int, nargs=3, default=[300, 512, 512], help="the original grid")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure, asked.classes, asked.predicted, asked.shape, asked.threads)
        return
    found = {}
    for who in ("theirs", "ours"):
        done = subprocess.run(
            [sys.executable, *sys.argv, "--measure", who], capture_output=True, text=True, check=True
        )
        found[who] = tuple(map(float, done.stdout.split()[-2:]))
    print(
        f"{asked.classes} classes, predicted {asked.predicted}, exported {asked.shape}, {asked.threads} thread(s)"
    )
    for who, name in (("theirs", "nnU-Net"), ("ours", "samnn")):
        seconds, mib = found[who]
        print(
            f"  {name:8} {seconds:6.1f} s  {mib:7.0f} MiB, {mib / found['theirs'][1]:.2f} of nnU-Net's",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Provenance: which data, plans, weights, versions, seed, hardware and command made a result."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from samnn.atomic import write_json
from samnn.crossval.experiment import Experiment, Method, root
from samnn.crossval.folds import read_json
from samnn.crossval.prepare import read_splits
from samnn.errors import SamnnError
from samnn.evaluation3d.content import key_of_file

FILE = "provenance.json"
UNKNOWN = "finished before; by which command is not recorded"
PACKAGES = ("samnn", "nnunetv2", "torch", "timm", "numpy", "scipy", "batchgeneratorsv2", "snakemake")


def record_data(experiment: Experiment) -> dict[str, Any]:
    """Hash every file of the dataset once: the raw ones where they are, else the labels that nnU-Net put aside.

    Kept in `out`/data.json with size and time of each; only files that differ in these are read again.
    """
    try:
        folder = root("nnUNet_raw") / experiment.dataset
        is_raw = folder.is_dir()
    except SamnnError:
        is_raw = False
    folder = folder if is_raw else experiment.preprocessed_folder / "gt_segmentations"
    target = experiment.out / "data.json"
    known = read_json(target)["files"] if target.is_file() else {}
    files = {}
    for path in sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
    ):
        status = path.stat()
        name, stamp = str(path.relative_to(folder)), [status.st_size, status.st_mtime_ns]
        before = known.get(name)
        digest = before["sha256"] if before and before["stamp"] == stamp else key_of_file(path)
        files[name] = {"sha256": digest, "stamp": stamp}
    trained_on = {
        name: entry["sha256"]
        for name, entry in files.items()
        if not is_raw or name == "dataset.json" or name.startswith(("imagesTr/", "labelsTr/"))
    }  # a test set may come later
    content = {"sha256": _hash(trained_on)}
    content |= {"what": "raw" if is_raw else "gt_segmentations", "files": files}
    write_json(target, content)
    return content


def of_fold(experiment: Experiment, method: Method, fold: int) -> dict[str, Any]:
    """What must be the same for a fold to be the same: dataset, cases, plans, weights and trainer."""
    data = read_json(experiment.out / "data.json")
    plans = _plans(experiment.preprocessed_folder / f"{method.plans}.json", method.configuration)
    checked = read_json(experiment.out / "checked.json")[str(method)]
    seed = re.search(r"_seed(\d+)", method.trainer)
    return {
        "dataset": experiment.dataset,
        "data": {"what": data["what"], "sha256": data["sha256"]},
        "split": {"fold": fold, "sha256": _hash(read_splits(experiment)[fold])},
        "plans": {"name": method.plans, "configuration": method.configuration, "sha256": _hash(plans)},
        "trainer": method.trainer,
        "weights": checked["weights"],
        "seed": int(seed[1]) if seed else None,
    }


def of_experiment(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Method → fold → what made it, as it lies beside the checkpoints; of folds from elsewhere what is known."""
    return {
        str(method): {
            str(fold): read_json(path)
            if (path := experiment.fold_folder(method, fold) / FILE).is_file()
            else of_fold(experiment, method, fold) | {"note": UNKNOWN}
            for fold in experiment.folds
        }
        for method in experiment.methods
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In which of data, split, plans and weights two folds differ.

    Hashes of raw data say nothing about those of the labels that nnU-Net put aside, where raw data is elsewhere.
    """
    differing = [name for name in ("data", "split", "plans", "weights") if before.get(name) != now[name]]
    what = [made.get("data", {}).get("what") for made in (before, now)]
    return [name for name in differing if name != "data" or what[0] == what[1]]


def surroundings(commands: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Versions, hardware, time, and the commands that were run."""
    return {
        "commands": [list(command) for command in commands],
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "hardware": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpus": _gpus(),
            "job": os.environ.get("SLURM_JOB_ID"),
        },
    }


def _plans(path: Path, configuration: str) -> dict[str, Any]:
    """What the plans say of one configuration, and what it inherits: others that are added later change nothing."""
    plans = read_json(path)
    resolved: dict[str, Any] = {}
    name = configuration
    while name is not None:
        own = plans["configurations"][name]
        resolved = own | resolved
        name = own.get("inherits_from")
    ours = resolved.get("samnn", {})
    forecasts = ("hours", "memory_gb", "step")  # may be made anew
    resolved["samnn"] = {key: value for key, value in ours.items() if key not in forecasts}
    others = {key: value for key, value in plans.items() if key not in ("configurations", "samnn")}
    return others | {"configuration": resolved}


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def _gpus() -> list[str]:
    """As the NVIDIA driver names them, without importing torch."""
    return sorted(
        found[1].strip()
        for path in Path("/proc/driver/nvidia/gpus").glob("*/information")
        if (found := re.search(r"Model:\s*(.+)", path.read_text()))
    )

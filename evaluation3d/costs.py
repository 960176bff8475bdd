"""What a method costs: parameters, checkpoint size and times, from the text files beside nnU-Net's checkpoints."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from samnn.errors import SamnnError

from .results import Results

LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?): +(.*)")
EPOCH = re.compile(r"Epoch (\d+)")
EPOCH_TIME = re.compile(r"Epoch time: ([\d.]+) s")
PREDICTING = re.compile(r"predicting .+")

COLUMNS = [
    "trainable_parameters",
    "total_parameters",
    "checkpoint_bytes",
    "n_epochs",
    "training_hours",
    "inference_seconds",
    "device",
]


def costs_of(results: Results | None) -> dict[str, float | int | str | None]:
    """The costs of one method, `COLUMNS` as keys; None: not known. Nothing is unpickled.

    Parameters: settings.json, which trainers of samnn write; nnU-Net writes them nowhere. Checkpoint: the file size
    of checkpoint_final.pth, the mean of the folds. Training: the "Epoch time" lines of the training logs, summed, each
    epoch once, as its last log has it; the mean of the folds. Inference: from one "predicting …" line of the
    validation to the next, the median of all folds: sliding window, loading, and waiting for the export of others.
    """
    if results is None:
        return dict.fromkeys(COLUMNS)
    folds = [validation.parent for validation in results.validations]
    settings = [_settings(fold) for fold in folds]
    checkpoints = [fold / "checkpoint_final.pth" for fold in folds]
    sizes = [path.stat().st_size for path in checkpoints if path.is_file()]
    epochs = [epochs for fold in folds if (epochs := _epoch_seconds(fold))]
    seconds = [seconds for fold in folds for seconds in _case_seconds(fold)]
    return {
        "trainable_parameters": _same(entry.get("parameters", {}).get("trainable") for entry in settings),
        "total_parameters": _same(entry.get("parameters", {}).get("total") for entry in settings),
        "checkpoint_bytes": round(statistics.fmean(sizes)) if sizes else None,
        "n_epochs": _same(len(fold) for fold in epochs) if epochs else None,
        "training_hours": statistics.fmean(sum(fold.values()) for fold in epochs) / 3600 if epochs else None,
        "inference_seconds": statistics.median(seconds) if seconds else None,
        "device": _same(_device(fold) for fold in folds),
    }


def _settings(fold: Path) -> dict:
    return _read(fold / "settings.json")


def _device(fold: Path) -> str | None:
    """The name of the GPU, else "cpu" or the like, from the debug.json that nnU-Net writes as training starts."""
    debug = _read(fold / "debug.json")
    return debug.get("gpu_name") or debug.get("device")


def _read(path: Path) -> dict:
    """A JSON object, empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise SamnnError(
            f"{path}: is no JSON object ({error}). Move it away: what it says is then not known."
        ) from error


def _epoch_seconds(fold: Path) -> dict[int, float]:
    """Epoch → seconds; an epoch that was repeated after a restart counts as it ran last."""
    seconds: dict[int, float] = {}
    for log in _logs(fold):
        epoch = None
        for _, text in _lines(log):
            if started := EPOCH.fullmatch(text):
                epoch = int(started[1])
            elif (ended := EPOCH_TIME.fullmatch(text)) and epoch is not None:
                seconds[epoch] = float(ended[1])
    return seconds


def _case_seconds(fold: Path) -> list[float]:
    """Seconds from one predicted case to the next, in the last log that predicts; none for the last case."""
    for log in reversed(_logs(fold)):
        times = [time for time, text in _lines(log) if PREDICTING.fullmatch(text)]
        if times:
            return [(after - before).total_seconds() for before, after in pairwise(times)]
    return []


def _logs(fold: Path) -> list[Path]:
    """The training logs, oldest first: by the numbers in their names, in which month and day have no leading zeros."""
    return sorted(
        fold.glob("training_log_*.txt"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)]
    )


def _lines(log: Path) -> Iterator[tuple[datetime, str]]:
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if found := LINE.match(line):
            yield datetime.fromisoformat(found[1]), found[2].strip()


def _same(values: Iterator) -> object | None:
    """The value if all folds have the same, else None."""
    found = set(values)
    return found.pop() if len(found) == 1 else None

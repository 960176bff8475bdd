"""Folds: how far one is, the stock command that takes it further, and what is never trained again."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samnn.crossval.experiment import Experiment, Method
from samnn.errors import SamnnError
from samnn.io import read_labels

EPOCH = re.compile(r": Epoch (\d+)\s*$", re.MULTILINE)
TAIL_BYTES = 20_000


@dataclass(frozen=True)
class Fold:
    """One fold of one method, as it lies in the results folder."""

    experiment: Experiment
    method: Method
    number: int

    @property
    def folder(self) -> Path:
        return self.experiment.fold_folder(self.method, self.number)

    @property
    def is_trained(self) -> bool:
        return is_whole(self.folder / "checkpoint_final.pth")

    @property
    def is_begun(self) -> bool:
        return any(is_whole(self.folder / f"checkpoint_{name}.pth") for name in ("latest", "best"))

    def is_finished(self, held_out: list[str]) -> bool:
        """Trained, and every held-out case validated, with probabilities where the experiment needs them."""
        if not self.is_trained:
            return False
        validation = self.folder / "validation"
        try:
            rows = json.loads((validation / "summary.json").read_text(encoding="utf-8"))["metric_per_case"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if len(rows) != len(held_out):
            return False
        return not self.experiment.saves_probabilities or all(
            (validation / f"{case}.npz").is_file() for case in held_out
        )

    def command(self) -> list[str]:
        """The stock command that starts it, goes on with it, or validates it."""
        experiment, method = self.experiment, self.method
        command = ["nnUNetv2_train", experiment.number, method.configuration, str(self.number)]
        command += ["-tr", method.trainer, "-p", method.plans, "-device", experiment.device]
        gpus = int(experiment.limit(method, "gpus"))
        if experiment.device == "cuda" and gpus > 1:
            command += ["-num_gpus", str(gpus)]
        if self.experiment.saves_probabilities:
            command.append("--npz")
        if self.is_trained:
            return [*command, "--val"]
        return [*command, "--c"] if self.is_begun else command

    def set_damaged_aside(self) -> list[Path]:
        """Rename checkpoints that a killed writer left half-written; → their new names.

        Those of samnn's trainers appear whole or not at all; nnU-Net writes its own in place.
        """
        aside = []
        for path in sorted(self.folder.glob("checkpoint_*.pth")):
            if not is_whole(path):
                aside.append(path.rename(path.with_suffix(".pth.damaged")))
        return aside

    def progress(self) -> float:
        """When the newest checkpoint was written; 0 where there is none."""
        return max((path.stat().st_mtime for path in self.folder.glob("checkpoint_*.pth")), default=0.0)

    def epoch(self) -> int | None:
        """The last epoch that the newest training log names."""
        logs = sorted(self.folder.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime)
        if not logs:
            return None
        with open(logs[-1], "rb") as log:
            log.seek(max(0, log.seek(0, 2) - TAIL_BYTES))
            found = EPOCH.findall(log.read().decode("utf-8", errors="replace"))
        return int(found[-1]) if found else None


def predict_command(experiment: Experiment, method: Method, images: Path, target: Path) -> list[str]:
    """The stock command that predicts the test set with all folds of the experiment."""
    command = ["nnUNetv2_predict", "-i", str(images), "-o", str(target), "-d", experiment.number]
    command += ["-c", method.configuration, "-tr", method.trainer, "-p", method.plans]
    command += ["-f", *map(str, experiment.folds), "-device", experiment.device]
    if experiment.saves_probabilities:
        command.append("--save_probabilities")
    return [*command, "--continue_prediction", "--disable_progress_bar"]


def remove_half_written(target: Path, *, ending: str, with_probabilities: bool) -> list[Path]:
    """Remove predictions that a killed process left half-written: nnU-Net goes on after whatever is there; → those."""
    removed = []
    for path in sorted(target.glob(f"*{ending}")):
        probabilities = path.with_name(path.name.removesuffix(ending) + ".npz")
        try:
            read_labels(path)
            if not with_probabilities or is_whole(probabilities):
                continue
        except SamnnError:
            pass
        path.unlink()
        removed.append(path)
    return removed


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint, or an .npz, has the table of contents that is written last."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return bool(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_json(path: Path) -> Any:
    """Raises SamnnError: it is missing or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SamnnError(f"{path}: cannot be read ({error}).") from error

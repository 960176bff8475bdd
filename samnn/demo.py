"""`samnn demo`: the whole chain in real commands, on made-up patients or the user's own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from samnn.atomic import whole_folder, write_json
from samnn.dataset_conversion import _heart
from samnn.environment import settings
from samnn.errors import SamnnError
from samnn.phantom import write_segthor
from samnn.picture import draw

DATASET_ID, DATASET = 999, "Dataset999_SegTHOR"
TRAINER = (
    "nnUNetTrainerENet_5epochs_40iters_seed1"  # minutes on two cores: finds the heart, not the thin organs
)
FEW_CORES = 4  # each worker of nnU-Net imports torch for seconds: with so few cores, fewer workers are faster


@dataclass(frozen=True)
class Step:
    """One command of the chain."""

    name: str
    command: list[str]
    variables: dict[str, str] = field(default_factory=dict)  # for this command only
    leftover: tuple[Path, str] | None = (
        None  # what an earlier run may have left, and the option for that case
    )
    ticks: tuple[str, int] | None = None  # a pattern in the log and how often it comes, for the progress bar


class Demo:
    """A folder with a run of the chain in it: data, models, logs, evaluation, picture.

    `data` is a SegTHOR folder, or None for made-up patients.
    """

    def __init__(self, out: Path, data: Path | None, console: Console, *, trainer: str = TRAINER) -> None:
        self.out = Path(os.path.abspath(out))
        self.data = self.out / "phantom" if data is None else Path(os.path.abspath(data))
        self.is_phantom = data is None
        self.console = console
        self.trainer = trainer
        self.logs = self.out / "logs"
        self.raw = self.out / "nnUNet_raw" / DATASET
        self.fold = self.out / "nnUNet_results" / DATASET / f"{trainer}__nnUNetPlans__2d" / "fold_0"

    def run(self) -> None:
        """Make data, convert, plan, train, predict, evaluate and draw; what an earlier run finished is left out.

        Raises:
            SamnnError: the folder holds a demo of other data, or a command failed: the message ends with its log.
        """
        self._refuse_other_data()
        self.say(f"Everything goes to {self.out}. These are the commands you would type, after")
        self.say(f'eval "$(samnn env {shlex.quote(str(self.out))} --force)"', style="cyan")
        if self.is_phantom and not self.data.is_dir():
            with self.console.status("making patients"), whole_folder(self.data) as folder:
                write_segthor(folder, displace=_heart.displace)
            self.say(f"made-up patients, 5 to train with and 2 to test on: {self.data}")
        cores, device = _cores(), _device()
        self.do(convert(self.data, self.raw))
        self.do(plan(cores))
        self.do(train(self.fold, self.trainer, device, cores))
        images, reference, prediction = self.raw / "imagesTr", self.raw / "labelsTr", self.fold / "validation"
        if (self.raw / "imagesTs").is_dir():
            predictions = self.out / "predictions"
            self.do(predict(self.raw / "imagesTs", predictions, self.trainer, device, cores))
            if _cases(self.raw / "labelsTs") == _cases(predictions):
                images, reference, prediction = self.raw / "imagesTs", self.raw / "labelsTs", predictions
        evaluation = self.out / "evaluation"
        self.do(evaluate(reference, prediction, evaluation))
        self.say((self.logs / "evaluate.log").read_text(encoding="utf-8"))
        picture = self.out / "predictions.png"
        draw(images, reference, prediction, evaluation / "metrics.csv", self.raw / "dataset.json", picture)
        self.say(f"references beside predictions: {picture}")
        self.say(
            f"for a real experiment, leave away what follows the trainer's name: -tr {self.trainer.split('_')[0]}"
        )

    def say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def _refuse_other_data(self) -> None:
        if not self.is_phantom and not self.data.is_dir():
            raise SamnnError(f"{self.data}: no such folder. Name a SegTHOR folder with --data.")
        marker = self.out / "demo.json"
        if marker.is_file():
            try:
                earlier = json.loads(marker.read_text(encoding="utf-8"))["data"]
            except (ValueError, KeyError, TypeError) as error:
                raise SamnnError(
                    f"{marker}: is damaged. Name another folder, or remove {self.out}."
                ) from error
            if earlier != str(self.data):
                raise SamnnError(
                    f"{self.out}: holds a demo of {earlier}. Name another folder for the new one."
                )
        elif self.out.is_dir() and any(self.out.iterdir()):
            raise SamnnError(f"{self.out}: is not empty and holds no demo. Name another folder.")
        if not self.is_phantom and self.out.resolve().is_relative_to(self.data.resolve()):
            raise SamnnError(f"{self.out}: lies inside the data, which stays as it is. Name another folder.")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(marker, {"data": str(self.data)})
            self.logs.mkdir(exist_ok=True)
        except OSError as error:
            raise SamnnError(
                f"{self.out}: cannot be made ({error.strerror}). Name another folder."
            ) from error

    def do(self, step: Step) -> None:
        """Run a step with its log in logs/NAME.log, unless it was finished before."""
        marker, log = self.logs / f"{step.name}.done", self.logs / f"{step.name}.log"
        command = list(step.command)
        if step.leftover and step.leftover[0].exists():
            command.append(step.leftover[1])
        shown = " ".join(
            [f"{name}={value}" for name, value in step.variables.items()] + [shlex.join(command)]
        )
        if marker.is_file() and json.loads(marker.read_text(encoding="utf-8"))["command"] == step.command:
            self.say(f"finished before: {shlex.join(step.command)}")
            return
        self.say(shown, style="cyan")
        began = time.monotonic()
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=self._environment(step), cwd=self.out
            )
            try:
                self._watch(process, step, log)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        if process.returncode:
            tail = "\n".join(_lines(log)[-15:])
            raise SamnnError(
                f"{step.name} failed with exit code {process.returncode}. The end of {log}:\n{tail}"
            )
        write_json(marker, {"command": step.command, "seconds": round(time.monotonic() - began, 1)})

    def _environment(self, step: Step) -> dict[str, str]:
        ours = settings(os.environ, self.out, force=True).variables
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return {**os.environ, **ours, **step.variables, "PATH": path, "COLUMNS": str(self.console.width)}

    def _watch(self, process: subprocess.Popen, step: Step, log: Path) -> None:
        """Show the time, a bar where the log tells how far the step is, and the last line of the log."""
        pattern, total = step.ticks or ("", None)
        columns = [SpinnerColumn(), TextColumn("{task.fields[name]}"), BarColumn(20), TimeElapsedColumn()]
        with Progress(
            *columns, TextColumn("{task.description}", markup=False), console=self.console
        ) as progress:
            task = progress.add_task("", total=total, name=step.name)
            while process.poll() is None:
                time.sleep(0.5)
                lines = _lines(log)
                done = len(re.findall(pattern, "\n".join(lines))) if total else 0
                progress.update(task, completed=done, description=lines[-1][:60] if lines else "")
            progress.update(task, total=1, completed=1 if process.returncode == 0 else 0, description="")


# ---- the commands


def convert(data: Path, raw: Path) -> Step:
    command = ["samnn", "convert", "segthor", str(data), "-d", str(DATASET_ID)]
    return Step("convert", command, leftover=(raw, "--overwrite"))


def plan(cores: int) -> Step:
    command = [
        "nnUNetv2_plan_and_preprocess",
        "-d",
        str(DATASET_ID),
        "-c",
        "2d",
        "--verify_dataset_integrity",
    ]
    if cores <= FEW_CORES:
        command += ["-npfp", "1", "-np", "1"]
    # planning sets torch's number of threads to nnUNet_n_proc_DA and fails with the 0 that suits small trainings
    return Step("plan", command, {"nnUNet_n_proc_DA": "1"})


def train(fold: Path, trainer: str, device: str, cores: int) -> Step:
    command = ["nnUNetv2_train", str(DATASET_ID), "2d", "0", "-tr", trainer, "-device", device]
    epochs = int(re.search(r"_(\d+)epochs", trainer)[1])
    few = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0"} if cores <= FEW_CORES else {}
    return Step("train", command, few, (fold / "checkpoint_latest.pth", "--c"), ("Epoch time", epochs))


def predict(images: Path, predictions: Path, trainer: str, device: str, cores: int) -> Step:
    command = [
        "nnUNetv2_predict",
        "-i",
        str(images),
        "-o",
        str(predictions),
        "-d",
        str(DATASET_ID),
        "-c",
        "2d",
    ]
    command += ["-f", "0", "-tr", trainer, "-device", device]
    if cores <= FEW_CORES:
        command += ["-npp", "1", "-nps", "1"]
    return Step("predict", command, ticks=("done with ", len(_cases(images))))


def evaluate(reference: Path, prediction: Path, evaluation: Path) -> Step:
    return Step("evaluate", ["samnn", "evaluate", str(reference), str(prediction), "-o", str(evaluation)])


def _cases(folder: Path) -> set[str]:
    return {re.sub(r"(_0000)?\.nii\.gz$", "", path.name) for path in folder.glob("*.nii.gz")}


def _lines(log: Path) -> list[str]:
    """The lines of a log, carriage returns of progress bars taken as line ends."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _cores() -> int:
    """How many cores this process may use; only Linux can tell them from those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

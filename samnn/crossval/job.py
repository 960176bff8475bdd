"""One step as a job: `python -m samnn.crossval.job OUT STEP`, on this machine or wherever a scheduler puts it."""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from samnn.atomic import only_writer, write_json
from samnn.crossval.experiment import FILE, Experiment
from samnn.crossval.folds import Fold, predict_command, read_json, remove_half_written
from samnn.crossval.steps import Step, raw_folder, steps_in
from samnn.errors import SamnnError

MOST_FRUITLESS = 3  # attempts in a row that were killed and wrote no checkpoint: a fourth would end so, too
GPUS = "SAMNN_GPUS"  # those that jobs of this machine share; without it, the scheduler's choice stays
REASON_LINES = 3


class Runner:
    """Runs the commands of a step, with their output in its log; signals are handed on to the command."""

    def __init__(self, log: TextIO, environment: dict[str, str]) -> None:
        self.log = log
        self.environment = environment
        self.commands: list[list[str]] = []
        self.child: subprocess.Popen | None = None
        self.stopped: int | None = None
        self.kept_open: list[int] = []  # locks that live as long as the command
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._hand_on)

    def __call__(self, command: list[str], **variables: str) -> None:
        """Run one. Raises SamnnError: it failed, with the end of its output."""
        shown = shlex.join(command)
        self.say(shown)
        self.commands.append(command)
        beside = Path(sys.executable).with_name(command[0])
        program = [str(beside)] if beside.is_file() else [command[0]]
        start = self.log.tell()
        self.child = subprocess.Popen(
            program + command[1:],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=os.environ | self.environment | variables,
            pass_fds=self.kept_open,
        )
        if self.stopped is not None:  # in the moment before the child was there
            self.child.send_signal(self.stopped)
        code = self.child.wait()
        self.child = None
        if self.stopped is not None:
            raise SystemExit(128 + self.stopped)
        if code:
            raise CommandFailed(shown, code, _end_of(Path(self.log.name), start))

    def say(self, text: str) -> None:
        print(f"[{datetime.now():%Y-%m-%d %H:%M:%S}] {text}", file=self.log, flush=True)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:  # a scheduler's warning: write a checkpoint and go on
            if self.child is not None:
                self.child.send_signal(number)
            return
        self.stopped = signal.SIGTERM
        if self.child is None:
            raise SystemExit(128 + number)
        self.child.send_signal(signal.SIGTERM)


class CommandFailed(SamnnError):
    """A command ended with an error; negative codes are signals."""

    def __init__(self, command: str, code: int, end: str) -> None:
        super().__init__(f"{end}\n{command}: exit code {code}")
        self.code = code
        self.was_killed = code < 0 or code in (128 + signal.SIGTERM, 128 + signal.SIGKILL)


def do(out: Path, name: str, *, attempt: int = 1) -> None:
    """Do one step and leave its marker; a step that another process is doing is waited for.

    Raises:
        SamnnError: the step failed. SystemExit: it was stopped by a signal.
    """
    step = next((step for step in steps_in(out) if step.name == name), None)
    if step is None:
        raise SamnnError(f"{out}: has no step {name}.")
    part, marker, log = out / Path(name).parent, out / step.marker, out / step.log
    experiment = Experiment.read(part / FILE) if (part / FILE).is_file() else None
    for path in (marker, log, out / step.state):
        path.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(out / step.state, wait=True), open(log, "a", encoding="utf-8") as output:
        if marker.is_file():  # whoever was waited for has done it
            return
        runner = Runner(output, experiment.environment() if experiment else {})
        with _recorded(out / step.state, step, experiment, attempt):
            made = DO[step.kind](out, experiment, step, runner)
        from samnn.crossval.provenance import surroundings

        write_json(marker, {"step": name} | surroundings(runner.commands) | (made or {}))


# ---- the kinds of steps


def _prepare(out: Path, experiment: Experiment | None, step: Step, run: Runner) -> dict[str, Any]:
    from samnn.crossval.check import check_and_keep
    from samnn.crossval.prepare import prepare
    from samnn.crossval.provenance import record_data

    if experiment is None:
        from samnn.crossval.lowdata import prepare_sizes

        return prepare_sizes(out, run)
    prepare(experiment, run)
    data = record_data(experiment)
    check_and_keep(experiment)
    return {"data": data["sha256"]}


def _fold(out: Path, experiment: Experiment, step: Step, run: Runner) -> dict[str, Any]:
    from samnn.crossval.prepare import read_splits
    from samnn.crossval.provenance import FILE, UNKNOWN, of_fold, surroundings

    fold = Fold(experiment, step.method, step.fold)
    held_out = read_splits(experiment)[step.fold]["val"]
    now = of_fold(experiment, step.method, step.fold)
    known = fold.folder / FILE
    with only_writer(fold.folder, wait=True) as lock, _gpus(out, step.gpus) as (visible, locks):
        for path in fold.set_damaged_aside():
            run.say(f"{path}: was half-written, and is set aside")
        before = {"note": UNKNOWN} if fold.is_trained else {}
        made = (read_json(known) if known.is_file() else before) | now
        if fold.is_finished(held_out):
            run.say(f"{fold.folder}: finished, not trained again")
            return made
        # whoever kills this process does not free the fold while the command lives
        run.kept_open = [lock, *locks]
        fold.folder.mkdir(parents=True, exist_ok=True)
        commands = [*made.get("commands", []), fold.command()]
        write_json(known, made | surroundings(commands))
        run(fold.command(), **visible)
        if not fold.is_finished(held_out):
            raise SamnnError(f"{fold.folder}: the command has ended, but the fold is not finished.")
        made |= surroundings(commands)
        write_json(known, made)
        return made


def _predict(out: Path, experiment: Experiment, step: Step, run: Runner) -> None:
    target = experiment.out / "test" / step.method.folder
    target.mkdir(parents=True, exist_ok=True)
    ending = read_json(experiment.preprocessed_folder / "dataset.json")["file_ending"]
    for path in remove_half_written(target, ending=ending, with_probabilities=experiment.saves_probabilities):
        run.say(f"{path}: was half-written, and is predicted again")
    with _gpus(out, step.gpus) as (visible, locks):
        run.kept_open = locks
        images = raw_folder(experiment, "imagesTs")
        run(predict_command(experiment, step.method, images, target), **visible)


def _evaluate(out: Path, experiment: Experiment, step: Step, run: Runner) -> None:
    from samnn.crossval.gather import evaluate_command, gather

    if not step.is_test:
        gather(experiment, step.method)
    run(evaluate_command(experiment, step.method, is_test=step.is_test))


def _ensemble(out: Path, experiment: Experiment, step: Step, run: Runner) -> None:
    from samnn.crossval.gather import ensemble_command, gather

    for method in experiment.methods:
        gather(experiment, method)
    run(ensemble_command(experiment, is_test=step.is_test))


def _best(out: Path, experiment: Experiment, step: Step, run: Runner) -> None:
    from samnn.crossval.gather import best_command

    run(best_command(experiment))


def _compare(out: Path, experiment: Experiment, step: Step, run: Runner) -> None:
    from samnn.crossval.gather import compare_command, gather
    from samnn.crossval.provenance import of_experiment, surroundings

    for method in experiment.methods:
        gather(experiment, method)
    command = compare_command(experiment, is_test=step.is_test)
    run(command)
    folder = Path(command[command.index("-o") + 1])
    write_json(folder / "provenance.json", {"folds": of_experiment(experiment)} | surroundings(run.commands))


def _curve(out: Path, experiment: Experiment | None, step: Step, run: Runner) -> None:
    from samnn.crossval.learning_curve import write_curve

    write_curve(out)


DO = {
    "prepare": _prepare,
    "fold": _fold,
    "predict": _predict,
    "evaluate": _evaluate,
    "ensemble": _ensemble,
    "best": _best,
    "compare": _compare,
    "curve": _curve,
}


# ---- what is written down, and what is shared


@contextmanager
def _recorded(path: Path, step: Step, experiment: Experiment | None, attempt: int) -> Iterator[None]:
    """Write when the step begins and how it ends; refuse to try again what would end the same way."""
    before = read_json(path) if path.is_file() else {}
    progress = Fold(experiment, step.method, step.fold).progress() if step.kind == "fold" else 0.0
    failed = before.get("reason") is not None and not before.get("was_killed")
    if attempt > 1 and failed:
        raise SamnnError(before["reason"])  # an error of its own, and not an end from outside
    is_fruitless = attempt > 1 and before.get("progress") == progress
    fruitless = before.get("fruitless", 0) + 1 if is_fruitless else 0
    if attempt > 1 and fruitless >= MOST_FRUITLESS:
        raise SamnnError(
            f"killed {fruitless} times without having written a checkpoint. For lack of memory or time? See its log."
        )
    record: dict[str, Any] = {
        "began": time.time(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "progress": progress,
        "fruitless": fruitless,
    }
    write_json(path, record)
    try:
        yield
    except CommandFailed as error:
        write_json(
            path, record | {"ended": time.time(), "reason": str(error), "was_killed": error.was_killed}
        )
        raise
    except SamnnError as error:
        write_json(path, record | {"ended": time.time(), "reason": str(error), "was_killed": False})
        raise
    except SystemExit:
        write_json(path, record | {"ended": time.time(), "reason": "stopped by a signal", "was_killed": True})
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        write_json(path, record | {"ended": time.time(), "reason": reason, "was_killed": False})
        raise
    write_json(path, record | {"ended": time.time(), "reason": None})


@contextmanager
def _gpus(out: Path, n: int) -> Iterator[tuple[dict[str, str], list[int]]]:
    """Take `n` of the GPUs that the jobs of this machine share; → the variable that names them, and their locks."""
    shared = os.environ.get(GPUS, "").split(",") if os.environ.get(GPUS) else []
    if not n or not shared:
        yield {}, []
        return
    while True:
        with ExitStack() as held:
            taken: dict[str, int] = {}
            for gpu in shared:
                path = out / f".lock-gpu-{gpu}"
                lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
                held.callback(os.close, lock)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                taken[gpu] = lock
                if len(taken) == n:
                    yield {"CUDA_VISIBLE_DEVICES": ",".join(taken)}, list(taken.values())
                    return
        time.sleep(1)


def _end_of(log: Path, start: int) -> str:
    """The last lines that the command has written."""
    with open(log, "rb") as file:
        file.seek(max(start, file.seek(0, 2) - 4000))
        lines = file.read().decode("utf-8", errors="replace").replace("\r", "\n").splitlines()
    return "\n".join([line for line in lines if line.strip()][-REASON_LINES:])


def main() -> None:
    """Do the step that the arguments name; exit code 1 where it fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("step")
    parser.add_argument("--attempt", type=int, default=1)
    arguments = parser.parse_args()
    try:
        do(arguments.out.absolute(), arguments.step, attempt=arguments.attempt)
    except SamnnError as error:
        print(f"{arguments.step}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

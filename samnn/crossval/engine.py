"""The engine: Snakemake, started on the experiment's folder, watched, and stopped together with all its jobs."""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from samnn.crossval.experiment import Experiment
from samnn.crossval.job import GPUS
from samnn.crossval.status import DONE, FAILED, RUNNING, State, states_of
from samnn.crossval.steps import Step
from samnn.errors import Problems, SamnnError

SNAKEFILE = Path(__file__).with_name("Snakefile")
LOG = "logs/snakemake.log"
POLL_S = 0.5


def run(
    out: Path,
    steps: Sequence[Step],
    experiment: Experiment,
    *,
    executor: str = "local",
    jobs: int | None = None,
    extra: str = "",
    console: Console,
) -> None:
    """Run all steps that are not done; `extra` goes to Snakemake as it is. The caller is the only one to run `out`.

    Raises:
        SamnnError: Snakemake is missing, or there are fewer GPUs than a step needs. Problems: the steps that failed, and why.
    """
    _require(executor)
    command = snakemake_command(out, steps, experiment, executor=executor, jobs=jobs, extra=extra)
    variables = _variables(experiment, executor)
    if executor == "local":
        _refuse_more_gpus(steps, _gpu_names(experiment))
    log = out / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as output:
        print(f"\n{shlex.join(command)}", file=output, flush=True)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | variables,
            start_new_session=True,
        )
        try:
            _watch(process, out, steps, console)
        finally:
            _stop(process, patience_s=120 if executor == "local" else 5)  # a cluster's jobs go on
    failed = [state for state in states_of(out, steps) if state.status == FAILED]
    if failed:
        raise Problems(
            f"{len(failed)} of {len(steps)} steps failed. What is done stays done: mend it, and repeat the command.",
            [f"{state.step.name}: {state.reason}\n    {out / state.step.log}" for state in failed],
        )
    if process.returncode:
        raise SamnnError(
            f"Snakemake ended with exit code {process.returncode}. The end of {log}:\n{_end_of(log)}"
        )


def snakemake_command(
    out: Path, steps: Sequence[Step], experiment: Experiment, *, executor: str, jobs: int | None, extra: str
) -> list[str]:
    """What is run; a killed run leaves neither a lock nor a doubt about markers, which appear whole or not at all."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--directory", str(out)]
    command += ["--executor", executor, "--nolock", "--ignore-incomplete", "--rerun-triggers", "mtime"]
    command += ["--keep-going", "--scheduler", "greedy", "--retries", str(experiment.retries)]
    if executor == "local":
        slots = jobs or _default_slots(experiment)
        command += ["--cores", str(slots * max(step.cpus for step in steps)), "--resources", f"slots={slots}"]
        gpus = _gpu_names(experiment)
        if gpus:
            command += [f"gpu={len(gpus)}"]
    else:
        command += ["--jobs", str(jobs or 100), "--latency-wait", "60"]
    return command + shlex.split(extra)


def _require(executor: str) -> None:
    if importlib.util.find_spec("snakemake") is None:
        raise SamnnError(
            "Snakemake is not installed: pip install 'samnn[crossval]' (Python 3.11 or newer). Or run the commands that "
            "--print-commands shows."
        )
    plugin = f"snakemake_executor_plugin_{executor.replace('-', '_')}"
    if executor not in ("local", "dryrun", "touch") and importlib.util.find_spec(plugin) is None:
        raise SamnnError(
            f"--executor {executor}: needs the package {plugin.replace('_', '-')}. Install it with pip."
        )


def _variables(experiment: Experiment, executor: str) -> dict[str, str]:
    gpus = _gpu_names(experiment) if executor == "local" else []
    return experiment.environment() | ({GPUS: ",".join(gpus)} if gpus else {})


def _refuse_more_gpus(steps: Sequence[Step], names: Sequence[str]) -> None:
    if greedy := [step for step in steps if step.gpus > len(names)]:
        raise SamnnError(
            f"{greedy[0].name} asks for {greedy[0].gpus} GPUs, and {len(names)} can be seen. Ask for fewer with --gpus, or "
            "look at CUDA_VISIBLE_DEVICES."
        )


def _default_slots(experiment: Experiment) -> int:
    return max(1, len(_gpu_names(experiment)) // experiment.gpus)


def _gpu_names(experiment: Experiment) -> list[str]:
    """The GPUs that local jobs share: those of CUDA_VISIBLE_DEVICES, or all."""
    if experiment.device != "cuda":
        return []
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        return os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _watch(process: subprocess.Popen, out: Path, steps: Sequence[Step], console: Console) -> None:
    """Say what begins and ends until Snakemake does."""
    shown: dict[str, str] = {state.step.name: state.status for state in states_of(out, steps)}
    before = sum(status == DONE for status in shown.values())
    if before:
        console.print(f"{before} of {len(steps)} steps were done before.")
    while True:
        ended = process.poll() is not None
        states = states_of(out, steps)
        n_done = sum(state.status == DONE for state in states)
        for state in states:
            name = state.step.name
            if state.status != shown[name] and state.status in (RUNNING, DONE, FAILED):
                _say(console, state, n_done, len(steps))
            shown[name] = state.status
        if ended:
            return
        time.sleep(POLL_S)


def _say(console: Console, state: State, n_done: int, n_steps: int) -> None:
    style = {DONE: "green", FAILED: "red"}.get(state.status, "")
    took = f" ({state.seconds:.0f} s)" if state.status == DONE and state.seconds is not None else ""
    console.print(
        Text.assemble(f"[{n_done}/{n_steps}] ", (state.status, style), f" {state.step.name}{took}"),
        soft_wrap=True,
    )


def _stop(process: subprocess.Popen, *, patience_s: float) -> None:
    """End Snakemake and every local job; trainings of samnn write a checkpoint first."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])

"""A real SLURM of one node: jobs and the controller are killed midway, and the result is that of an undisturbed run."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_node import Slurm, missing
from toy import DATASET, ENET
from toy_results import differing, results_of, trainings

pytestmark = [pytest.mark.slurm]
LONG = "nnUNetTrainerENet_6epochs_40iters_seed1:2d"


def arguments(out: Path, *more: str, methods: tuple[str, ...] = (ENET,)) -> list[str]:
    few = ["--device", "cpu", "--cpus", "1", "--memory-gb", "1", "--no-ensemble", "--no-test"]
    return ["crossval", "-d", "511", "--methods", *methods, "--folds", "0", "1", *few, "-o", str(out), *more]


def on_slurm(*more: str) -> list[str]:
    """As on a cluster without job accounting."""
    options = "--slurm-no-account --slurm-status-command squeue --slurm-init-seconds-before-status-checks 5 --seconds-between-status-checks 3"
    return ["--executor", "slurm", "--jobs", "2", "--snakemake", " ".join([options, *more])]


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    if lacking := missing():
        pytest.fail(
            f"needs {', '.join(lacking)}: apt-get install slurmctld slurmd slurm-client munge, as root"
        )
    with Slurm(tmp_path / "slurm", cpus=1) as running:
        yield running


def test_killed_jobs_and_a_killed_controller_change_nothing(
    slurm: Slurm, toy_folders: Callable, samnn: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    undisturbed = toy_folders(tmp_path / "undisturbed")
    samnn(*arguments(undisturbed / "out"))
    expected = results_of(undisturbed / "nnUNet_results" / DATASET, undisturbed / "out")

    disturbed = toy_folders(tmp_path / "disturbed")
    out, results = disturbed / "out", disturbed / "nnUNet_results" / DATASET
    environment = os.environ | slurm.environment
    program = [str(Path(sys.executable).with_name("samnn")), *arguments(out, *on_slurm())]
    process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _until(lambda: list(results.glob("*/fold_0/checkpoint_*.pth")), process)
    for job in slurm.jobs():
        slurm.run("scancel", "--signal=KILL", job)  # Snakemake queues it again
    _until(lambda: slurm.jobs(), process)
    slurm.kill_controller()
    time.sleep(5)
    slurm.recover()
    process.kill()  # and whoever watched is gone, too
    process.wait()
    slurm.run("scancel", "--user=root")
    samnn(*arguments(out, *on_slurm()), **slurm.environment)
    with capsys.disabled():
        print("\ntrainings started:", trainings(results))
    assert differing(results_of(results, out), expected) == []


def test_a_fold_that_is_longer_than_its_jobs_is_carried_over_several(
    slurm: Slurm, toy_folders: Callable, samnn: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The limit is one minute, the shortest SLURM knows; the training takes longer and is told by SIGTERM."""
    undisturbed = toy_folders(tmp_path / "undisturbed")
    samnn(*arguments(undisturbed / "out", methods=(LONG,)))
    expected = results_of(undisturbed / "nnUNet_results" / DATASET, undisturbed / "out")

    cut = toy_folders(tmp_path / "cut")
    out, results = cut / "out", cut / "nnUNet_results" / DATASET
    limited = on_slurm("--retries 9")
    limits = tmp_path / "limits.toml"
    limits.write_text(f'[limits."{LONG}"]\nhours = 0.016\n')
    samnn(*arguments(out, "--file", str(limits), *limited, methods=(LONG,)), **slurm.environment)
    started = trainings(results)
    with capsys.disabled():
        print("\ntrainings started:", started)
    assert max(started.values()) > 1
    assert differing(results_of(results, out), expected) == []


def _until(condition: Callable[[], object], process: subprocess.Popen, *, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        assert process.poll() is None, "samnn crossval ended too early"
        time.sleep(0.5)
    raise TimeoutError

"""Random processes of an experiment are killed at random times; resumed, it equals one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from toy import DATASET, ENET, UNET
from toy_results import differing, results_of, trainings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="Snakemake 9 needs 3.11"),
]
ROUNDS = int(os.environ.get("SAMNN_KILL_ROUNDS", "8"))


def arguments(out: Path) -> list[str]:
    few = ["--device", "cpu", "--cpus", "1", "--no-ensemble", "--retries", "0"]
    return ["crossval", "-d", "511", "--methods", ENET, UNET, "--folds", "0", "1", *few, "-o", str(out)]


def kill_one_of(process: subprocess.Popen, rng: random.Random) -> str:
    """Kill a random process of the family, in half of the rounds the youngest: it does the work; → its command."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        youngest = max(family, key=psutil.Process.create_time)
        victim = youngest if rng.random() < 0.5 else rng.choice(family)
        name = " ".join(victim.cmdline())[-60:]
        victim.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return "ended by itself"
    return name


def kill_all_of(process: subprocess.Popen) -> None:
    for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def test_killed_at_random_and_resumed_equals_undisturbed(
    toy_folders: Callable, samnn: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    undisturbed = toy_folders(tmp_path / "undisturbed")
    samnn(*arguments(undisturbed / "out"))
    expected = results_of(undisturbed / "nnUNet_results" / DATASET, undisturbed / "out")

    killed = toy_folders(tmp_path / "killed")
    out, results = killed / "out", killed / "nnUNet_results" / DATASET
    rng = random.Random(0)
    done_before: dict[str, int] = {}
    log = []
    for round_ in range(ROUNDS):
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("samnn")), *arguments(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(5, 40))
        log.append(f"round {round_}: {kill_one_of(process, rng)}")
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        if process.poll() is None and rng.random() < 0.5:  # all at once, as a machine that loses its power
            kill_all_of(process)
        process.kill()  # otherwise whoever watched alone: the jobs live on, and the next run meets them
        process.wait()
        finished = {
            str(path): path.stat().st_mtime_ns for path in results.glob("*/fold_*/checkpoint_final.pth")
        }
        assert all(finished.get(name) == stamp for name, stamp in done_before.items()), (
            "a finished fold was redone"
        )
        done_before = finished
    samnn(*arguments(out))  # left alone at last: it also waits for orphans that still train
    with capsys.disabled():
        print("\n" + "\n".join(log), trainings(results))
    assert differing(results_of(results, out), expected) == []

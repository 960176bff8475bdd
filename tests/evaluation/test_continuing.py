"""A run that was ended in the middle goes on: killed workers, killed parents, cases mended in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import samnn
import samnn.evaluation3d
from samnn.errors import SamnnError
from samnn.evaluation3d import evaluate_folder, write_outputs
from samnn.evaluation3d.journal import NAME

CASES = "abcd"


@pytest.fixture
def folders(tmp_path, box, write_labels, write_dataset_json):
    """Four cases; c holds the value 9 in its prediction, which is in no class."""
    write_dataset_json(tmp_path, {"background": 0, "organ": 1})
    for moved, case in enumerate(CASES):
        write_labels(tmp_path / "reference" / f"{case}.nii.gz", box())
        write_labels(tmp_path / "prediction" / f"{case}.nii.gz", box(9 if case == "c" else 1, moved=moved))
    return tmp_path / "reference", tmp_path / "prediction"


@pytest.fixture
def mend(folders, box, write_labels):
    return lambda: write_labels(folders[1] / "c.nii.gz", box(moved=2))


def lines(out: Path) -> list[str]:
    return (out / NAME).read_text().splitlines()


def kept(out: Path) -> list[str]:
    return [json.loads(line)["case"] for line in lines(out)[1:]]


def forge(out: Path, case: str) -> None:
    """Change a kept number, by which it is known whether it is used."""
    forged = [json.loads(line) for line in lines(out)]
    for entry in forged:
        if entry.get("case") == case:
            entry["results"]["organ"]["values"]["dice"] = 0.125
    (out / NAME).write_text("".join(json.dumps(entry) + "\n" for entry in forged))


def dice(folders, out: Path, **more) -> dict[str, float]:
    found = evaluate_folder(*folders, keep_in=out, **more)
    return {case: classes["organ"].values["dice"] for case, classes in found.results.items()}


@pytest.fixture
def stopped(folders, tmp_path) -> Path:
    """The output folder of a run in which c failed; the number of a is forged."""
    out = tmp_path / "new" / "out"
    with pytest.raises(
        SamnnError, match=r"(?s)3 of 4 cases are finished and kept.*c\.nii\.gz: holds the value 9"
    ):
        evaluate_folder(*folders, keep_in=out)
    assert kept(out) == ["a", "b", "d"]
    forge(out, "a")
    return out


def test_finished_cases_are_not_computed_again(folders, stopped, mend):
    mend()
    assert dice(folders, stopped) == pytest.approx({"a": 0.125, "b": 0.9, "c": 0.8, "d": 0.7})


def test_what_goes_on_ends_with_the_same_bytes_as_what_was_never_stopped(folders, tmp_path, mend):
    with pytest.raises(SamnnError):
        evaluate_folder(*folders, keep_in=tmp_path / "out")
    mend()
    write_outputs(evaluate_folder(*folders, keep_in=tmp_path / "out"), tmp_path / "out")
    write_outputs(evaluate_folder(*folders), tmp_path / "at once")
    names = ["metrics.csv", "summary.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names  # and nothing else
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()


def test_calibration_goes_on_with_the_same_bytes(folders, tmp_path):
    for case in CASES:
        p = np.random.default_rng(ord(case)).random((12, 16, 20)).astype(np.float32)
        np.savez(folders[1] / f"{case}.npz", probabilities=np.stack([1 - p, p]))
    whole = (folders[1] / "d.npz").read_bytes()
    (folders[1] / "d.npz").write_bytes(whole[:2000] + b"damaged" + whole[2007:])
    with pytest.raises(SamnnError, match="3 of 4 cases"):
        evaluate_folder(*folders, probabilities=True, keep_in=tmp_path / "out")
    (folders[1] / "d.npz").write_bytes(whole)
    for keep_in, out in [(tmp_path / "out", tmp_path / "out"), (None, tmp_path / "at once")]:
        write_outputs(evaluate_folder(*folders, probabilities=True, keep_in=keep_in), out)
    for name in ("metrics.csv", "summary.json", "reliability.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()


@pytest.mark.parametrize("side", [0, 1])
def test_a_case_whose_files_have_changed_is_computed_again(folders, stopped, mend, side):
    mend()
    file = folders[side] / "a.nii.gz"
    os.utime(file, (1, 1))
    assert dice(folders, stopped)["a"] == 1


def test_other_settings_begin_anew(folders, stopped, mend):
    mend()
    assert dice(folders, stopped, tolerance_mm=2.0)["a"] == 1


def test_other_labels_begin_anew(folders, stopped, tmp_path, write_dataset_json):
    write_dataset_json(tmp_path, {"background": 0, "organ": 1, "other": 9})
    assert dice(folders, stopped)["a"] == 1


def test_another_version_begins_anew(folders, stopped, mend):
    mend()
    header = json.loads(lines(stopped)[0])
    assert header["samnn_evaluate"] == samnn.__version__
    (stopped / NAME).write_text(
        "\n".join([json.dumps({**header, "samnn_evaluate": "0.0.1"}), *lines(stopped)[1:], ""])
    )
    assert dice(folders, stopped)["a"] == 1


def test_a_line_that_a_kill_cut_short_is_dropped_and_computed_again(folders, stopped, mend):
    mend()
    content = (stopped / NAME).read_bytes()
    for cut in (1, 40, len(lines(stopped)[-1])):
        (stopped / NAME).write_bytes(content[:-cut])
        assert dice(folders, stopped) == pytest.approx({"a": 0.125, "b": 0.9, "c": 0.8, "d": 0.7})
        assert sorted(kept(stopped)) == list(CASES)


def test_a_file_of_that_name_from_somebody_else_is_left_alone(folders, tmp_path):
    for number, content in enumerate(['{"mine": 1}\n', "mine"]):
        theirs = tmp_path / str(number) / NAME
        theirs.parent.mkdir()
        theirs.write_text(content)
        with pytest.raises(SamnnError, match=f"{theirs}: exists and is not from samnn"):
            evaluate_folder(*folders, keep_in=theirs.parent)
        assert theirs.read_text() == content


def test_where_nothing_is_finished_nothing_is_left(folders, tmp_path, box, write_labels):
    for case in CASES:
        write_labels(folders[1] / f"{case}.nii.gz", box(9))
    with pytest.raises(SamnnError):
        evaluate_folder(*folders, keep_in=tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_a_second_run_into_the_same_folder_is_refused(folders, tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / NAME, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SamnnError, match="another samnn evaluate is writing it"):
            evaluate_folder(*folders, keep_in=tmp_path / "out")


@pytest.fixture
def house(tmp_path):
    """A copy of the installed package with one metric more; how to run it."""
    copy = tmp_path / "house" / "samnn"
    shutil.copytree(Path(samnn.__file__).parent, copy)
    shutil.copytree(Path(samnn.evaluation3d.__file__).parent, copy / "evaluation3d", dirs_exist_ok=True)
    metrics = copy / "evaluation3d" / "metrics"
    text = (metrics / "dice.py").read_text(encoding="utf-8")

    def add(line: str) -> dict:
        (metrics / "trap.py").write_text(text.replace("    return", f"    {line}\n    return"), "utf-8")
        return {"cwd": copy.parent, "env": {"PYTHONPATH": str(copy.parent)}}

    return add


# In the metric, for the case that is moved by two voxels: c.
TRAPPED = "if pair.fp == 96 and not __import__('os').path.exists('disarmed'):"
KILL = "__import__('os').kill(__import__('os').getpid(), 9)"


def test_a_killed_worker_is_reported_the_others_are_kept_and_the_run_goes_on(
    house, folders, mend, tmp_path, run_evaluate
):
    """A metric that kills its own process stands for the kernel, which does so when memory runs out."""
    mend()
    how, out = house(f"{TRAPPED} {KILL}"), tmp_path / "out"
    process = run_evaluate(*folders, "-o", out, "--workers", "2", **how)
    assert process.returncode == 1
    assert "A worker process died" in process.stderr and "Traceback" not in process.stderr
    assert "c: its worker process died twice" in process.stderr
    assert "3 of 4 cases are finished and kept" in process.stderr
    assert sorted(kept(out)) == ["a", "b", "d"]

    (how["cwd"] / "disarmed").touch()  # as with more memory
    forge(out, "a")
    process = run_evaluate(*folders, "-o", out, "--workers", "1", **how)
    assert process.returncode == 0, process.stderr
    assert "3 of 4 cases were finished by an earlier run" in process.stderr
    assert sorted(path.name for path in out.iterdir()) == ["metrics.csv", "summary.json"]
    assert "a,1,organ,dice,0.125,fraction" in (out / "metrics.csv").read_text()


def test_a_killed_run_goes_on(house, folders, mend, tmp_path, run_evaluate):
    """SIGKILL while c is computed, which a metric that sleeps makes long."""
    mend()
    sleep = f"{TRAPPED} __import__('time').sleep(600)"
    how, out = house(sleep), tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "samnn.cli", "evaluate", *folders, "-o", out, "--workers", "1"],
        cwd=how["cwd"],
        env={**os.environ, **how["env"]},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (out / NAME).exists() or len(kept(out)) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert kept(out) == ["a", "b"]
    (how["cwd"] / "disarmed").touch()
    process = run_evaluate(*folders, "-o", out, **how)
    assert process.returncode == 0, process.stderr
    assert "2 of 4 cases were finished by an earlier run" in process.stderr
    assert sorted(path.name for path in out.iterdir()) == ["metrics.csv", "summary.json"]

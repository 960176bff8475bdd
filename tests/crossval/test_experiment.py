"""What an experiment is written as, what is refused before anything starts, and in which order its steps come."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from toy import DATASET, GRID

from samnn.atomic import only_writer
from samnn.crossval.commands import spread
from samnn.crossval.engine import run
from samnn.crossval.experiment import Experiment, Method
from samnn.crossval.folds import remove_half_written
from samnn.crossval.job import MOST_FRUITLESS, _gpus, _recorded
from samnn.crossval.lowdata import smaller_splits
from samnn.crossval.provenance import record_data
from samnn.crossval.start import start
from samnn.crossval.steps import Step, steps_of
from samnn.environment import dataset_there
from samnn.errors import Problems, SamnnError
from samnn.io import Volume, write_volume

needs_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is in Python 3.11 and newer")
METHODS = ["nnUNetTrainer:3d_fullres", "nnUNetTrainerENet:2d", "nnUNetTrainerSAMed:2d_samed:samnnPlans"]


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name / DATASET).mkdir(parents=True)
        monkeypatch.setenv(name, str(tmp_path / name))
    return Experiment.of({"dataset": 511, "methods": METHODS, "folds": [0, 2]}, source="test", out=None)


def test_options_take_several_values_and_leave_the_others_alone() -> None:
    typed = shlex.split("-d 55 --methods A:2d B:3d --folds 0 1 -o out --jobs 2")
    assert spread(typed) == shlex.split(
        "-d 55 --methods A:2d --methods B:3d --folds 0 --folds 1 -o out --jobs 2"
    )


@needs_toml
@given(
    folds=st.lists(st.integers(0, 20), min_size=1, unique=True),
    hours=st.floats(0.1, 1000, allow_nan=False),
    group=st.none() | st.text(min_size=1).map(re.escape),
    ensemble=st.booleans(),
    gpus=st.integers(1, 8),
)
def test_an_experiment_read_from_its_file_is_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    folds: list,
    hours: float,
    group: str | None,
    ensemble: bool,
    gpus: int,
) -> None:
    written = Experiment(
        out=tmp_path_factory.mktemp("experiment"),
        dataset=DATASET,
        methods=tuple(map(Method.parse, METHODS)),
        folds=tuple(folds),
        hours=hours,
        group=group,
        ensemble=ensemble,
        limits={METHODS[2]: {"gpus": gpus, "hours": 1.5}},
    )
    written.write()
    assert Experiment.read(written.out / "experiment.toml") == written


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"methods": ["nnUNetTrainer"]}, "names no method"),
        ({"methods": ["A:2d", "A:2d"]}, "A:2d is named twice"),
        ({"folds": [0, 0]}, "fold 0 is named twice"),
        ({"folds": [-1]}, "from 0 on"),
        ({"device": "gpu"}, "expected cuda, cpu, mps"),
        ({"limits": {"B:2d": {"hours": 1}}}, "no method of the experiment"),
        ({"limits": {"A:2d": {"days": 1}}}, "unknown days"),
        ({"epochs": 3}, "does not know epochs"),
        ({"hours": "long"}, "expected a number"),
        ({"hours": float("nan")}, "above 0"),
        ({"limits": {"A:2d": {"hours": "48"}}}, "hours is '48'"),
        ({"limits": {"A:2d": 48}}, "expected a table"),
        ({"methods": "A:2d"}, "expected a list"),
        ({"group": "("}, "no regular expression"),
        ({"metrics": "dice,dise"}, "no metric 'dise'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_run_is_refused_with_its_name(tmp_path: Path, values: dict, said: str) -> None:
    with pytest.raises(SamnnError, match=said):
        Experiment.of({"dataset": DATASET, "methods": ["A:2d"]} | values, source="test", out=tmp_path)


def test_there_is_no_cross_product_and_nothing_runs_before_what_it_needs(experiment: Experiment) -> None:
    steps = list(steps_of(experiment))
    assert sum(step.kind == "fold" for step in steps) == len(METHODS) * 2
    seen: set[str] = set()
    for step in steps:
        assert set(step.needs) <= seen, step.name
        seen.add(step.name)
    assert steps[-1].name == "compare"
    assert all("prepare" in step.needs for step in steps if step.kind == "fold")


def test_a_crf_is_fine_tuned_after_the_fold_it_starts_from(experiment: Experiment) -> None:
    methods = (Method("nnUNetTrainerENet_CRFfinetune", "2d"), Method("nnUNetTrainerENet", "2d"))
    steps = {step.name: step for step in steps_of(replace(experiment, methods=methods))}
    tuned = steps["fold-nnUNetTrainerENet_CRFfinetune__nnUNetPlans__2d-2"]
    assert "fold-nnUNetTrainerENet__nnUNetPlans__2d-2" in tuned.needs


def test_limits_come_from_the_experiment_then_the_plans_then_the_defaults(experiment: Experiment) -> None:
    plans = {"configurations": {"2d": {"samnn": {"memory_gb": 3.5, "hours": 2}}}}
    (experiment.preprocessed_folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    stock, enet, _ = experiment.methods
    assert experiment.limit(stock, "memory_gb") == 16
    assert experiment.limit(enet, "memory_gb") == 3.5
    own = replace(experiment, limits={str(enet): {"memory_gb": 40}})
    assert (own.limit(enet, "memory_gb"), own.limit(enet, "hours")) == (40, 2)
    assert next(s for s in steps_of(own) if s.method == enet).memory_mb == 40_000


def test_limits_follow_from_the_step_that_was_planned(experiment: Experiment) -> None:
    step = {"device": "cpu", "measured": False, "seconds": 2.4, "gib": 4}
    plans = {"configurations": {"2d": {"samnn": {"step": step}}}}
    (experiment.preprocessed_folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    on_cpu = replace(experiment, device="cpu", hours=24.0)
    short = Method("nnUNetTrainerENet_10epochs_100iters", "2d")
    assert on_cpu.limit(short, "hours") == pytest.approx(1 + 1.5 * 2.4 * 10 * 100 / 3600)
    assert on_cpu.limit(short, "memory_gb") == pytest.approx(6 + 1.5 * 4)
    assert on_cpu.limit(Method("nnUNetTrainerENet", "2d"), "hours") == 24  # 250 hours: in several jobs
    on_gpu = replace(experiment, device="cuda")  # for which the step of a CPU says nothing
    assert on_gpu.limit(short, "hours") == experiment.hours


@needs_toml
def test_another_experiment_in_the_same_folder_is_refused_but_it_may_grow(experiment: Experiment) -> None:
    assert experiment.settle() == set()
    assert experiment.settle() == set()
    assert replace(experiment, folds=(0, 1, 2)).settle() == {"folds"}
    with pytest.raises(Problems, match="ensemble was True, is False"):
        replace(experiment, folds=(0, 1, 2), ensemble=False).settle()
    with pytest.raises(Problems, match=r"(?s)larger experiment.*fold 2 is in it"):
        replace(experiment, folds=(0, 1)).settle()
    assert replace(experiment, folds=(0, 1, 2), group="(p)").settle() == {"group"}


def test_plain_commands_are_nnunets_own(experiment: Experiment) -> None:
    from samnn.crossval.script import shell_lines

    lines = list(shell_lines(experiment))
    assert "nnUNetv2_train 511 2d 2 -tr nnUNetTrainerENet -p nnUNetPlans -device cuda --npz" in lines
    trains = [line for line in lines if line.startswith("nnUNetv2_train")]
    assert len(trains) == 6
    assert lines.index(trains[0]) > lines.index(next(line for line in lines if "--until prepare" in line))
    assert subprocess.run(["bash", "-n"], input="\n".join(lines), text=True).returncode == 0


# ---- what a job that is tried again does


def attempt(path: Path, experiment: Experiment, number: int, error: BaseException | None = None) -> None:
    step = Step("fold", "fold", (), experiment.methods[1], 0)
    with _recorded(path, step, experiment, number):
        if error is not None:
            raise error


def test_an_error_of_its_own_is_not_tried_again_but_a_killed_job_is(experiment: Experiment) -> None:
    path = experiment.out.parent / "state.json"
    with pytest.raises(SamnnError, match="NaN"):
        attempt(path, experiment, 1, SamnnError("NaN"))
    with pytest.raises(SamnnError, match="NaN"):
        attempt(path, experiment, 2)  # would have succeeded
    attempt(path, experiment, 1)  # the user has started anew
    with pytest.raises(SystemExit):
        attempt(path, experiment, 1, SystemExit(143))
    attempt(path, experiment, 2)


def test_a_job_that_is_killed_again_and_again_without_a_checkpoint_is_given_up(
    experiment: Experiment,
) -> None:
    path = experiment.out.parent / "state.json"
    for number in range(1, MOST_FRUITLESS + 1):
        with pytest.raises(SystemExit):
            attempt(path, experiment, number, SystemExit(143))
    with pytest.raises(SamnnError, match="without having written a checkpoint"):
        attempt(path, experiment, MOST_FRUITLESS + 1)


def test_gpus_are_lent_to_one_job_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMNN_GPUS", "0,3")
    with _gpus(tmp_path, 1) as (first, _), _gpus(tmp_path, 1) as (second, _):
        assert [first, second] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"}]
    with _gpus(tmp_path, 2) as (both, _):
        assert both == {"CUDA_VISIBLE_DEVICES": "0,3"}


def test_a_lock_is_held_by_the_command_beyond_the_death_of_its_job(tmp_path: Path) -> None:
    from samnn.atomic import only_writer

    target, pid = tmp_path / "fold_0", tmp_path / "pid"
    script = f"""
import os, signal, threading
from pathlib import Path
from samnn.atomic import only_writer
from samnn.crossval.job import Runner
with only_writer(Path({str(target)!r})) as lock, open({str(tmp_path / "log")!r}, "a") as log:
    run = Runner(log, {{}})
    run.kept_open = [lock]
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGKILL)).start()
    run(["sh", "-c", "echo $$ > {pid}; exec sleep 30"])
"""
    done = subprocess.run([sys.executable, "-c", script])
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(SamnnError, match="another process"), only_writer(target):
        pass
    os.kill(int(pid.read_text()), signal.SIGKILL)
    with only_writer(target, wait=True):
        pass


def test_half_written_predictions_are_made_again(tmp_path: Path) -> None:
    """A killed prediction leaves the first half of a file; another has its label map, and not its probabilities."""
    for name in ("whole", "half", "without"):
        write_volume(tmp_path / f"{name}.nii.gz", Volume(np.zeros(GRID.shape, np.uint8), GRID))
        np.savez_compressed(tmp_path / f"{name}.npz", probabilities=np.zeros(3))
    half = tmp_path / "half.nii.gz"
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    (tmp_path / "without.npz").unlink()
    removed = remove_half_written(tmp_path, ending=".nii.gz", with_probabilities=True)
    assert [path.name for path in removed] == ["half.nii.gz", "without.nii.gz"]
    assert (tmp_path / "whole.nii.gz").is_file() and not half.exists()


# ---- fewer patients


@given(st.integers(0, 5), st.integers(2, 6))
def test_smaller_training_sets_are_nested_whole_patients_and_keep_the_validation(seed: int, n: int) -> None:
    cases = [f"p{patient}_{scan}" for patient in range(n) for scan in range(2)]
    splits = [{"train": cases[2:], "val": cases[:2]}, {"train": cases[:-2], "val": cases[-2:]}]
    before: list[set[str]] = [set(), set()]
    for size in range(1, n):
        smaller = smaller_splits(splits, size, group=r"(p\d+)_", seed=seed)
        for fold, split in enumerate(smaller):
            assert split["val"] == splits[fold]["val"]
            assert len(split["train"]) == 2 * size  # both scans of every patient
            assert before[fold] < set(split["train"]) <= set(splits[fold]["train"])
            before[fold] = set(split["train"])
    with pytest.raises(SamnnError, match="Name fewer"):
        smaller_splits(splits, n, group=r"(p\d+)_", seed=seed)


def test_the_order_of_patients_depends_on_the_seed() -> None:
    splits: list[dict] = [{"train": [f"c{i}" for i in range(20)], "val": ["v"]}]
    drawn = {tuple(smaller_splits(splits, 3, group=None, seed=seed)[0]["train"]) for seed in range(10)}
    assert len(drawn) > 5


def test_a_dataset_is_one_that_is_there(experiment: Experiment) -> None:
    assert dataset_there("511") == dataset_there(DATASET) == DATASET
    with pytest.raises(SamnnError, match=f"of this number there are: {DATASET}"):
        dataset_there("Dataset511_Toys")


def test_a_second_command_touches_nothing_while_the_first_one_runs(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment.settle()
    (experiment.out / "test").mkdir()
    before = (experiment.out / "experiment.toml").read_bytes()
    monkeypatch.setattr("samnn.crossval.check.check", lambda *_, **__: {})
    given = {"dataset": DATASET, "methods": METHODS, "folds": [0, 1, 2], "device": "cpu"}
    options = {"executor": "local", "jobs": None, "extra": "", "dry_run": False, "print_commands": False}
    with (
        only_writer(experiment.out / "run"),
        pytest.raises(SamnnError, match="another process is writing it"),
    ):
        start(given, file=None, out=None, resume=False, console=Console(), **options)
    assert (experiment.out / "experiment.toml").read_bytes() == before
    assert (experiment.out / "test").is_dir()


def test_more_gpus_than_there_are_stop_before_anything_waits_for_them(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    greedy = replace(experiment, gpus=4)
    with pytest.raises(SamnnError, match="asks for 4 GPUs, and 2 can be seen"):
        run(greedy.out, list(steps_of(greedy)), greedy, console=Console())


def test_a_test_set_that_comes_later_does_not_make_other_data(experiment: Experiment, tmp_path: Path) -> None:
    raw = tmp_path / "nnUNet_raw" / DATASET
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "dataset.json"):
        (raw / name).parent.mkdir(exist_ok=True)
        (raw / name).write_text(name)
    experiment.out.mkdir(parents=True)
    before = record_data(experiment)
    (raw / "imagesTs").mkdir()
    (raw / "imagesTs" / "b_0000.nii.gz").write_text("b")
    after = record_data(experiment)
    assert after["sha256"] == before["sha256"] and "imagesTs/b_0000.nii.gz" in after["files"]
    (raw / "labelsTr" / "a.nii.gz").write_text("other")
    assert record_data(experiment)["sha256"] != before["sha256"]

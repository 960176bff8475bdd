"""Preparation: fingerprint, plans, preprocessing and splits, each only where it is missing, before any fold starts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samnn.atomic import write_json
from samnn.crossval.experiment import Experiment, Method, root
from samnn.errors import SamnnError

STOCK_PLANS = "nnUNetPlans"
NNUNET_SEED = 12345  # of nnU-Net's own five folds
Run = Callable[..., None]


def prepare(experiment: Experiment, run: Run) -> None:
    """Make what is missing with nnU-Net's commands; what is there and whole stays as it is.

    `run(command, **variables)` runs one. A command that is killed leaves a note beside its result, so that the next
    run does not take half of it for all.
    """
    folder = experiment.preprocessed_folder
    variables = _planning_variables()
    if not _is_json(folder / "dataset_fingerprint.json") or _was_cut(folder, "fingerprint"):
        with _noted(folder, "fingerprint"):
            run(fingerprint_command(experiment), **variables)
    if not _is_json(folder / f"{STOCK_PLANS}.json") or _was_cut(folder, "plan"):
        with _noted(folder, "plan"):
            run(plan_command(experiment), **variables)
    done = set()
    for method in experiment.methods:
        data = data_folder(experiment, method)
        if data in done:
            continue
        done.add(data)
        if _was_cut(folder, data.name) or not is_preprocessed(experiment, method):
            with _noted(folder, data.name):
                run(preprocess_command(experiment, method), **variables)
    write_splits(experiment)


def fingerprint_command(experiment: Experiment) -> list[str]:
    """`--clean`: a fingerprint that is there is half of one."""
    few = ["-np", _processes(experiment)]
    return [
        "nnUNetv2_extract_fingerprint", "-d", experiment.number, "--verify_dataset_integrity", "--clean", *few
    ]  # fmt: skip


def plan_command(experiment: Experiment) -> list[str]:
    return ["nnUNetv2_plan_experiment", "-d", experiment.number]


def preprocess_command(experiment: Experiment, method: Method) -> list[str]:
    few = ["-np", _processes(experiment)]
    return [
        "nnUNetv2_preprocess", "-d", experiment.number, "-plans_name", method.plans, "-c", method.configuration, *few
    ]  # fmt: skip


def _processes(experiment: Experiment) -> str:
    """No more than there are cores: each imports torch."""
    return str(min(experiment.cpus, os.cpu_count() or 1))


def data_folder(experiment: Experiment, method: Method) -> Path:
    """Where the preprocessed cases of a method lie; configurations that inherit share them.

    Raises:
        SamnnError: the plans are missing or have no such configuration.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    path = experiment.preprocessed_folder / f"{method.plans}.json"
    try:
        manager = PlansManager(json.loads(path.read_text(encoding="utf-8")))
        if method.configuration not in manager.available_configurations:
            raise SamnnError(
                f"{path}: has no configuration {method.configuration}; it has "
                f"{', '.join(manager.available_configurations)}."
            )
        return (
            experiment.preprocessed_folder / manager.get_configuration(method.configuration).data_identifier
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SamnnError(f"{path}: cannot be used as plans ({error}). Plan the experiment first.") from error


def is_preprocessed(experiment: Experiment, method: Method) -> bool:
    """Whether every case of the raw dataset, or else every one whose labels were put aside, is there."""
    from samnn.doctor import OK
    from samnn.doctor_job import Job, examine_job

    job = Job(experiment.dataset, method.configuration, method.trainer, method.plans)
    found = [finding for finding in examine_job(job) if finding.subject == "preprocessed data"]
    if not found or found[0].status != OK:
        return False
    try:
        raw = root("nnUNet_raw") / experiment.dataset / "dataset.json"
        expected = json.loads(raw.read_text(encoding="utf-8"))["numTraining"]
    except (SamnnError, OSError, ValueError, KeyError):  # no raw data on this machine
        return True
    return len(cases(experiment, method)) >= expected


def cases(experiment: Experiment, method: Method) -> list[str]:
    """The names of the preprocessed cases, sorted."""
    return sorted(path.stem for path in data_folder(experiment, method).glob("*.pkl"))


def write_splits(experiment: Experiment) -> None:
    """Write splits_final.json as nnU-Net would, whole or not at all; one that is there is checked.

    Raises:
        SamnnError: it has fewer folds than are asked for, names cases that are not there, or cannot be made.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    path = experiment.preprocessed_folder / "splits_final.json"
    names = cases(experiment, experiment.methods[0])
    if not path.is_file():
        if len(names) < 5:
            raise SamnnError(
                f"{path}: five folds need five cases, there are {len(names)}. Write your own splits."
            )
        splits = generate_crossval_split(names, seed=NNUNET_SEED, n_splits=5)
        write_json(
            path, [{part: list(map(str, split[part])) for part in ("train", "val")} for split in splits]
        )
    splits = read_splits(experiment)
    if beyond := [fold for fold in experiment.folds if fold >= len(splits)]:
        raise SamnnError(
            f"{path}: has {len(splits)} folds, so there is no fold {beyond[0]}; nnU-Net would take a random one."
        )
    if missing := sorted({case for split in splits for part in split.values() for case in part} - set(names)):
        raise SamnnError(
            f"{path}: names {len(missing)} cases that are not preprocessed: {', '.join(missing[:5])}."
        )


def read_splits(experiment: Experiment) -> list[dict[str, list[str]]]:
    """Raises SamnnError: the file is missing or damaged."""
    path = experiment.preprocessed_folder / "splits_final.json"
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        return [{part: list(split[part]) for part in ("train", "val")} for split in splits]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SamnnError(f"{path}: cannot be read as splits ({error}). Restore it, or remove it.") from error


def _planning_variables() -> dict[str, str]:
    """Planning sets torch's number of threads to nnUNet_n_proc_DA, and crashes with the 0 that suits small trainings."""
    return {"nnUNet_n_proc_DA": "1"} if os.environ.get("nnUNet_n_proc_DA") == "0" else {}


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _was_cut(folder: Path, what: str) -> bool:
    return _note(folder, what).exists()


def _note(folder: Path, what: str) -> Path:
    return folder / f".unfinished-{what}"


@contextmanager
def _noted(folder: Path, what: str) -> Iterator[Any]:
    folder.mkdir(parents=True, exist_ok=True)
    _note(folder, what).touch()
    yield
    _note(folder, what).unlink()


def patient_of(case: str, group: str | None) -> str:
    """What `group`, a regular expression, finds in a case's name; the whole name without it. Raises SamnnError: nothing."""
    if group is None:
        return case
    match = re.search(group, case)
    if match is None:
        raise SamnnError(f"--group {group!r}: finds no patient in {case}.")
    return match[1] if match.re.groups else match[0]

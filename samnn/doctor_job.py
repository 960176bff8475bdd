"""Whether all that one training needs is there, before it waits in a queue: data, plans, trainer, weights, folders."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samnn.doctor import OK, PROBLEM, WARNING, Finding
from samnn.environment import dataset_there
from samnn.errors import SamnnError
from samnn.weights import is_name, verified

MOST_NAMED = 5  # cases in one finding


@dataclass(frozen=True)
class Job:
    """The arguments of `nnUNetv2_train`, less the fold."""

    dataset: str  # number or name
    configuration: str
    trainer: str
    plans: str


def examine_job(job: Job) -> Iterator[Finding]:
    """Look at what `nnUNetv2_train` will look at; what needs something that is missing is left out."""
    try:
        folder = _dataset_folder(job)
    except SamnnError as error:
        yield Finding(
            PROBLEM,
            "dataset",
            str(error),
            f"nnUNetv2_plan_and_preprocess -d {job.dataset} -c {job.configuration}",
        )
        folder = None
    else:
        yield Finding(OK, "dataset", str(folder))
    manager = None
    if folder is not None:
        finding, manager = _plans(job, folder)
        yield finding
    if manager is not None:
        yield _preprocessed(job, folder, manager)
    finding, trainer = _trainer(job)
    yield finding
    if manager is not None and trainer is not None:
        yield from _fit(job, manager, trainer)
    if folder is not None:
        yield _results(job, folder.name)


def _dataset_folder(job: Job) -> Path:
    root = os.environ.get("nnUNet_preprocessed")
    if not root:
        raise SamnnError("nnUNet_preprocessed is not set")
    folder = Path(root) / dataset_there(job.dataset)
    for needed in ("", "dataset.json"):
        if not (folder / needed).exists():
            raise SamnnError(f"{folder / needed} does not exist: the dataset is not preprocessed")
    return folder


def _plans(job: Job, folder: Path) -> tuple[Finding, Any]:
    """What the plans say of the configuration, and nnU-Net's manager of them where they say something."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    path = folder / f"{job.plans}.json"
    subject = f"{job.plans}, {job.configuration}"
    try:
        manager = PlansManager(json.loads(path.read_text(encoding="utf-8")))
        available = manager.available_configurations
        if job.configuration not in available:
            found = f"{path} has no configuration {job.configuration}, it has {', '.join(available)}"
            return Finding(PROBLEM, subject, found, "Name one of these, or plan another."), None
        configuration = manager.get_configuration(job.configuration)
        patch = " × ".join(str(length) for length in configuration.patch_size)
        return Finding(OK, subject, f"patches {patch}, batch {configuration.batch_size}"), manager
    except FileNotFoundError:
        there = sorted(file.stem for file in folder.glob("*Plans*.json"))
        found = f"{path} does not exist" + (f", there are {', '.join(there)}" if there else "")
        return Finding(
            PROBLEM, subject, found, f"nnUNetv2_plan_experiment -d {job.dataset}, or name others with -p."
        ), None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        return Finding(
            PROBLEM, subject, f"{path} cannot be used: {error}", "Plan the experiment again."
        ), None


def _preprocessed(job: Job, folder: Path, manager: Any) -> Finding:
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    data = folder / manager.get_configuration(job.configuration).data_identifier
    cure = f"nnUNetv2_preprocess -d {job.dataset} -plans_name {job.plans} -c {job.configuration}"
    try:
        there = set(infer_dataset_class(str(data)).get_identifiers(str(data)))
    except (OSError, AssertionError, KeyError):
        return Finding(PROBLEM, "preprocessed data", f"{data} holds none", cure)
    there = {case for case in there if (data / f"{case}.pkl").is_file()}
    try:
        missing = sorted(_expected(folder) - there)
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"dataset.json or splits_final.json in {folder} cannot be read: {error}"
        return Finding(PROBLEM, "preprocessed data", found, "Mend it, or preprocess again.")
    if missing:
        named = ", ".join(missing[:MOST_NAMED]) + (", …" if len(missing) > MOST_NAMED else "")
        return Finding(PROBLEM, "preprocessed data", f"{data} lacks {len(missing)} case(s): {named}", cure)
    return Finding(OK, "preprocessed data", f"{len(there)} cases in {data}")


def _expected(folder: Path) -> set[str]:
    """The cases that the splits name, and those whose labels nnU-Net has put aside when it preprocessed."""
    ending = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
    cases = {file.name.removesuffix(ending) for file in folder.glob(f"gt_segmentations/*{ending}")}
    splits = folder / "splits_final.json"
    if splits.is_file():
        for split in json.loads(splits.read_text(encoding="utf-8")):
            cases |= {*split["train"], *split["val"]}
    return cases


def _trainer(job: Job) -> tuple[Finding, Any]:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = find(job.trainer)
    except SamnnError as error:
        return Finding(PROBLEM, job.trainer, str(error)), None
    except Exception as error:  # whatever a broken file of others raises is the finding
        found = (
            f"nnU-Net does not find it: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        )
        return Finding(PROBLEM, job.trainer, found, "samnn doctor --trainers lists ours."), None
    return Finding(OK, job.trainer, "found by nnU-Net"), trainer


def _fit(job: Job, manager: Any, trainer: Any) -> Iterator[Finding]:
    """Ask a trainer of ours whether it takes the plans, and which weights it starts from."""
    try:
        if hasattr(trainer, "check"):
            trainer.check(manager, job.configuration)
        needed = (
            trainer.needed_weights(manager, job.configuration) if hasattr(trainer, "needed_weights") else None
        )
    except SamnnError as error:
        yield Finding(PROBLEM, "trainer and plans", str(error))
        return
    if needed is None:
        yield Finding(OK, "pretrained weights", "none needed")
        return
    try:
        path, sha256 = verified(needed)
        if not is_name(needed) and hasattr(trainer, "try_weights"):
            trainer.try_weights(manager, job.configuration)
    except SamnnError as error:
        yield Finding(
            PROBLEM,
            "pretrained weights",
            str(error),
            f"samnn weights get {needed}" if is_name(needed) else "",
        )
        return
    yield Finding(OK, "pretrained weights", f"{needed}: {path}, sha256 {sha256[:12]}…")


def _results(job: Job, dataset: str) -> Finding:
    root = os.environ.get("nnUNet_results")
    if not root:
        return Finding(PROBLEM, "results", "nnUNet_results is not set", 'eval "$(samnn env ROOT)"')
    folder = Path(root, dataset, f"{job.trainer}__{job.plans}__{job.configuration}")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding(PROBLEM, "results", f"{existing} cannot be written to", "Mend its permissions.")
    done = sorted(path.name for path in folder.glob("fold_*") if (path / "checkpoint_final.pth").is_file())
    begun = sorted(path.parent.name for path in folder.glob("fold_*/checkpoint_latest.pth"))
    if done or begun:
        found = ", ".join(
            [*(f"{fold} is finished" for fold in done), *(f"{fold} has begun" for fold in begun)]
        )
        return Finding(
            WARNING, "results", f"{folder}: {found}", "Add --c to go on; without it a fold starts anew."
        )
    return Finding(OK, "results", f"{folder} (made when needed)" if not folder.exists() else str(folder))

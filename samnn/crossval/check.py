"""Checks: every method is looked up, fitted to its plans, built once, and its weights verified, before anything starts."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from samnn.atomic import write_json
from samnn.crossval.experiment import Experiment, Method
from samnn.crossval.folds import Fold, read_json
from samnn.crossval.prepare import STOCK_PLANS, patient_of, read_splits
from samnn.crossval.provenance import FILE, differences, of_fold
from samnn.crossval.steps import CRF_FINETUNE
from samnn.doctor import PROBLEM
from samnn.doctor_job import Job, examine_job
from samnn.errors import Problems, SamnnError

TO_BE_MADE = ("dataset", "preprocessed data")  # by the preparation


def check(experiment: Experiment, *, is_prepared: bool) -> dict[str, dict[str, Any]]:
    """Look at every method; → method → the weights it starts from and its number of parameters.

    What the preparation will make may be missing before it has run; afterwards nothing may.

    Raises:
        Problems: everything that keeps a method from being trained, at once.
    """
    checked, problems = {}, []
    with _environment(experiment.environment()), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, as nnU-Net is imported
        for method in experiment.methods:
            try:
                checked[str(method)] = _checked(experiment, method, is_prepared)
            except Problems as found:
                problems += [f"{method}: {problem}" for problem in found.problems]
            except SamnnError as error:
                problems.append(f"{method}: {error}")
    if problems:
        raise Problems("Nothing is trained: these methods cannot be.", problems)
    return checked


def check_and_keep(experiment: Experiment) -> None:
    """After the preparation: check all, keep what was found in checked.json, and look at folds that are there already.

    Raises:
        Problems: as `check`, or folds were made by something else.
    """
    for split in read_splits(experiment):
        for case in split["val"]:
            patient_of(case, experiment.group)  # now, and not when all are trained
    write_json(experiment.out / "checked.json", check(experiment, is_prepared=True))
    if problems := _folds_from_elsewhere(experiment):
        raise Problems("Nothing is trained: results are in the way.", problems)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _checked(experiment: Experiment, method: Method, is_prepared: bool) -> dict[str, Any]:
    job = Job(experiment.dataset, method.configuration, method.trainer, method.plans)
    problems = []
    for finding in examine_job(job):
        if finding.status != PROBLEM:
            continue
        is_unplanned = method.plans == STOCK_PLANS and "does not exist" in finding.found
        if not is_prepared and (finding.subject in TO_BE_MADE or is_unplanned):
            continue
        problems.append(f"{finding.found.rstrip('.')}.{f' {finding.cure}' if finding.cure else ''}")
    start = replace(method, trainer=method.trainer.replace(CRF_FINETUNE, ""))
    if start != method and start not in experiment.methods:
        problems += [
            f"starts from fold {fold} of {start}, which is not finished. Add {start} to the methods."
            for fold in experiment.folds
            if not Fold(experiment, start, fold).is_trained
        ]
    if problems:
        raise Problems(str(method), problems)
    return _built(experiment, method)


def _built(experiment: Experiment, method: Method) -> dict[str, Any]:
    """Build the network as prediction does. Without plans, as before the preparation, only the weights stay unknown."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = experiment.preprocessed_folder
    if not (folder / f"{method.plans}.json").is_file() or not (folder / "dataset.json").is_file():
        return {"weights": None, "parameters": None}
    manager = PlansManager(read_json(folder / f"{method.plans}.json"))
    configuration, dataset = (
        manager.get_configuration(method.configuration),
        read_json(folder / "dataset.json"),
    )
    if configuration.previous_stage_name is not None:
        raise SamnnError(
            "is the second stage of a cascade, which samnn crossval does not run. Train it by hand."
        )
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = find(method.trainer)
        try:
            network = trainer.build_network_architecture(
                manager,
                configuration,
                determine_num_input_channels(manager, configuration, dataset),
                manager.get_label_manager(dataset).num_segmentation_heads,
                False,
            )
        except SamnnError:
            raise
        except Exception as error:  # whatever a network raises when it does not fit is the finding
            raise SamnnError(f"its network cannot be built: {type(error).__name__}: {error}") from error
    return {
        "weights": _weights(trainer, manager, method.configuration),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def _weights(trainer: Any, manager: Any, configuration: str) -> dict[str, str] | None:
    """The pretrained weights a trainer of ours starts from, verified."""
    from samnn.weights import verified

    needed = trainer.needed_weights(manager, configuration) if hasattr(trainer, "needed_weights") else None
    return None if needed is None else {"name": str(needed), "sha256": verified(needed)[1]}


def _folds_from_elsewhere(experiment: Experiment) -> list[str]:
    """Folds in the results folder that other data, splits, plans or weights made."""
    problems = []
    for method in experiment.methods:
        for number in experiment.folds:
            fold = Fold(experiment, method, number)
            if not (fold.folder / FILE).is_file() or not (fold.is_trained or fold.is_begun):
                continue
            differing = differences(read_json(fold.folder / FILE), of_fold(experiment, method, number))
            if differing:
                problems.append(
                    f"{fold.folder}: was trained with other {' and other '.join(differing)}. Move it away to train it "
                    "anew, or restore what it was trained with."
                )
    return problems

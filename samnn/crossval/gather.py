"""Gathering: the folds of this experiment alone, and the commands that evaluate, ensemble and compare them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from samnn.crossval.experiment import Experiment, Method
from samnn.crossval.steps import raw_folder
from samnn.errors import SamnnError

ENSEMBLE = "ensemble"


def gather(experiment: Experiment, method: Method) -> Path:
    """Make a results folder of links to the experiment's folds: the method's own may hold others."""
    target = experiment.gathered(method)
    target.mkdir(parents=True, exist_ok=True)
    links = {f"fold_{fold}": experiment.fold_folder(method, fold) for fold in experiment.folds}
    links |= {
        name: experiment.results_folder / method.folder / name for name in ("dataset.json", "plans.json")
    }
    for old in set(os.listdir(target)) - links.keys():
        (target / old).unlink()
    for name, source in links.items():
        link = target / name
        if not link.is_symlink():
            try:
                link.symlink_to(source)
            except FileExistsError:  # another step gathers the same at this moment
                if not link.is_symlink():
                    raise SamnnError(f"{link}: is in the way of a link. Move it away.") from None
    return target


def evaluate_command(experiment: Experiment, method: Method, *, is_test: bool) -> list[str]:
    target = experiment.out / ("test/evaluation" if is_test else "evaluation") / method.folder
    return ["samnn", "evaluate", *_source(experiment, method, is_test), "-o", str(target)]


def ensemble_command(experiment: Experiment, *, is_test: bool) -> list[str]:
    """The mean of all methods' probabilities."""
    sources = [_source(experiment, method, is_test)[-1] for method in experiment.methods]
    return [
        "samnn",
        "ensemble",
        *sources,
        "-o",
        str(ensemble_folder(experiment, is_test=is_test)),
        "--overwrite",
    ]


def ensemble_folder(experiment: Experiment, *, is_test: bool) -> Path:
    return (
        experiment.out / "test" / ENSEMBLE
        if is_test
        else experiment.gathered(experiment.methods[0]).with_name(ENSEMBLE)
    )


def best_command(experiment: Experiment) -> list[str]:
    """nnU-Net's find_best_configuration by its function: its command tries every trainer with every configuration."""
    models = json.dumps(
        [
            {"plans": method.plans, "configuration": method.configuration, "trainer": method.trainer}
            for method in experiment.methods
        ]
    )
    code = (
        "from nnunetv2.evaluation.find_best_configuration import find_best_configuration; "
        f"find_best_configuration({experiment.number}, {models}, folds={experiment.folds!r})"
    )
    return ["python", "-c", code]


def compare_command(experiment: Experiment, *, is_test: bool) -> list[str]:
    """The comparison of all methods, and of their ensemble where there is one."""
    sources = [_source(experiment, method, is_test)[-1] for method in experiment.methods]
    names = [str(method) for method in experiment.methods]
    if experiment.saves_probabilities:
        sources.append(str(ensemble_folder(experiment, is_test=is_test)))
        names.append(ENSEMBLE)
    target = experiment.out / ("test/comparison" if is_test else "comparison")
    command = ["samnn", "compare", *sources, "-o", str(target), "--names", ",".join(names)]
    command += ["--metrics", experiment.metrics]
    if experiment.group is not None:
        command += ["--group", experiment.group]
    if is_test:
        command += ["--reference", str(raw_folder(experiment, "labelsTs"))]
    return command


def _source(experiment: Experiment, method: Method, is_test: bool) -> list[str]:
    """What `samnn evaluate` takes: a results folder, or reference and prediction."""
    if not is_test:
        return [str(experiment.gathered(method))]
    return [str(raw_folder(experiment, "labelsTs")), str(experiment.out / "test" / method.folder)]

"""The same experiment as plain commands, for schedulers of one's own."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from samnn.crossval import gather, prepare
from samnn.crossval.experiment import Experiment, Method
from samnn.crossval.folds import Fold, predict_command
from samnn.crossval.steps import Step, raw_folder, steps_of


def shell_lines(experiment: Experiment) -> Iterator[str]:
    """A shell script that runs everything, one after the other; folds of one block can run at the same time."""
    yield "set -e"
    for name, value in experiment.environment().items():
        yield f"export {name}={shlex.quote(value)}"
    if experiment.device == "cpu":
        yield f"export OMP_NUM_THREADS={experiment.cpus}"  # as Snakemake does; sums depend on it in their last bits
    yield "# once; the last of these writes splits_final.json, which two folds that start together may damage"
    yield shlex.join(prepare.fingerprint_command(experiment))
    yield shlex.join(prepare.plan_command(experiment))
    yield from dict.fromkeys(
        shlex.join(prepare.preprocess_command(experiment, m)) for m in experiment.methods
    )
    yield shlex.join([*_this(experiment), "--snakemake", "--until prepare"])
    kind = "prepare"
    for step in steps_of(experiment):
        if step.kind != kind:
            yield f"# {TITLES[step.kind]}"
        if step.kind == "evaluate" and not step.is_test:
            yield from _links(experiment, step.method)
        kind = step.kind
        yield from (shlex.join(command) for command in _commands(experiment, step))


def _this(experiment: Experiment) -> list[str]:
    """`samnn crossval` for this experiment."""
    command = ["samnn", "crossval", "-d", experiment.dataset, "--methods", *map(str, experiment.methods)]
    command += [
        "--folds",
        *map(str, experiment.folds),
        "--device",
        experiment.device,
        "-o",
        str(experiment.out),
    ]
    usual = Experiment(experiment.out, experiment.dataset, experiment.methods)
    for name in ("group", "hours", "memory_gb", "cpus", "gpus", "retries"):
        if (value := getattr(experiment, name)) != getattr(usual, name):
            command += [f"--{name.replace('_', '-')}", f"{value}"]
    if not experiment.ensemble:
        command.append("--no-ensemble")
    return command if experiment.test else [*command, "--no-test"]


def _links(experiment: Experiment, method: Method) -> Iterator[str]:
    """What `gather` does: the results folder of the method may hold other folds."""
    target = experiment.gathered(method)
    yield shlex.join(["mkdir", "-p", str(target)])
    names = [f"fold_{fold}" for fold in experiment.folds] + ["dataset.json", "plans.json"]
    sources = [str(experiment.results_folder / method.folder / name) for name in names]
    yield shlex.join(["ln", "-sfn", *sources, str(target)])


TITLES = {
    "fold": "folds; add --c to go on with one that was stopped",
    "predict": "the test set",
    "evaluate": "evaluation",
    "ensemble": "mean probabilities",
    "best": "nnU-Net's choice",
    "compare": "comparison",
}


def _commands(experiment: Experiment, step: Step) -> Iterator[list[str]]:
    if step.kind == "fold":
        yield Fold(experiment, step.method, step.fold).command()
    elif step.kind == "predict":
        target = experiment.out / "test" / step.method.folder
        yield predict_command(experiment, step.method, raw_folder(experiment, "imagesTs"), target)
    elif step.kind == "evaluate":
        yield gather.evaluate_command(experiment, step.method, is_test=step.is_test)
    elif step.kind == "ensemble":
        yield gather.ensemble_command(experiment, is_test=step.is_test)
    elif step.kind == "best":
        yield gather.best_command(experiment)
    elif step.kind == "compare":
        yield gather.compare_command(experiment, is_test=step.is_test)

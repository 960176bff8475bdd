"""`samnn env`, `samnn doctor`, `samnn demo`: a new machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def env(
    root: Annotated[
        Path | None,
        typer.Argument(
            metavar="ROOT",
            help="Folder for data, results and weights: sets nnUNet_raw, nnUNet_preprocessed, nnUNet_results and "
            "SAMNN_WEIGHTS to folders below it, where they are not set.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folders that are set already.")] = False,
) -> None:
    """Print shell lines that show nnU-Net the trainers of samnn.

    Our folder is appended to nnUNet_extTrainer; what is there stays. Nothing is created: nnU-Net and samnn make
    their folders when they write to them.

    **Examples**

        eval "$(samnn env)"

        eval "$(samnn env ~/nnunet)"
    """
    from samnn.environment import settings

    if force and root is None:
        raise typer.BadParameter("replaces the folders below ROOT: name ROOT", param_hint="--force")
    found = settings(os.environ, root, force=force)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(os.fsencode(found.shell_lines()), nl=False)  # the bytes of a path, whatever the locale


def doctor(
    trainers: Annotated[
        bool,
        typer.Option("--trainers", help="List every trainer, every suffix of its name and what it does."),
    ] = False,
    dataset: Annotated[
        str | None, typer.Option("-d", metavar="ID", help="Dataset of a training, by number or name.")
    ] = None,
    configuration: Annotated[
        str | None, typer.Option("-c", metavar="CONFIG", help="Its configuration, such as `2d`.")
    ] = None,
    trainer: Annotated[
        str | None, typer.Option("-tr", metavar="NAME", help="Its trainer. Default: nnUNetTrainer.")
    ] = None,
    plans: Annotated[
        str | None, typer.Option("-p", metavar="PLANS", help="Its plans. Default: nnUNetPlans.")
    ] = None,
) -> None:
    """Say what is missing or wrong, and how to cure it. Exit code 1 where training would fail.

    With `-d`, `-c` and the other options of `nnUNetv2_train`: also whether all that this training needs is there, its
    pretrained weights included, before it waits in a queue.

    **Examples**

        samnn doctor

        samnn doctor -d 55 -c 2d -tr nnUNetTrainerENet

        samnn doctor --trainers
    """
    from itertools import chain

    from rich.console import Console

    from samnn.doctor import examine, print_findings, print_trainers

    if (dataset is None) != (configuration is None) or (dataset is None and (trainer or plans)):
        raise typer.BadParameter("a training is named by -d and -c together; -tr and -p may be added")
    console = Console()
    if trainers:
        print_trainers(console)
        return
    findings = examine()
    if dataset is not None:
        from samnn.doctor_job import Job, examine_job

        job = Job(dataset, configuration, trainer or "nnUNetTrainer", plans or "nnUNetPlans")
        findings = chain(findings, examine_job(job))
    if not print_findings(console, findings):
        raise typer.Exit(1)


def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for everything the demo makes.")] = Path(
        "demo"
    ),
    data: Annotated[
        Path | None,
        typer.Option(help="Your own SegTHOR folder. Default: seven made-up patients.", show_default=False),
    ] = None,
) -> None:
    """Show the whole chain on made-up patients: convert, plan, train, predict, evaluate.

    Every command is printed before it runs, its log is kept in `OUT/logs`, and a second run goes on where the first
    one stopped. At the end: a table, and a picture of the predictions beside the references.

    **Examples**

        samnn demo

        samnn demo ~/segthor-demo --data ~/segthor
    """
    from rich.console import Console

    from samnn.demo import Demo

    Demo(out, data, Console()).run()

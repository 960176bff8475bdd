"""`samnn crossval`, `samnn crossval status`, `samnn lowdata` and `samnn ensemble`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

SEVERAL = ("--methods", "--folds", "--sizes", "--crossval")


def spread(arguments: Sequence[str]) -> list[str]:
    """`--folds 0 1 2` → `--folds 0 --folds 1 --folds 2`, as typer wants it."""
    result: list[str] = []
    option = None
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in SEVERAL else None
            if option is None:
                result.append(argument)
        elif option is not None:
            result += [option, argument]
        else:
            result.append(argument)
    return result


class SeveralGroup(TyperGroup):
    """A group whose options take several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


class SeveralCommand(TyperCommand):
    """A command whose options take several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


app = typer.Typer(
    cls=SeveralGroup, rich_markup_mode="markdown", invoke_without_command=True, no_args_is_help=True
)

Dataset = Annotated[str | None, typer.Option("-d", metavar="ID", help="Dataset, by number or name.")]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--methods",
        metavar="TRAINER:CONFIG[:PLANS] …",
        help="What is compared. No cross product: each is named. Plans default to nnUNetPlans; `_seed<N>` in a "
        "trainer's name fixes its seed.",
        show_default=False,
    ),
]
Folds = Annotated[
    list[int] | None,
    typer.Option("--folds", metavar="0 1 …", help="Folds. Default: 0 1 2 3 4.", show_default=False),
]
Device = Annotated[
    Literal["cuda", "cpu", "mps"] | None,
    typer.Option(help="Where nnU-Net trains and predicts. Default: cuda where there is a GPU, else cpu."),
]
Group = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="Names the patient in a case's name, as in `samnn compare`."),
]
Hours = Annotated[float | None, typer.Option(help="Longest time of a fold, for schedulers. Default: 24.")]
MemoryGb = Annotated[float | None, typer.Option(help="Memory of a fold, for schedulers. Default: 16.")]
Cpus = Annotated[int | None, typer.Option(min=1, help="Cores of a fold, for schedulers. Default: 4.")]
Gpus = Annotated[int | None, typer.Option(min=1, help="GPUs of a fold (nnU-Net's -num_gpus). Default: 1.")]
Retries = Annotated[
    int | None,
    typer.Option(
        min=0, help="How often a job that was killed or ran out of time is queued again. Default: 3."
    ),
]
Executor = Annotated[
    str, typer.Option(metavar="NAME", help="`local`, `slurm`, or any other executor plugin of Snakemake.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Steps at the same time. Default: one for each GPU (or one); on a cluster 100 submitted jobs.",
    ),
]
Passed = Annotated[
    str,
    typer.Option(
        "--snakemake",
        metavar='"OPTIONS"',
        help="Passed to Snakemake: partitions, accounts, profiles, `--until STEP`.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the experiment in OUT; nothing else needs to be said again."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check every method, list the steps, and start nothing.")
]


@app.callback()
def crossval(
    ctx: typer.Context,
    dataset: Dataset = None,
    methods: Methods = None,
    folds: Folds = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="An experiment as TOML, to be kept with the paper. Options replace its values.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the experiment: its file, logs, evaluations and `comparison/report.html`. "
            "Default: `nnUNet_results/DATASET/crossval`.",
        ),
    ] = None,
    device: Device = None,
    ensemble: Annotated[
        bool | None,
        typer.Option(
            "--ensemble/--no-ensemble",
            help="Save probabilities, average them, and let nnU-Net find its best configuration. Default: yes, with two "
            "methods or more.",
        ),
    ] = None,
    test: Annotated[
        bool | None,
        typer.Option(
            "--test/--no-test",
            help="Predict imagesTs, and compare on labelsTs. Default: where there are any.",
        ),
    ] = None,
    group: Group = None,
    hours: Hours = None,
    memory_gb: MemoryGb = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    retries: Retries = None,
    executor: Executor = "local",
    jobs: Jobs = None,
    snakemake: Passed = "",
    resume: Resume = False,
    dry_run: DryRun = False,
    print_commands: Annotated[
        bool,
        typer.Option(
            "--print-commands", help="Print the plain commands, for scripts of your own; start nothing."
        ),
    ] = False,
) -> None:
    """Train several methods on the same folds, and compare them. Needs `pip install 'samnn[crossval]'`.

    Prepares the dataset once, writes the splits before any fold starts, checks every method and its weights, trains
    each fold with nnU-Net's own command, evaluates, compares, and writes a report. A finished fold is never trained
    again. Stopped, killed or failed? The same command goes on.

    **Examples**

        samnn crossval -d 55 --methods nnUNetTrainer:3d_fullres nnUNetTrainerENet:2d --dry-run

        samnn crossval --file experiment.toml --jobs 2

        samnn crossval -d 55 --methods nnUNetTrainer:3d_fullres nnUNetTrainerENet:2d --executor slurm --snakemake "--default-resources slurm_partition=gpu"

        samnn crossval --resume -o nnUNet_results/Dataset055_SegTHOR/crossval

        samnn crossval status -d 55
    """
    if ctx.invoked_subcommand is not None:
        return
    from rich.console import Console

    from samnn.crossval.start import start

    given = {
        "dataset": dataset, "methods": methods, "folds": folds, "device": device, "ensemble": ensemble, "test": test,
        "group": group, "hours": hours, "memory_gb": memory_gb, "cpus": cpus, "gpus": gpus, "retries": retries,
    }  # fmt: skip
    start(
        {name: value for name, value in given.items() if value is not None},
        file=file,
        out=out,
        resume=resume,
        executor=executor,
        jobs=jobs,
        extra=snakemake,
        dry_run=dry_run,
        print_commands=print_commands,
        console=Console(),
    )


@app.command()
def status(
    dataset: Dataset = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the experiment, where it is not the default."),
    ] = None,
) -> None:
    """Show what is done, running, waiting, failed and why, with links to the logs. Exit code 1 unless all is done.

    **Examples**

        samnn crossval status -d 55

        samnn crossval status -o lowdata
    """
    from rich.console import Console

    from samnn.crossval.experiment import dataset_name, root
    from samnn.crossval.status import print_status
    from samnn.crossval.steps import steps_in

    if (dataset is None) == (out is None):
        raise typer.BadParameter("name the dataset with -d, or the folder with -o")
    folder = out or root("nnUNet_results") / dataset_name(dataset) / "crossval"
    if not print_status(folder.absolute(), steps_in(folder.absolute()), Console()):
        raise typer.Exit(1)


def lowdata(
    dataset: Dataset = None,
    methods: Methods = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--sizes", metavar="1 2 … all", help="Numbers of training patients.", show_default=False
        ),
    ] = None,
    folds: Folds = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder. Default: `nnUNet_results/DATASET/lowdata`.", show_default=False
        ),
    ] = None,
    device: Device = None,
    group: Group = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order in which patients are added.")] = 0,
    hours: Hours = None,
    memory_gb: MemoryGb = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    retries: Retries = None,
    executor: Executor = "local",
    jobs: Jobs = None,
    snakemake: Passed = "",
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Train methods on fewer and fewer patients, and draw their learning curves with intervals.

    Subsets are nested, patients stay together, and the validation cases of a fold are the same for every size.
    Everything else is as in `samnn crossval`, and so are stopping, going on, and `samnn crossval status -o OUT`.

    **Examples**

        samnn lowdata -d 55 --methods nnUNetTrainer:2d nnUNetTrainerSAMed:2d --sizes 1 2 5 10 all

        samnn lowdata --resume -o nnUNet_results/Dataset055_SegTHOR/lowdata
    """
    from rich.console import Console

    from samnn.crossval.start import start_lowdata

    given = {
        "dataset": dataset, "methods": methods, "folds": folds, "device": device, "group": group,
        "hours": hours, "memory_gb": memory_gb, "cpus": cpus, "gpus": gpus, "retries": retries,
    }  # fmt: skip
    start_lowdata(
        {name: value for name, value in given.items() if value is not None},
        sizes=sizes,
        seed=seed,
        out=out,
        resume=resume,
        executor=executor,
        jobs=jobs,
        extra=snakemake,
        dry_run=dry_run,
        console=Console(),
    )


def ensemble(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B …",
            help="nnU-Net results folders (their held-out cases), or folders of predictions; with saved probabilities "
            "(`--npz`, `--save_probabilities`).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the label maps.", show_default=False)],
    weights: Annotated[
        Literal["equal", "classes"],
        typer.Option(
            help="`equal`, or for each class in proportion to the methods' mean Dice in cross-validation: of the other "
            "folds for held-out cases, of --crossval for predictions."
        ),
    ] = "equal",
    crossval: Annotated[
        list[Path] | None,
        typer.Option(
            "--crossval",
            metavar="A B …",
            help="With `--weights classes` and predictions: the methods' results folders, in the same order.",
            show_default=False,
        ),
    ] = None,
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", help="Write the mean probabilities (`.npz`), too.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Average the probabilities of several methods; `samnn compare` takes the result like any method.

    **Examples**

        samnn ensemble RESULTS/nnUNetTrainer__nnUNetPlans__2d RESULTS/nnUNetTrainerENet__nnUNetPlans__2d -o RESULTS/ensemble

        samnn ensemble predictions_a predictions_b -o ensemble --weights classes --crossval RESULTS_A RESULTS_B
    """
    from samnn.ensemble import ensemble as average

    n = average(
        sources,
        out,
        weighting=weights,
        crossval=crossval or [],
        save_probabilities=save_probabilities,
        overwrite=overwrite,
        show_progress=True,
    )
    typer.echo(f"Written: {n} cases in {out}")

"""The `samnn` command: the roof over the rooms. Heavy imports stay inside the commands."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from samnn import __version__
from samnn.crossval.commands import SeveralCommand, ensemble, lowdata
from samnn.crossval.commands import app as crossval_app
from samnn.errors import SamnnError
from samnn.weights.commands import app as weights_app


class Roof(TyperGroup):
    """All of `samnn`: what holds for every command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse empty arguments: as a path they would mean the current folder."""
        if any(arg == "" or (arg.startswith("--") and arg.partition("=")[1:] == ("=", "")) for arg in args):
            ctx.fail("An argument is empty. Is a shell variable not set?")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C and SIGTERM unwind it like an error, so that its child processes end, too."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            number = signal.Signals(stop.args[0] if stop.args else signal.SIGINT)
            typer.echo(f"Stopped by {number.name}.", err=True)
            raise typer.Exit(128 + number) from None


app = typer.Typer(
    name="samnn",
    cls=Roof,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class FoundByFileName(TyperGroup):
    """A command group whose commands are the modules of a room: a new file is a new command."""

    room = "samnn.dataset_conversion"
    function = "convert"

    def list_commands(self, ctx: Any) -> list[str]:
        folder = Path(importlib.import_module(self.room).__path__[0])
        return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{self.room}.{cmd_name}")
        single = typer.Typer(
            add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
        )
        single.command(cmd_name)(getattr(module, self.function))
        return typer.main.get_command(single)


convert_app = typer.Typer(cls=FoundByFileName, no_args_is_help=True, rich_markup_mode="markdown")


@convert_app.callback()
def convert() -> None:
    """Convert a dataset into nnU-Net raw format.

    **Examples**

        samnn convert segthor ~/segthor -d 55

        samnn convert segthor --help
    """


app.add_typer(convert_app, name="convert")
app.add_typer(weights_app, name="weights")
app.add_typer(crossval_app, name="crossval")
app.command(cls=SeveralCommand)(lowdata)
app.command(cls=SeveralCommand)(ensemble)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"samnn {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """SAM-family and classic networks as nnU-Net v2 plugins, and evaluation in millimetres.

    **Examples**

        eval "$(samnn env ~/nnunet)"

        samnn convert segthor ~/segthor -d 55

        samnn evaluate labelsTs predictions -o evaluation
    """


@app.command()
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


@app.command()
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


@app.command()
def evaluate(
    reference: Annotated[
        Path | None,
        typer.Argument(
            metavar="REFERENCE",
            help="Folder of reference label maps. May be left out before an nnU-Net results folder: "
            "the labels of its dataset then.",
            show_default=False,
        ),
    ] = None,
    prediction: Annotated[
        Path | None,
        typer.Argument(
            metavar="PREDICTION",
            help="Folder of predicted label maps or saved probabilities; or an nnU-Net results folder "
            "(`Trainer__Plans__config`), one of its folds, or that fold's `validation` folder.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for `metrics.csv` and `summary.json` (and `reliability.png`); those of an earlier run are "
            "replaced. Finished cases are kept there from the start, so that the same command goes on after a stop. "
            "Without it nothing is written.",
        ),
    ] = None,
    tolerance_mm: Annotated[
        float, typer.Option(help="Tolerance of the normalised surface Dice, in mm.")
    ] = 1.0,
    surface: Annotated[
        Literal["surfel", "voxel"],
        typer.Option(
            help="What a surface is: `surfel` as in DeepMind's surface-distance (areas in mm²), `voxel` as in medpy "
            "(border voxels, each counted once), to compare with older tables."
        ),
    ] = "surfel",
    cross_check: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Compute N random cases again with surface-distance (or medpy, for `--surface voxel`) and print the "
            "largest differences; more than 1e-6 is an error. Needs `pip install 'samnn[check]'`.",
        ),
    ] = 0,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A `dataset.json` with the class names. Default: the one beside or above the folders."
        ),
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Count references without a prediction instead of stopping."),
    ] = False,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Evaluate nnU-Net's saved probabilities (`.npz` of `--save_probabilities` or `--npz`), or 4-D NIfTI with "
            "the classes as last axis, instead of label maps: all metrics of their argmax (or region rule), and "
            "calibration. Assumed where a folder holds `.npz` and no label maps.",
        ),
    ] = False,
    resample: Annotated[
        bool,
        typer.Option(
            "--resample",
            help="Bring label maps on another grid than their reference onto its grid (nearest voxel, background "
            "outside) instead of stopping.",
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cases evaluated at the same time. Default: as many as cores and work, at most 8."
        ),
    ] = None,
) -> None:
    """Compare predicted label maps with reference ones: overlap, and surface distances in mm.

    Label maps are matched by name and must lie on the same grid. A class that only one of the two maps holds
    is counted as missed or false: its Dice is 0, its distances are undefined.

    From saved probabilities also expected calibration error, Brier score and negative log-likelihood.

    Stopped, or with cases that failed? The same command with `-o` goes on with the cases that are not finished, as
    long as files, settings and version are the same.

    **Examples**

        samnn evaluate labelsTs predictions -o evaluation

        samnn evaluate nnUNet_results/Dataset055_SegTHOR/nnUNetTrainerENet__nnUNetPlans__2d

        samnn evaluate labelsTs predictions --surface voxel --cross-check 3

        samnn evaluate labelsTs predictions --probabilities -o calibration

        samnn evaluate labelsTs other_tool --resample
    """
    from rich.console import Console

    from samnn.evaluation3d import evaluate_folder, summarise, write_outputs
    from samnn.evaluation3d.cross_check import cross_check as check_against_package
    from samnn.evaluation3d.cross_check import require_package
    from samnn.evaluation3d.summary import check_target
    from samnn.evaluation3d.terminal import print_summary

    if prediction is None:  # a single folder is the prediction
        reference, prediction = None, reference
    if prediction is None:
        raise typer.BadParameter("give a folder of predictions, after the folder of references")
    if out is not None:
        check_target(out)
    if cross_check:  # a missing package is found before the long work
        require_package(surface)
    evaluation = evaluate_folder(
        reference,
        prediction,
        labels=labels,
        tolerance_mm=tolerance_mm,
        surface=surface,
        allow_missing=allow_missing,
        probabilities=probabilities,
        resample=resample,
        workers=workers,
        show_progress=True,
        keep_in=out,
    )
    if out is not None:  # before anything is printed: that may fail
        write_outputs(evaluation, out)
    print_summary(summarise(evaluation), Console())
    if out is not None:
        plot = f"{out / 'reliability.png'}, " if evaluation.case_set.channels is not None else ""
        typer.echo(f"Written: {plot}{out / 'metrics.csv'} and {out / 'summary.json'}")
    else:
        typer.echo("Nothing was written; -o OUT writes metrics.csv and summary.json.")
    if cross_check:
        typer.echo(check_against_package(evaluation, n_cases=cross_check))


@app.command()
def compare(
    methods: Annotated[
        list[Path],
        typer.Argument(
            metavar="A [B …]",
            help="nnU-Net results folders (`Trainer__Plans__config`, or folds of them), folders of predicted label "
            "maps, or `metrics.csv` files (or their folders) that `samnn evaluate` wrote. One alone: its tables.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for `report.html`, `tables/` and `comparison.json`; those of an earlier run are replaced. "
            "Metrics are kept there, too: what has not changed is not computed again. Without it nothing is written.",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference", "-r", help="Folder of reference label maps. Default: the labels of the dataset."
        ),
    ] = None,
    names: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Names of the methods. Default: those of the folders.")
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            metavar="M,N,…",
            help="What is compared. Holm's correction goes over all of these, classes and pairs.",
        ),
    ] = "dice,nsd,hausdorff95",
    group: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Names the patient in a case's name, such as `(patient\\d+)_`: cases of one patient are resampled "
            "together. Default: every case is a patient.",
        ),
    ] = None,
    tolerance_mm: Annotated[
        float, typer.Option(help="Tolerance of the normalised surface Dice, in mm.")
    ] = 1.0,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A `dataset.json` with the class names. Default: the one beside or above the folders."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cases evaluated at the same time. Default: as many as cores and work, at most 8."
        ),
    ] = None,
) -> None:
    """Say which method is better, and how sure one can be: paired tests, intervals, rankings, a report.

    All methods must have the same cases, held out from their training, and the same reference.

    **Examples**

        samnn compare RESULTS/nnUNetTrainer__nnUNetPlans__2d RESULTS/nnUNetTrainerENet__nnUNetPlans__2d -o comparison

        samnn compare unet/metrics.csv enet/metrics.csv --names UNet,ENet --metrics dice

        samnn compare predictions_a predictions_b -r labelsTs --group '^(patient\\d+)' -o comparison
    """
    from rich.console import Console

    from samnn.evaluation3d.compare import compare as compare_methods
    from samnn.evaluation3d.comparison_files import check_comparison_target, write_comparison
    from samnn.evaluation3d.display import print_comparison

    if out is not None:
        check_comparison_target(out)
    comparison = compare_methods(
        methods,
        reference=reference,
        names=names.split(",") if names is not None else None,
        metrics=[metric.strip() for metric in metrics.split(",")],
        group=group,
        tolerance_mm=tolerance_mm,
        labels=labels,
        workers=workers,
        out=out,
        show_progress=True,
    )
    if out is not None:  # before anything is printed: that may fail
        write_comparison(comparison, out)
    print_comparison(comparison, Console())
    if out is not None:
        typer.echo(f"Written: {out / 'report.html'}, {out / 'tables'} and {out / 'comparison.json'}")
    else:
        typer.echo("Nothing was written; -o OUT writes report.html and the tables.")


@app.command()
def crf(
    probabilities: Annotated[
        Path,
        typer.Argument(
            metavar="PROBABILITIES",
            help="Folder of nnU-Net's saved probabilities (`.npz` of `nnUNetv2_predict --save_probabilities`, or of "
            "`nnUNetv2_train … --npz` in `fold_X/validation`).",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the refined label maps.")],
    weight: Annotated[float, typer.Option(help="Weight of the smoothness term, in logits.")] = 1.0,
    bandwidth_mm: Annotated[
        float, typer.Option(help="Bandwidth θ of the smoothness term, along every axis.")
    ] = 1.0,
    kernel: Annotated[
        Literal["crfseg", "dense"],
        typer.Option(
            help="Which neighbours count: as in the package crfseg (none that shares a coordinate with the voxel), or "
            "all, as a mean, so that `--weight` means the same for any bandwidth and spacing."
        ),
    ] = "crfseg",
    filter_size: Annotated[int, typer.Option(help="Window along each axis, in voxels; odd.")] = 11,
    iterations: Annotated[int, typer.Option(min=0, help="Mean-field iterations.")] = 5,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the images (`case_0000.nii.gz`, …): adds a term that follows their edges. Needs "
            "`--intensity`."
        ),
    ] = None,
    intensity: Annotated[
        float | None,
        typer.Option(
            help="With --images: intensities this far apart belong to one tissue, for CT in HU, such as 50."
        ),
    ] = None,
    appearance_weight: Annotated[float, typer.Option(help="With --images: weight of that term.")] = 1.0,
    appearance_mm: Annotated[
        float, typer.Option(help="With --images: its bandwidth; its window is 5 voxels along each axis.")
    ] = 3.0,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the image or label map of each case, whose grid holds. Default: the label maps that "
            "nnU-Net wrote beside the probabilities."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="The model's `dataset.json`. Default: the one beside or above PROBABILITIES."),
    ] = None,
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", help="Write refined probabilities (`.npz`), too.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier results, also of other settings.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, list the cases, and write nothing.")
    ] = False,
) -> None:
    """Apply a CRF to saved probabilities, without training: neighbours pull each voxel towards their classes.

    Distances are in mm. Stopped? The same command goes on with the cases that are not finished. A case takes about
    five times the memory of its probabilities.

    **Examples**

        samnn crf predictions refined

        samnn crf predictions refined --kernel dense --bandwidth-mm 2 --weight 3 --dry-run

        samnn crf predictions refined --images imagesTs --intensity 50 --save-probabilities
    """
    from rich.console import Console

    from samnn.apply_crf import Settings, apply_crf

    if (images is None) != (intensity is None):
        raise typer.BadParameter("--images and --intensity go together", param_hint="--images")
    settings = Settings(
        kernel=kernel,
        filter_size=filter_size,
        n_iter=iterations,
        smoothness_weight=weight,
        smoothness_theta_mm=bandwidth_mm,
        appearance_weight=appearance_weight if images is not None else None,
        appearance_theta_mm=appearance_mm,
        intensity_theta=intensity,
        save_probabilities=save_probabilities,
    )
    apply_crf(
        probabilities,
        out,
        settings,
        like=like,
        images=images,
        labels=labels,
        overwrite=overwrite,
        dry_run=dry_run,
        console=Console(),
    )


@app.command()
def check(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="An nnU-Net raw dataset (`DatasetXXX_Name`), or its number if nnUNet_raw is set.",
        ),
    ],
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Mend what loses nothing: float labels of whole numbers become integers, headers that differ by "
            "noise take that of the image, numTraining, and names that can mean one thing only. "
            "Files are replaced, each at one stroke; a link is replaced by a file, and what it points to stays.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --fix: say what would be mended, and change nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the report as JSON, too.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cases read at the same time. Default: as many as cores and work, at most 8."
        ),
    ] = None,
) -> None:
    """Say everything that is wrong with an nnU-Net raw dataset, and what to do about it.

    Errors: nnU-Net would stop, or train on wrong data without a word; the exit code is 1 then. Warnings: look at
    these. Every file is read to its last byte, once; without --fix nothing is changed.

    **Examples**

        samnn check 55

        samnn check nnUNet_raw/Dataset055_SegTHOR --fix --dry-run

        samnn check nnUNet_raw/Dataset055_SegTHOR --fix -o report.json
    """
    from rich.console import Console

    from samnn.dataset_conversion import checks

    if dry_run and not fix:
        raise typer.BadParameter("says what --fix would do: add --fix", param_hint="--dry-run")
    if out is not None and out.name == "dataset.json":
        raise typer.BadParameter(
            "would replace the dataset's description: name another file", param_hint="--out"
        )
    report = checks.check(folder, workers=workers, show_progress=True)
    if fix and not dry_run:
        checks.mend(report)
    if out is not None:  # before anything is printed: that may fail
        checks.write_report(report, out)
    checks.print_report(report, Console(), dry_run=dry_run)
    if report.count(checks.Severity.error) or report.not_fixed:
        raise typer.Exit(1)


class Folds(TyperCommand):
    """A command whose `-f` takes several values, as nnU-Net's does: `-f 0 1 2`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values."""
        spread, in_folds = [], False
        for arg in args:
            if arg.startswith("-"):
                in_folds = arg == "-f"
            elif in_folds and spread[-1] != "-f":
                spread.append("-f")
            spread.append(arg)
        return super().parse_args(ctx, spread)


@app.command(cls=Folds)
def predict(
    images: Annotated[
        Path,
        typer.Option(
            "-i", metavar="FOLDER", help="Images, `CASE_0000.nii.gz`, … as in training.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", metavar="FOLDER", help="Folder for the label maps.", show_default=False)
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "-m",
            metavar="FOLDER",
            help="The model's folder (`Trainer__Plans__configuration`), instead of -d and -c.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("-d", metavar="ID", help="Dataset of the model, by number or name.")
    ] = None,
    configuration: Annotated[
        str | None, typer.Option("-c", metavar="CONFIG", help="Its configuration.")
    ] = None,
    trainer: Annotated[str, typer.Option("-tr", metavar="NAME", help="Its trainer.")] = "nnUNetTrainer",
    plans: Annotated[str, typer.Option("-p", metavar="PLANS", help="Its plans.")] = "nnUNetPlans",
    folds: Annotated[
        list[str] | None,
        typer.Option(
            "-f",
            metavar="FOLD …",
            help="Folds whose mean is taken: `-f 0 1 2`. Default: all that are finished.",
        ),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option("-chk", metavar="FILE", help="Checkpoint.")
    ] = "checkpoint_final.pth",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(
            help="`auto`: fp16 on a GPU, as nnU-Net; on a CPU bf16 where it has that natively, else fp32."
        ),
    ] = "auto",
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="Read checkpoints that hold more than tensors and numbers: they can run code."
        ),
    ] = False,
    step_size: Annotated[
        float, typer.Option("-step_size", min=0.01, max=1, help="Step between tiles, as a share of the tile.")
    ] = 0.5,
    disable_tta: Annotated[
        bool,
        typer.Option("--disable_tta", "--disable-tta", help="No mirror images: faster and less accurate."),
    ] = False,
    save_probabilities: Annotated[
        bool,
        typer.Option(
            "--save_probabilities", "--save-probabilities", help="Write `CASE.npz` and `CASE.pkl`, too."
        ),
    ] = False,
    continue_prediction: Annotated[
        bool,
        typer.Option(
            "--continue", "--c", "--continue_prediction", help="Leave out cases whose files are there."
        ),
    ] = False,
    previous: Annotated[
        Path | None,
        typer.Option(
            "-prev_stage_predictions", metavar="FOLDER", help="Label maps of the stage before, for a cascade."
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cuda", "cpu", "mps"],
        typer.Option("-device", "--device", help="`auto`: a GPU if there is one."),
    ] = "auto",
    preprocessing_threads: Annotated[
        int | None,
        typer.Option("-npp", min=0, metavar="N", help="Threads that preprocess. Default: by cores."),
    ] = None,
    export_threads: Annotated[
        int | None, typer.Option("-nps", min=0, metavar="N", help="Threads that export. Default: by cores.")
    ] = None,
    num_parts: Annotated[
        int,
        typer.Option("-num_parts", min=1, help="Commands that share the folder, with different -part_id."),
    ] = 1,
    part_id: Annotated[int, typer.Option("-part_id", min=0, help="Which of these this one is, from 0.")] = 0,
    not_on_device: Annotated[
        bool,
        typer.Option("--not_on_device", "--not-on-device", help="Keep sums in main memory, not on the GPU."),
    ] = False,
    disable_progress_bar: Annotated[
        bool, typer.Option("--disable_progress_bar", "--disable-progress-bar", help="For logs.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say more about tiles.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Read the model, list the cases and the memory they need; predict nothing."
        ),
    ] = False,
) -> None:
    """Predict with any model of nnU-Net's: its own trainers and ours, 2D, 3D and cascades.

    Takes the arguments of `nnUNetv2_predict`, and `-m` as `nnUNetv2_predict_from_modelfolder`. Label maps appear
    whole or not at all; stopped, the same command with `--continue` goes on.

    **Examples**

        samnn predict -i imagesTs -o predictions -d 55 -c 2d -tr nnUNetTrainerSAMed -f 0

        samnn predict -i imagesTs -o predictions -m nnUNetTrainer__nnUNetPlans__3d_fullres -f 0 1 2 --continue

        samnn predict -i imagesTs -o predictions -d 55 -c 3d_fullres --precision fp32 --save-probabilities
    """
    from samnn.inference.command import Asked, predict_folder

    if (model is None) == (dataset is None) or (dataset is None) != (configuration is None):
        raise typer.BadParameter("name the model by -m, or by -d and -c together (and -tr, -p)")
    if part_id >= num_parts:
        raise typer.BadParameter("counts from 0 to -num_parts minus one", param_hint="-part_id")
    asked = Asked(
        images=images, out=out, model=model, dataset=dataset, configuration=configuration, trainer=trainer, plans=plans,
        folds=folds or None, checkpoint=checkpoint, precision=precision, trust=trust, step_size=step_size,
        mirroring=not disable_tta, save_probabilities=save_probabilities, continue_prediction=continue_prediction,
        previous=previous, device=device, preprocessing_threads=preprocessing_threads, export_threads=export_threads,
        part=(part_id, num_parts), on_device=not not_on_device, progress=not disable_progress_bar, verbose=verbose,
        dry_run=dry_run,
    )  # fmt: skip
    predict_folder(asked)


@app.command()
def plan(
    dataset: Annotated[
        list[str], typer.Option("--dataset", "-d", help="Number or name of a dataset; may be repeated.")
    ],
    plans: Annotated[
        str,
        typer.Option(
            "--plans",
            "-p",
            help="The plans to add to: nnU-Net's, its ResEnc presets', or your own. They stay as they are.",
        ),
    ] = "nnUNetPlans",
    name: Annotated[str, typer.Option(help="Name of the plans to write.")] = "samnnPlans",
    gpu_memory_gb: Annotated[
        float, typer.Option("--gpu-memory-gb", min=1, help="Memory of the GPU that will train, in GiB.")
    ] = 8,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD", help="`samed`, `sam2unet`, `enet`, …; may be repeated. Default: all."),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="Such as `sam_vit_l` or `sam2_hiera_t`; once for each method that has one."),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Rank of LoRA. Default: left to the trainer (4, or its `_rank<N>`)."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=16, help="Side of the square to which SAM's patches are resized. Default: from the slices."
        ),
    ] = None,
    preprocess: Annotated[
        bool,
        typer.Option(
            "--preprocess",
            help="First run nnU-Net's fingerprint, planning and 2D preprocessing where missing.",
        ),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Make real training steps with random pictures (on the GPU if there is one) instead of estimates.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Explain the choices and write nothing.")
    ] = False,
) -> None:
    """Add configurations for our networks to existing nnU-Net plans: `2d_samed`, `2d_sam2unet`, `2d_enet`.

    They inherit from `2d`, so nothing is preprocessed again. Patch, image size, batch and micro-batch follow from the
    slices and the memory; a table says what each choice costs.

    **Examples**

        samnn plan -d 55

        samnn plan -d 55 -p nnUNetResEncUNetLPlans --name samnnResEncPlans --gpu-memory-gb 24

        samnn plan -d 55 --only samed --backbone sam_vit_l --rank 8 --measure --dry-run
    """
    from rich.console import Console

    from samnn.planning.command import Request, plan_dataset

    request = Request(
        base=plans,
        name=name,
        gpu_memory_gib=gpu_memory_gb,
        only=tuple(only or ()),
        backbones=tuple(backbone or ()),
        rank=rank,
        image_size=image_size,
        preprocess=preprocess,
        measure=measure,
        dry_run=dry_run,
    )
    for one in dataset:
        plan_dataset(one, request, Console())


@app.command()
def export(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL_FOLDER",
            help="A results folder of nnU-Net, `Trainer__Plans__configuration`; every fold that has ended is exported.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; its zip is `OUT.zip`.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Fold LoRA into the weights for good: a plain network.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT and OUT.zip if they exist.")
    ] = False,
) -> None:
    """Write a trained model with everything it needs, for nnU-Net's own commands.

    They predict from it where samnn is installed (`pip install samnn`), without pretrained weights and without
    nnUNet_extTrainer. The folder has the tree of nnUNet_results: set nnUNet_results to it, or install the zip.

    **Examples**

        samnn export nnUNet_results/Dataset055_SegTHOR/nnUNetTrainerSAMed__nnUNetPlans__2d samed_thorax

        samnn export nnUNet_results/Dataset055_SegTHOR/nnUNetTrainerSAMed__nnUNetPlans__2d samed_thorax --merge
    """
    import shlex

    from samnn.training.export import export as write

    done = write(model, out, merge=merge, overwrite=overwrite)
    folds = " ".join(done.folds)
    typer.echo(f"Wrote {done.model} and {done.archive}. Predict with either:\n")
    options = f"-i IMAGES -o PREDICTIONS -f {folds}"
    typer.echo(f"  nnUNetv2_predict_from_modelfolder -m {shlex.quote(str(done.model))} {options}\n")
    typer.echo(f"  nnUNetv2_install_pretrained_model_from_zip {shlex.quote(str(done.archive))}")
    typer.echo(f"  nnUNetv2_predict -d {done.dataset} -p {done.plans} -c {done.configuration} {options}")


@app.command()
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


def main() -> None:
    """Run the command line; errors a user can mend are printed without a traceback and exit with code 1."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # letters that the terminal does not know are shown as codes
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except SamnnError as error:
        _fail(str(error))
    except OSError as error:
        _fail(": ".join(str(part) for part in (error.strerror or error, error.filename) if part is not None))


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def _fail(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    with suppress(OSError):
        Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), message))
    sys.exit(1)


if __name__ == "__main__":
    main()

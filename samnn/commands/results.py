"""`samnn evaluate`, `samnn compare`: what predictions are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


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

"""Any images and masks, two folders or a table, into nnU-Net raw format."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from samnn.errors import Problems, SamnnError
from samnn.workers import MOST_WORKERS

from . import _layout, _splits
from ._label_names import LabelNames, names_for, read_label_names
from ._pair_dataset import Dataset, each, flat
from ._pair_files import Found, Pair, find_in_folders, find_in_table
from ._pair_report import print_report
from ._pair_work import Options, Plan, inspect


def convert(
    dataset_id: Annotated[
        int, typer.Option("--dataset-id", "-d", help="Number of the new dataset, 1 to 999.")
    ],
    name: Annotated[str, typer.Option(help="Name of the new dataset, after its number.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of images; a sub-folder is a case with a DICOM series.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder of label maps, named like the images.")] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Instead of two folders: a CSV with columns case, image (or image_0000, image_0001, …), mask "
            "(empty: a test case), and patient if wanted."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=VALUE,…|FILE.json",
            help="Names of the values in the masks; `ignore` is nnU-Net's.  [default: label_VALUE]",
        ),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=A+B", help="A region of several labels, by name or value; may be repeated."
        ),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Names of the channels. nnU-Net normalises `CT` as CT."),
    ] = None,
    patient: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Finds the patient in a case's name (the first group, or all); folds keep patients together.",
        ),
    ] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Images without a mask become test cases (imagesTs).")
    ] = False,
    resample: Annotated[
        bool,
        typer.Option(
            "--resample",
            help="Resample masks on other grids (nearest neighbour), tilted or uneven DICOM series (linear).",
        ),
    ] = False,
    series: Annotated[
        list[str] | None,
        typer.Option(
            metavar="UID", help="Take this DICOM series (UID or description) where it is; may be repeated."
        ),
    ] = None,
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Hard-link files that fit as they are. Programs that change the source then change the dataset.",
        ),
    ] = False,
    skip_refused: Annotated[
        bool, typer.Option("--skip-refused", help="Write the dataset without the cases that are refused.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of raw datasets.  [default: $nnUNet_raw]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the dataset if it exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read headers and masks, say what would be done, write nothing.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cases at the same time, each in memory.  [default: as many as cores, at most 8]"
        ),
    ] = None,
) -> None:
    """Convert your own images and masks: NIfTI, NRRD, MetaImage, MINC; DICOM series as images.

    Image and mask meet by their places in the patient. A mask with its axes in another order is turned exactly; one
    on another grid is refused with the difference, or resampled with `--resample`. Files that fit are copied byte by
    byte. A run that was stopped goes on where it was; the source is never changed. Of several DICOM series in a
    folder the one with the most slices is taken. The exit code is 1 if any case was refused.

    **Examples**

        samnn convert pairs --images ~/ct --masks ~/seg -d 12 --name Liver --channels CT --labels liver=1,tumour=2

        samnn convert pairs --table cases.csv -d 13 --name Brain --region whole=1+2+4 --dry-run

        samnn convert pairs --images ~/dicom --masks ~/seg -d 14 --name Lung --patient "^(P[0-9]+)_"
    """
    found = _find(images, masks, table, unlabelled)
    target = _target(found, images or table, dataset_id, name, output, overwrite)
    pairs = _with_patients(found.pairs, patient)
    channel_names = [part.strip() for part in channels.split(",")] if channels else None
    named = read_label_names(labels, region or []) if labels else None

    options = Options(resample, tuple(series or []), len(channel_names) if channel_names else None)
    refused: dict[str, list[str]] = {}
    workers = workers or min(os.cpu_count() or 1, MOST_WORKERS)
    plans = list(each("Checking", inspect, pairs, options, workers=workers, refused=refused))
    plans.sort(key=lambda plan: plan.name)
    if not plans:
        raise Problems(f"Nothing was converted, all {len(refused)} cases are refused:", flat(refused))
    names = named or names_for({value for plan in plans for value in plan.values}, region or [])
    plans = _fitting(plans, names, channel_names, refused)
    for plan in plans:
        for source in plan.sources:
            _layout.refuse_overlap(source, target)
    splits = None
    if any(plan.pair.patient for plan in plans):
        splits = _splits.grouped_splits(
            {plan.name: plan.pair.patient for plan in plans if plan.pair.mask is not None}
        )
        _splits.refuse_other_folds(target, splits, overwrite=overwrite)
    if refused and not (dry_run or skip_refused):
        raise Problems(
            f"Nothing was converted, {len(refused)} of {len(pairs)} cases refused. Mend them, or add --skip-refused:",
            flat(refused),
        )
    remarks = [f"Left out, no images: {', '.join(found.left_out)}"] if found.left_out else []
    if channel_names is None:
        channel_names = [f"channel_{number}" for number in range(len(plans[0].channels))]
        remarks.append(
            f"Channels are named {', '.join(channel_names)}; for CT say --channels CT: nnU-Net scales by it"
        )
    entries, outcome = {}, f"{len(plans)} cases checked, nothing written"
    if not dry_run:
        dataset = Dataset(plans, names, channel_names, splits, refused, link=link)
        entries = dataset.write(target, workers=workers, overwrite=overwrite, skip_refused=skip_refused)
        outcome = f"{len(entries)} cases written to {target}"
    # printed last: a table that nobody takes must not cost the dataset
    print_report(plans, entries, names, splits, refused, [*remarks, outcome])
    if refused:
        raise typer.Exit(1)


def _find(images: Path | None, masks: Path | None, table: Path | None, unlabelled: bool) -> Found:
    if table is not None and images is None and masks is None and not unlabelled:
        return find_in_table(table)
    if table is None and images is not None and masks is not None:
        return find_in_folders(images, masks, unlabelled=unlabelled)
    raise typer.BadParameter("give --images and --masks, or --table alone")


def _target(
    found: Found, source: Path, dataset_id: int, name: str, output: Path | None, overwrite: bool
) -> Path:
    """Where the dataset goes; no source may lie in it, links followed."""
    root = _layout.raw_root(output)
    target = _layout.dataset_folder(root, dataset_id, name, source=source, overwrite=overwrite)
    for pair in found.pairs:
        for path in pair.sources:
            _layout.refuse_overlap(path, target)
    return target


def _with_patients(pairs: Sequence[Pair], pattern: str | None) -> list[Pair]:
    """Enter the patient that the pattern finds in each case's name; those of a table stay."""
    if pattern is None:
        lacking = [pair.called for pair in pairs if pair.patient is None and pair.mask is not None]
        if len(lacking) < sum(pair.mask is not None for pair in pairs) and lacking:
            raise SamnnError(f"The table names no patient for {', '.join(lacking)}. Name all or none.")
        return list(pairs)
    if any(pair.patient for pair in pairs):
        raise SamnnError("--patient: the table has a column for patients already. Use one of them.")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SamnnError(f"--patient {pattern}: is not a regular expression ({error}).") from error
    found = {pair.called: _splits.patient_of(pair.called, compiled) for pair in pairs}
    if without := [called for called, patient in found.items() if not patient]:
        raise Problems(f"--patient {pattern}: finds no patient in", without)
    return [Pair(pair.name, pair.called, pair.images, pair.mask, found[pair.called]) for pair in pairs]


def _fitting(
    plans: Sequence[Plan], names: LabelNames, channels: list[str] | None, refused: dict[str, list[str]]
) -> list[Plan]:
    """The plans that fit the labels and channels of the dataset; the others go to `refused`."""
    fitting = []
    expected = len(channels or plans[0].channels)
    for plan in plans:
        problems = []
        if unknown := names.unknown(plan.values):
            problems.append(f"{plan.pair.mask}: holds value(s) {unknown}, which --labels does not name.")
        if len(plan.channels) != expected:
            where = "--channels names" if channels else f"{plans[0].pair.called} has"
            problems.append(
                f"{plan.pair.images[0]}: has {len(plan.channels)} channel(s); {where} {expected}."
            )
        if problems:
            refused[plan.name] = problems
        else:
            fitting.append(plan)
    if not any(plan.pair.mask is not None for plan in fitting):
        raise Problems("Nothing was converted, no case with a mask is left:", flat(refused))
    return fitting

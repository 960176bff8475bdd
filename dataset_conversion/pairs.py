"""Any images and masks, two folders or a table, into nnU-Net raw format."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from samnn.errors import SamnnError

from ._conversion import convert as convert_cases
from ._conversion import new_target, patients_by_name
from ._label_names import names_for, read_label_names
from ._options import DatasetId, DryRun, Job, Labels, Name, Output, Overwrite, Patient, SkipRefused, Workers
from ._pair_files import Found, Pair, find_in_folders, find_in_table
from ._pair_work import Options, inspect


def convert(
    dataset_id: DatasetId,
    name: Name,
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
    labels: Labels = None,
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
    patient: Patient = None,
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
    skip_refused: SkipRefused = False,
    output: Output = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    workers: Workers = None,
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
    job = Job(dataset_id, name, output, overwrite, dry_run, skip_refused, workers)
    sources = [path for pair in found.pairs for path in pair.sources]
    target = new_target(job, images or table, sources)
    pairs = _with_patients(found.pairs, patient)
    channel_names = [part.strip() for part in channels.split(",")] if channels else None
    named = read_label_names(labels, region or []) if labels else None

    convert_cases(
        pairs,
        inspect,
        Options(resample, tuple(series or []), len(channel_names) if channel_names else None),
        target=target,
        job=job,
        conversion={"converter": "pairs"},
        names=partial(names_for, regions=region or []) if named is None else lambda _: named,
        channels=channel_names,
        remarks=[f"Left out, no images: {', '.join(found.left_out)}"] if found.left_out else [],
        link=link,
    )


def _find(images: Path | None, masks: Path | None, table: Path | None, unlabelled: bool) -> Found:
    if table is not None and images is None and masks is None and not unlabelled:
        return find_in_table(table)
    if table is None and images is not None and masks is not None:
        return find_in_folders(images, masks, unlabelled=unlabelled)
    raise typer.BadParameter("give --images and --masks, or --table alone")


def _with_patients(pairs: Sequence[Pair], pattern: str | None) -> list[Pair]:
    """Enter the patient that the pattern finds in each case's name; those of a table stay."""
    if pattern is None:
        lacking = [pair.called for pair in pairs if pair.patient is None and pair.mask is not None]
        if len(lacking) < sum(pair.mask is not None for pair in pairs) and lacking:
            raise SamnnError(f"The table names no patient for {', '.join(lacking)}. Name all or none.")
        return list(pairs)
    if any(pair.patient for pair in pairs):
        raise SamnnError("--patient: the table has a column for patients already. Use one of them.")
    patients = patients_by_name([pair.called for pair in pairs], pattern)
    return [Pair(pair.name, pair.called, pair.images, pair.mask, patients[pair.called]) for pair in pairs]

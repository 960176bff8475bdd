"""2D images and index masks, two folders of pictures, into nnU-Net raw format."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from samnn.errors import Problems, SamnnError

from . import _pixels
from ._cases import Case, inspect, refuse_unusable_names
from ._conversion import convert as convert_cases
from ._conversion import new_target, patients_by_name
from ._label_names import LabelNames, names_for, read_label_names
from ._options import DatasetId, DryRun, Job, Labels, Name, Output, Overwrite, Patient, SkipRefused, Workers

OCT_FOLDERS = ("imagesgreyscale", "masks14")
OCT_LABELS = [  # in the order of their values, from 1
    "epiretinal_membrane",
    "neurosensory_retina",
    "intraretinal_fluid",
    "subretinal_fluid",
    "subretinal_hyperreflective_material",
    "retinal_pigment_epithelium",
    "pigment_epithelial_detachment",
    "posterior_hyaloid_membrane",
    "choroid_border",
    "imaging_artifacts",
    "fibrosis",
    "vitreous_body",
    "image_padding",
]


def convert(
    dataset_id: DatasetId,
    name: Name,
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SOURCE]", help="Folder of the retinal OCT set, instead of --images and --masks."
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of pictures, grey or coloured.")] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder of masks, named like the pictures.")] = None,
    labels: Labels = None,
    patient: Patient = None,
    skip_refused: SkipRefused = False,
    output: Output = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    workers: Workers = None,
) -> None:
    """Convert 2D pictures and their index masks: PNG, or TIFF, BMP, JPEG (images only).

    - **Source:** your own pictures, or the retinal OCT set with the folders `imagesgreyscale` and `masks14`
    - **Licence:** that of your pictures; the OCT set comes without a licence file, ask those you have it from
    - **Citation:** that of your pictures
    - **Layout:** `IMAGES/*.png` and `MASKS/*.png` of the same names; of the OCT set `SOURCE/imagesgreyscale/*.png` and
      `SOURCE/masks14/*.png`, 13 classes

    The class of a pixel is a mask's grey value, the index in its palette, or its first channel. The dataset has PNG,
    read by nnU-Net's NaturalImage2DIO: a size in mm is nowhere, one pixel counts as one mm. PNG images that fit are
    copied byte by byte. If any image is in colour, all have three channels. Without `--labels`, the values found are
    named `label_VALUE` (retinal OCT: by its own table).

    **Examples**

        samnn convert png_pairs ~/oct -d 21 --name OCT

        samnn convert png_pairs --images ~/fundus --masks ~/discs -d 22 --name Discs --labels disc=128,cup=255

        samnn convert png_pairs --images a --masks b -d 23 --name Scans --patient "^P[0-9]+" --dry-run
    """
    if (source is None) == (images is None and masks is None) or (images is None) != (masks is None):
        raise typer.BadParameter("give SOURCE alone, or --images and --masks")
    if images is not None and images.resolve() == masks.resolve():
        raise typer.BadParameter("--images and --masks are the same folder")
    if source is not None:
        images, masks = (source / folder for folder in OCT_FOLDERS)
    named = read_label_names(labels) if labels else None
    if named is None and source is not None:
        named = LabelNames({label: value for value, label in enumerate(OCT_LABELS, 1)})
    job = Job(dataset_id, name, output, overwrite, dry_run, skip_refused, workers)
    cases = find_pictures(images, masks, patient)
    target = new_target(job, images, [masks, *(path for case in cases for path in case.files)])
    convert_cases(
        cases,
        inspect,
        None,
        dry_run,
        target=target,
        job=job,
        conversion={"converter": "png_pairs", "source": str(images.resolve())},
        names=names_for if named is None else lambda _: named,
        file_ending=".png",
    )


def find_pictures(images: Path, masks: Path, patient: str | None) -> list[Case]:
    """Match pictures and masks by their names without ending.

    Raises:
        SamnnError: a folder is missing or empty.
        Problems: names that are there twice, or without their counterpart.
    """
    problems: list[str] = []
    pictures, maps = (_by_stem(folder, problems) for folder in (images, masks))
    problems += [
        f"{path}: has no mask {masks / stem}.*" for stem, path in pictures.items() if stem not in maps
    ]
    problems += [
        f"{path}: has no image {images / stem}.*" for stem, path in maps.items() if stem not in pictures
    ]
    if problems:
        raise Problems(f"{images} and {masks}: nothing was converted, {len(problems)} problem(s):", problems)
    patients = patients_by_name(list(pictures), patient)
    cases = [
        Case(
            called=stem,
            files=(path, maps[stem]),
            read_images=partial(_pixels.read_picture, path),
            read_labels=partial(_pixels.read_mask, maps[stem]),
            patient=patients[stem],
            picture=path,
        )
        for stem, path in pictures.items()
    ]
    refuse_unusable_names(cases, images)
    return cases


def _by_stem(folder: Path, problems: list[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise SamnnError(f"{folder}: is not a folder. Name the one that holds the pictures.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in _pixels.ENDINGS:
            continue
        if path.stem in found:
            problems.append(
                f"{path}: {found[path.stem].name} has the same name without its ending. Keep one."
            )
        found[path.stem] = path
    return found

"""Kaggle's "Finding and Measuring Lungs in CT Data", its slices or its volumes, into nnU-Net raw format."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from samnn.errors import Problems, SamnnError
from samnn.io import Volume, read_labels, read_volume

from . import _pair_work, _pixels
from ._cases import Case, inspect, refuse_unusable_names
from ._conversion import convert as convert_cases
from ._conversion import new_target
from ._label_names import LabelNames
from ._options import DatasetId, DryRun, Job, Name, Output, Overwrite, SkipRefused, Workers
from ._pair_files import Pair
from ._spacing import read_spacing

PATIENT = re.compile(r"(ID_\d+)_Z_\d+")
ENDINGS = (".tif", ".tiff", ".nii.gz", ".nii")


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The folder, with 2d_images inside.")],
    dataset_id: DatasetId,
    name: Name = "LungCT",
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Convert the few volumes of 3d_images, and not the slices.")
    ] = False,
    spacing: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y|FILE.json",
            help="Pixel size of TIFF slices in mm, or a file: name → [X, Y].  [default: 1 mm, as TIFF does not tell]",
        ),
    ] = None,
    skip_refused: SkipRefused = False,
    output: Output = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    workers: Workers = None,
) -> None:
    """Convert lung CT: slices with lung masks (TIFF or NIfTI), or the volumes they were taken from (NIfTI).

    - **Source:** K. Scott Mader, Finding and Measuring Lungs in CT Data,
      https://www.kaggle.com/datasets/kmader/finding-lungs-in-ct-data
    - **Licence:** named on that page; read it before passing the data on
    - **Citation:** that page
    - **Layout:** `SOURCE/2d_images/ID_0000_Z_0142.tif` and `SOURCE/2d_masks/` of the same names;
      `SOURCE/3d_images/IMG_0002.nii.gz` and `MASK_0002.nii.gz` there

    Slices become two-dimensional NIfTI, which nnU-Net reads with their spacing and whose Hounsfield units need no
    8 bits. The one value of the masks (255) becomes 1. Slices of one `ID` stay in one fold.

    **Examples**

        samnn convert lung_ct ~/finding-lungs -d 41 --dry-run

        samnn convert lung_ct ~/finding-lungs -d 42 --name LungVolumes --volumes
    """
    if volumes and spacing:
        raise typer.BadParameter("--spacing is for slices; volumes tell theirs")
    job = Job(dataset_id, name, output, overwrite, dry_run, skip_refused, workers)
    if volumes:
        cases, look, arguments = _volumes(source / "3d_images"), _pair_work.inspect, (_pair_work.Options(),)
        files = [path for pair in cases for path in pair.sources]
    else:
        cases, look, arguments = _slices(source, spacing), inspect, (1, dry_run)
        files = [path for case in cases for path in case.files]
    remark = "A pixel of a TIFF counts as 1 mm: distances are in pixels. --spacing says otherwise"
    is_tiff = any(path.name.endswith(ENDINGS[:2]) for path in files)
    convert_cases(
        cases,
        look,
        *arguments,
        target=new_target(job, source, files),
        job=job,
        conversion={"converter": "lung_ct", "source": str(source.resolve())},
        names=_one_class,
        channels=["CT"],
        remarks=[remark] if is_tiff and spacing is None else [],
    )


def _one_class(values: set[int]) -> LabelNames:
    found = sorted(values - {0})
    if len(found) != 1:
        raise SamnnError(
            f"The masks hold the values {sorted(values)}; expected 0 and one more for the lungs."
        )
    return LabelNames({"lung": found[0]})


def _slices(source: Path, spacing: str | None) -> list[Case]:
    spacing_of = read_spacing(spacing or "1,1", 2)
    images, masks = (_by_stem(source / folder) for folder in ("2d_images", "2d_masks"))
    if lacking := images.keys() ^ masks.keys():
        raise Problems(
            f"{source}: nothing was converted, slices in one of 2d_images and 2d_masks only:", sorted(lacking)
        )
    cases = []
    for stem, image in images.items():
        spacing_mm, match = spacing_of(stem), PATIENT.fullmatch(stem)
        cases.append(
            Case(
                called=stem,
                files=(image, masks[stem]),
                read_images=partial(_read_image, image, spacing_mm),
                read_labels=partial(_read_mask, masks[stem], spacing_mm),
                patient=match[1] if match else None,
                settings={"spacing_mm": spacing_mm},
            )
        )
    refuse_unusable_names(cases, source / "2d_images")
    return cases


def _volumes(folder: Path) -> list[Pair]:
    images, masks = (
        {path.name.removeprefix(kind): path for path in sorted(folder.glob(f"{kind}*.nii.gz"))}
        for kind in ("IMG_", "MASK_")
    )
    if not images or images.keys() != masks.keys():
        lacking = ", ".join(sorted(images.keys() ^ masks.keys()))
        raise SamnnError(
            f"{folder}: expected IMG_*.nii.gz and MASK_*.nii.gz in pairs; not in pairs: {lacking or 'none is there'}."
        )
    stems = {number: number.removesuffix(".nii.gz") for number in images}
    return [Pair(f"lung_{stems[n]}", f"IMG_{stems[n]}", (images[n],), masks[n]) for n in images]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    if not folder.is_dir():
        raise SamnnError(f"{folder}: is not a folder. Name the one that holds 2d_images and 2d_masks.")
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        if ending is None or path.name.startswith("."):
            continue
        stem = path.name.removesuffix(ending)
        if stem in found:
            raise SamnnError(f"{path}: {found[stem].name} has the same name without its ending. Keep one.")
        found[stem] = path
    return found


def _read_image(path: Path, spacing_mm: tuple[float, float]) -> list[Volume]:
    if path.name.endswith(ENDINGS[2:]):
        return [_flat(path, read_volume(path))]
    channels = _pixels.read_picture(path, spacing_mm)
    if len(channels) > 1:
        raise SamnnError(f"{path}: is in colour; expected a slice of CT.")
    return channels


def _read_mask(path: Path, spacing_mm: tuple[float, float]) -> Volume:
    if path.name.endswith(ENDINGS[2:]):
        return _flat(path, read_labels(path))
    return _pixels.read_mask(path, spacing_mm)


def _flat(path: Path, volume: Volume) -> Volume:
    """A NIfTI slice as two dimensions: spacing kept, its place in the patient left."""
    if np.prod(volume.voxels.shape[2:]) != 1:
        raise SamnnError(f"{path}: has shape {volume.voxels.shape}; expected one slice. Are these --volumes?")
    return _pixels.on_plane(volume.voxels.reshape(volume.voxels.shape[:2]), volume.grid.spacing_mm[:2])

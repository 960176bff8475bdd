"""PNG slices as AI4MI's course makes them, or its two-circles toy set, into nnU-Net raw format."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from samnn.errors import Problems, SamnnError
from samnn.io import Volume

from . import _pixels, _two_circles
from ._arrays import missing, stack
from ._cases import Case, inspect, refuse_unusable_names
from ._conversion import convert as convert_cases
from ._conversion import new_target
from ._label_names import LabelNames, read_label_names
from ._options import DatasetId, DryRun, Job, Labels, Name, Output, Overwrite, SkipRefused, Workers
from ._spacing import read_spacing
from ._splits import Splits

PARTS = ("train", "val", "test")
SLICE = re.compile(r"(.+)_(\d+)")
ORGANS = {"esophagus": 63, "heart": 126, "trachea": 189, "aorta": 252}
CIRCLE = {"foreground": 255}


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="The folder, with train/, val/ and test/ inside.")
    ],
    dataset_id: DatasetId,
    name: Name,
    spacing: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,Z|FILE.json",
            help="Voxel size in mm of the slices as they are: rows, columns, and from slice to slice. Needed for "
            "volumes. The file: patient → [X, Y, Z].",
        ),
    ] = None,
    labels: Labels = None,
    generate: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="First make the two-circles set in SOURCE: so many training images, a tenth to validate.",
        ),
    ] = None,
    skip_refused: SkipRefused = False,
    output: Output = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    workers: Workers = None,
) -> None:
    """Convert PNG slices of volumes, as the AI4MI course makes them of SegTHOR; also its toy set of two circles.

    - **Source:** `slice_segthor.py` and `gen_two_circles.py` of https://github.com/HKervadec/ai4mi_project
    - **Licence:** of the code MIT; of slices of SegTHOR the challenge's terms
    - **Citation:** SegTHOR: Lambert, Petitjean, Dubray, Ruan, IPTA 2020, arXiv:1912.05950
    - **Layout:** `SOURCE/{train,val,test}/{img,gt}/Patient_XX_ZZZZ.png` (volumes) or `…/00000.png` (pictures)

    Slices are stacked by their number; a missing one is an error. Rows become x, as they were before slicing. Mask
    values 0, 63, 126, 189, 252 are SegTHOR's organs, 0 and 255 one class; others need `--labels`. `train` and `val`
    become the one fold of `splits_final.json`; a test case whose masks are empty has no labels.

    `spacing.pkl` is never opened: a pickle can run code. Write its content to a JSON file, and mind that it tells the
    size before the slices were resized: of slices of 256 pixels made from 512, X and Y are twice as large.

    **Examples**

        samnn convert slices data/SEGTHOR_CLEAN -d 31 --name Slices --spacing 1.95,1.95,2.5

        samnn convert slices data/SEGTHOR_CLEAN -d 31 --name Slices --spacing spacing.json --dry-run

        samnn convert slices data/TOY2 -d 32 --name TwoCircles --generate 1000
    """
    named = read_label_names(labels) if labels else None
    job = Job(dataset_id, name, output, overwrite, dry_run, skip_refused, workers)
    if generate is not None:
        new_target(job, source, [])
        if dry_run:
            typer.echo(f"{generate} training images would be made in {source}, nothing written")
            return
        if source.exists():
            raise SamnnError(
                f"{source}: exists already. Leave out --generate to convert it, or name another."
            )
        _two_circles.generate(source, generate)
    found = {part: _find_part(source / part) for part in PARTS if (source / part).is_dir()}
    if "train" not in found:
        raise SamnnError(
            f"{source}: has no folder train. Expected train/img and train/gt, and val, test if wanted."
        )
    is_volumes = {SLICE.fullmatch(path.stem) is not None for images, _ in found.values() for path in images}
    if len(is_volumes) > 1:
        raise SamnnError(
            f"{source}: has names of slices (Patient_01_0000.png) and of pictures (00000.png). Part them."
        )
    if is_volumes == {True}:
        if spacing is None:
            raise SamnnError(
                f"{source}: PNG slices do not tell their spacing. Add --spacing X,Y,Z or FILE.json."
            )
        cases = _volumes(found, spacing)
    else:
        cases = _pictures(found)
    refuse_unusable_names([case for _, case in cases], source)
    target = new_target(job, source, [path for _, case in cases for path in case.files])
    convert_cases(
        [case for _, case in cases],
        inspect,
        1,
        dry_run,
        target=target,
        job=job,
        conversion={"converter": "slices", "source": str(source.resolve())},
        names=_names_for if named is None else lambda _: named,
        channels=["grey"],
        splits=_fixed_split(cases),
        file_ending=".nii.gz" if is_volumes == {True} else ".png",
    )


def _names_for(values: set[int]) -> LabelNames:
    """The classes that AI4MI's scripts write with these values.

    Raises:
        SamnnError: they write no such values.
    """
    for table in (ORGANS, CIRCLE):
        if values <= {0, *table.values()} and values - {0}:
            return LabelNames(table)
    raise SamnnError(
        f"The masks hold the values {sorted(values)}; AI4MI's scripts write 0, 63, 126, 189, 252, or 0 and 255. Name "
        "them with --labels."
    )


def _find_part(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images and masks of a part, matched by name; a test part may be without masks.

    Raises:
        Problems: images without masks, or masks without images.
    """
    images, masks = (sorted((folder / kind).glob("[!.]*.png")) for kind in ("img", "gt"))
    if folder.name == "test" and not masks:
        return images, []
    lacking = {path.name for path in images} ^ {path.name for path in masks}
    problems = [f"{folder / 'img' / name} or {folder / 'gt' / name}: is missing." for name in sorted(lacking)]
    if not images:
        problems.append(f"{folder / 'img'}: holds no PNG.")
    if problems:
        raise Problems(f"{folder}: nothing was converted, {len(problems)} problem(s):", problems)
    return images, masks


Found = Mapping[str, tuple[Sequence[Path], Sequence[Path]]]


def _volumes(found: Found, spacing: str) -> list[tuple[str, Case]]:
    """A case of each patient's slices, with the part it is in."""
    spacing_of = read_spacing(spacing, 3)
    cases, problems = [], []
    for part, (images, masks) in found.items():
        by_patient = [_by_patient(images), _by_patient(masks)]
        for patient, slices in by_patient[0].items():
            if lacking := missing(list(slices)):
                problems.append(
                    f"{images[0].parent}: {patient} lacks slice(s) {', '.join(map(str, lacking))}."
                )
                continue
            files = [slices[number] for number in sorted(slices)]
            mask_files = [by_patient[1][patient][number] for number in sorted(slices)] if masks else []
            spacing_mm = spacing_of(patient)
            is_labelled = part != "test" or _any_labelled(mask_files)
            read_labels = partial(_stack, _pixels.read_mask, mask_files, spacing_mm)
            cases.append(
                (
                    part,
                    Case(
                        called=patient,
                        files=(*files, *mask_files),
                        read_images=partial(_image, files, spacing_mm),
                        read_labels=read_labels if is_labelled else None,
                        is_test=part == "test",
                        settings={"spacing_mm": spacing_mm},
                    ),
                )
            )
    if problems:
        raise Problems(f"Nothing was converted, {len(problems)} problem(s):", problems)
    return cases


def _pictures(found: Found) -> list[tuple[str, Case]]:
    """A case of each picture; the same number in two parts is two cases."""
    cases = []
    for part, (images, masks) in found.items():
        for image, mask in zip(images, masks or [None] * len(images), strict=True):
            is_labelled = mask is not None and (part != "test" or _any_labelled([mask]))
            cases.append(
                (
                    part,
                    Case(
                        called=f"{part}_{image.stem}",
                        files=(image,) if mask is None else (image, mask),
                        read_images=partial(_pixels.read_picture, image),
                        read_labels=partial(_pixels.read_mask, mask) if is_labelled else None,
                        is_test=part == "test",
                        picture=image,
                    ),
                )
            )
    return cases


def _by_patient(files: Sequence[Path]) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in files:
        match = SLICE.fullmatch(path.stem)
        slices, number = found[match[1]], int(match[2])
        if number in slices:
            raise SamnnError(f"{path}: {slices[number].name} is slice {number} of {match[1]}, too. Keep one.")
        slices[number] = path
    return found


def _any_labelled(masks: Sequence[Path]) -> bool:
    """Whether any mask holds something; the course's script writes empty ones for test patients."""
    return any(_pixels.read_mask(path).voxels.any() for path in masks)


def _image(files: Sequence[Path], spacing_mm: tuple[float, ...]) -> list[Volume]:
    return [_stack(_grey, files, spacing_mm)]


def _grey(path: Path) -> Volume:
    channels = _pixels.read_picture(path)
    if len(channels) > 1:
        raise SamnnError(f"{path}: is in colour; expected grey slices.")
    return channels[0]


def _stack(read: partial, files: Sequence[Path], spacing_mm: tuple[float, ...]) -> Volume:
    slices: list[np.ndarray] = [read(path).voxels.T for path in files]  # rows are x
    return stack(slices, files, spacing_mm)


def _fixed_split(cases: Sequence[tuple[str, Case]]) -> Splits | None:
    """The one fold that the folders make, if there is a part for validation."""
    by_part = {part: [case.name for p, case in cases if p == part] for part in PARTS}
    return [{"train": by_part["train"], "val": by_part["val"]}] if by_part["val"] else None

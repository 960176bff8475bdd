"""CVAT for images 1.1, polygons and masks that may overlap, into nnU-Net raw format."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from samnn.errors import Problems, SamnnError
from samnn.io import Volume

from . import _cvat_file, _pixels
from ._cases import Case, inspect, refuse_unusable_names
from ._conversion import convert as convert_cases
from ._conversion import new_target, patients_by_name
from ._label_names import LabelNames
from ._options import DatasetId, DryRun, Job, Name, Output, Overwrite, Patient, SkipRefused, Workers
from ._writing import each, flat

STEM, SIDE, PATIENT = "filestem", "laterality", "patient_id"  # columns of the table
MOST_VALUES = 254  # of a label map of 8 bits, beside the background and nnU-Net's own marks


def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="The XML file, or the folder that holds annotations.xml."),
    ],
    dataset_id: DatasetId,
    name: Name,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images.  [default: images, beside the XML file]")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="CSV with the column filestem (an image's name without ending), and laterality, patient_id if wanted."
        ),
    ] = None,
    flip: Annotated[
        str | None,
        typer.Option(
            metavar="SIDE", help="Mirror images, and their masks, whose laterality is this, such as L."
        ),
    ] = None,
    patient: Patient = None,
    skip_refused: SkipRefused = False,
    output: Output = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    workers: Workers = None,
) -> None:
    """Convert images annotated in CVAT: polygons and masks, several of a class, classes that overlap.

    - **Source:** «CVAT for images 1.1», exported from https://www.cvat.ai; made for paediatric wrist radiographs, whose
      images and table are GRAZPEDWRI-DX, https://doi.org/10.6084/m9.figshare.14825193
    - **Licence:** that of your images; GRAZPEDWRI-DX is CC BY 4.0
    - **Citation:** Nagy, Janisch, Hržić, Sorantin, Tschauner: A pediatric wrist trauma X-ray dataset (GRAZPEDWRI-DX)
      for machine learning. Scientific Data 9, 222 (2022)
    - **Layout:** `SOURCE/annotations.xml` and `SOURCE/images/*.png`

    The shapes of a label on one image are one area; a pixel belongs to a polygon if its centre does. Where labels
    overlap, each combination gets a value, and labels that take part become nnU-Net regions. What regions cannot
    express is refused with the number of pixels. Images without a shape are left out; boxes, lines, points and tags are
    ignored, all of it is said. The dataset has PNG; one pixel counts as one mm.

    **Examples**

        samnn convert cvat ~/wrist -d 71 --name Wrist --table dataset.csv --flip L

        samnn convert cvat export/annotations.xml --images ~/radiographs -d 72 --name Hands --dry-run
    """
    if flip is not None and table is None:
        raise typer.BadParameter("--flip needs --table, which tells the laterality")
    xml = source / "annotations.xml" if source.is_dir() else source
    images = images or xml.parent / "images"
    labels, annotated = _cvat_file.read_annotations(xml)
    job = Job(dataset_id, name, output, overwrite, dry_run, skip_refused, workers)
    rows = _read_table(table) if table else {}
    with_shapes = [image for image in annotated if image.shapes]
    used = [label for label in labels if any(s.label == label for image in annotated for s in image.shapes)]
    combinations = _combinations(with_shapes, used, xml, job.n_workers)
    cases = _cases(with_shapes, images, xml, used, sorted(combinations), rows, flip, patient)
    target = new_target(job, xml.parent, [path for case in cases for path in case.files])
    names = _label_names(used, sorted(combinations), combinations, xml)
    convert_cases(
        cases,
        inspect,
        None,
        dry_run,
        target=target,
        job=job,
        conversion={"converter": "cvat", "source": str(xml.resolve())},
        names=lambda _: names,
        remarks=_remarks(annotated, labels, used, combinations),
        file_ending=".png",
    )


def _combinations(
    images: Sequence[_cvat_file.Annotated], labels: Sequence[str], xml: Path, workers: int
) -> Counter[int]:
    """How many pixels each combination of labels has, as bits, background left out."""
    counts: Counter[int] = Counter()
    refused: dict[str, list[str]] = {}
    for found in each("Painting", _count, images, labels, workers=workers, refused=refused):
        counts.update(found)
    if refused:
        raise Problems(f"{xml}: nothing was converted:", flat(refused))
    if not counts:
        raise SamnnError(f"{xml}: no shape covers the centre of a pixel. Are they in pixels of these images?")
    if len(counts) > MOST_VALUES:
        shared = {bits: n for bits, n in counts.items() if bits.bit_count() > 1}
        raise SamnnError(
            f"{xml}: {sum(shared.values())} pixels lie in several labels, in {len(shared)} combinations; with the labels "
            f"alone that makes more than {MOST_VALUES} values. Draw fewer labels over one another."
        )
    return counts


def _count(image: _cvat_file.Annotated, labels: Sequence[str]) -> dict[int, int]:
    bits = image.paint(labels)
    values, pixels = np.unique(bits[bits > 0], return_counts=True)
    return dict(zip(values.tolist(), pixels.tolist(), strict=True))


def _label_names(
    labels: Sequence[str], combinations: Sequence[int], counts: Mapping[int, int], xml: Path
) -> LabelNames:
    """A value for each combination, in order from 1; regions of the labels that take part in several.

    Raises:
        SamnnError: nnU-Net cannot paint such regions; with the number of pixels that lie in several labels.
    """
    members = {
        label: tuple(value for value, bits in enumerate(combinations, 1) if bits >> number & 1)
        for number, label in enumerate(labels)
    }
    members = {label: values for label, values in members.items() if values}
    shared = {value for value, bits in enumerate(combinations, 1) if bits.bit_count() > 1}
    if not shared:
        return LabelNames({label: values[0] for label, values in members.items()})
    names = LabelNames(
        {f"value_{value}": value for value in range(1, len(combinations) + 1)},
        regions={label: values for label, values in members.items()},
    )
    twins = Counter(members.values()).most_common(1)[0]
    try:
        if twins[1] > 1:
            same = " and ".join(label for label, values in members.items() if values == twins[0])
            raise SamnnError(f"{same} cover the same pixels everywhere")
        names.description()
    except SamnnError as problem:
        pixels = sum(n for bits, n in counts.items() if bits.bit_count() > 1)
        raise SamnnError(
            f"{xml}: {pixels} pixels lie in several labels, which nnU-Net's regions cannot express here: {problem} "
            "Redraw or remove one of the labels."
        ) from problem
    return names


def _cases(
    annotated: Sequence[_cvat_file.Annotated],
    images: Path,
    xml: Path,
    labels: Sequence[str],
    combinations: Sequence[int],
    rows: Mapping[str, Mapping[str, str]],
    flip: str | None,
    pattern: str | None,
) -> list[Case]:
    """A case of each image with shapes.

    Raises:
        Problems: images that are missing, lie elsewhere, or that the table does not name.
    """
    problems, cases = [], []
    stems = [Path(image.name).stem for image in annotated]
    patients = patients_by_name(stems, pattern)
    for image, stem in zip(annotated, stems, strict=True):
        file, row = _find_image(images, image.name), rows.get(stem)
        if file is None:
            problems.append(f"{images / image.name}: no such image. Name their folder with --images.")
        elif rows and row is None:
            problems.append(f"{file}: the table has no row with {STEM} {stem}.")
        elif flip is not None and not (row or {}).get(SIDE):
            problems.append(f"{file}: the table tells no {SIDE}.")
        else:
            is_flipped = flip is not None and row[SIDE] == flip
            cases.append(
                Case(
                    called=stem,
                    files=(file, xml),
                    read_images=partial(_read_image, file, (image.width, image.height), is_flipped),
                    read_labels=partial(_read_labels, image, labels, combinations, is_flipped),
                    patient=patients[stem] or (row or {}).get(PATIENT) or None,
                    picture=None if is_flipped else file,
                    settings={"flipped": is_flipped},
                    changes=("mirrored",) if is_flipped else (),
                )
            )
    if flip is not None and not problems and not any(case.changes for case in cases):
        sides = ", ".join(sorted({row.get(SIDE, "") for row in rows.values()}))
        problems.append(f"--flip {flip}: no image has this {SIDE}; the table has {sides}.")
    if problems:
        raise Problems(f"{xml}: nothing was converted, {len(problems)} problem(s):", problems)
    refuse_unusable_names(cases, xml)
    return cases


def _find_image(folder: Path, name: str) -> Path | None:
    """The file of an image, which CVAT names with the sub-folders of the task; nothing outside of `folder`."""
    for candidate in (folder / name, folder / Path(name).name):
        is_inside = Path(os.path.realpath(candidate.parent)).is_relative_to(os.path.realpath(folder))
        if is_inside and candidate.is_file():
            return candidate
    return None


def _read_image(path: Path, size: tuple[int, int], is_flipped: bool) -> list[Volume]:
    volumes = _pixels.read_picture(path)
    if volumes[0].grid.shape != size:
        found = " x ".join(map(str, volumes[0].grid.shape))
        raise SamnnError(
            f"{path}: has {found} pixels; it was annotated at {size[0]} x {size[1]}. Take the images of the task."
        )
    return [_pixels.on_plane(volume.voxels[::-1]) for volume in volumes] if is_flipped else volumes


def _read_labels(
    image: _cvat_file.Annotated, labels: Sequence[str], combinations: Sequence[int], is_flipped: bool
) -> Volume:
    bits = image.paint(labels).T
    known = np.array([0, *combinations], np.uint64)
    values = np.searchsorted(known, bits).astype(np.uint8)
    return _pixels.on_plane(values[::-1] if is_flipped else values)


def _read_table(path: Path) -> dict[str, dict[str, str]]:
    """Rows by the names of images.

    Raises:
        SamnnError: it is not such a table, or names an image twice.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SamnnError(f"{path}: cannot be read as a table ({error}). Save it as CSV in UTF-8.") from error
    if not rows or STEM not in rows[0]:
        raise SamnnError(
            f"{path}: has columns {list(rows[0]) if rows else []}; expected {STEM}, {SIDE}, {PATIENT}."
        )
    by_stem = {row[STEM]: {key: (value or "").strip() for key, value in row.items() if key} for row in rows}
    if len(by_stem) < len(rows):
        twice = next(stem for stem, n in Counter(row[STEM] for row in rows).items() if n > 1)
        raise SamnnError(f"{path}: names {twice} twice. Keep one row.")
    return by_stem


def _remarks(
    annotated: Sequence[_cvat_file.Annotated],
    labels: Sequence[str],
    used: Sequence[str],
    combinations: Mapping[int, int],
) -> list[str]:
    remarks = []
    if empty := sum(not image.shapes for image in annotated):
        remarks.append(f"Left out: {empty} image(s) without a polygon or mask")
    if ignored := sum((image.ignored for image in annotated), Counter()):
        remarks.append(
            "Ignored, no areas: " + ", ".join(f"{n} x {kind}" for kind, n in sorted(ignored.items()))
        )
    if unused := [label for label in labels if label not in used]:
        remarks.append(f"On no image: {', '.join(unused)}")
    if shared := {bits: n for bits, n in combinations.items() if bits.bit_count() > 1}:
        remarks.append(
            f"Labels overlap on {sum(shared.values())} pixels, in {len(shared)} combination(s): written as regions"
        )
    return remarks

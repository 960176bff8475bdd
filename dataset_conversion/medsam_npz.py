"""MedSAM challenge files (.npz) into nnU-Net raw format, and back."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.text import Text

from samnn.atomic import whole_folder
from samnn.blocks import Blocks
from samnn.errors import Problems, SamnnError
from samnn.io import Volume, read_labels, read_volume

from . import _layout
from ._arrays import npz_blocks, npz_headers, read_npz, upright, whole_numbers
from ._cases import Case, inspect, refuse_unusable_names
from ._conversion import COLOURS, new_target, patients_by_name
from ._conversion import convert as convert_cases
from ._label_names import names_for, read_label_names
from ._options import DryRun, Job, Labels, Output, Overwrite, Patient, SkipRefused, Workers
from ._pixels import read_mask, read_picture
from ._spacing import checked
from ._writing import each, flat
from .checks._dataset import Case as StoredCase
from .checks._dataset import read_dataset

BOXES = "boxes"


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder of .npz files; with --reverse, a raw dataset.")
    ],
    dataset_id: Annotated[
        int | None, typer.Option("--dataset-id", "-d", help="Number of the new dataset, 1 to 999.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the new dataset, after its number.")] = "MedSAM",
    reverse: Annotated[
        Path | None,
        typer.Option(
            "--reverse", metavar="OUT", help="Write the cases of a raw dataset as .npz files into OUT."
        ),
    ] = None,
    labels: Labels = None,
    patient: Patient = None,
    channels: Annotated[
        str, typer.Option(help="Name of the one channel of volumes. nnU-Net normalises `CT` as CT.")
    ] = "intensity",
    skip_refused: SkipRefused = False,
    output: Output = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    workers: Workers = None,
) -> None:
    """Convert the .npz files of the MedSAM challenges, 2D or 3D, into NIfTI with their spacing; and back.

    - **Source:** Segment Anything in Medical Images on Laptop (CVPR 2024),
      https://www.codabench.org/competitions/1847, and its successors
    - **Licence:** that of the set each file was taken from; the challenge's page lists them
    - **Citation:** Ma, He, Li, Han, You, Wang: Segment anything in medical images. Nature Communications 15, 654
      (2024), arXiv:2304.12306
    - **Layout:** `SOURCE/*.npz`, each with `imgs` (H, W, 3) or (D, H, W), `gts` (H, W) or (D, H, W), for volumes
      `spacing` (x, y, z in mm), and `boxes` if there are some. A file without `gts` is a test case

    Volumes become NIfTI; pictures two-dimensional NIfTI of three channels, a pixel counts as 1 mm. `boxes` go to
    `sidecars/CASE.json`. Pickled arrays (boxes as objects) are never opened, and left out by name. `--reverse` writes
    such files from the first channel or the three of a raw dataset, the boxes from the sidecars, test cases into
    OUT/test; voxels keep their values, labels get those back that a conversion took from them, a volume's place and
    direction are lost.

    **Examples**

        samnn convert medsam_npz ~/npz/CT_Abd -d 61 --name Abdomen --channels CT --labels liver=1,spleen=3

        samnn convert medsam_npz $nnUNet_raw/Dataset061_Abdomen --reverse ~/npz_again
    """
    if (dataset_id is None) == (reverse is None):
        raise typer.BadParameter("give -d NUMBER, or --reverse OUT")
    job = Job(dataset_id or 1, name, output, overwrite, dry_run, skip_refused, workers)
    if reverse is not None:
        _write_npz(source, reverse, job)
        return
    named = read_label_names(labels) if labels else None
    cases, n_dims = _find(source, patient)
    convert_cases(
        cases,
        inspect,
        3 if n_dims == 2 else 1,
        dry_run,
        target=new_target(job, source, [path for case in cases for path in case.files]),
        job=job,
        conversion={"converter": "medsam_npz", "source": str(source.resolve())},
        names=names_for if named is None else lambda _: named,
        channels=COLOURS if n_dims == 2 else [channels],
    )


def _find(source: Path, patient: str | None) -> tuple[list[Case], int]:
    """The cases, and whether they have two or three dimensions; only the headers of arrays are read.

    Raises:
        Problems: files of another layout, all of them.
    """
    if not source.is_dir():
        raise SamnnError(f"{source}: is not a folder. Name the one that holds the .npz files.")
    cases, problems, n_dims = [], [], {}
    paths = sorted(source.glob("[!.]*.npz"))
    patients = patients_by_name([path.stem for path in paths], patient)
    for path in paths:
        try:
            headers = npz_headers(path)
            shape = headers["imgs"][0] if "imgs" in headers else ()
            told = len(headers["gts"][0]) == 2 if "gts" in headers else "spacing" not in headers
            is_picture = len(shape) == 3 and shape[2] == 3 and told
            if len(shape) != 3 or not (is_picture or "spacing" in headers):
                raise SamnnError(
                    f"{path}: has arrays {_listed(headers)}; expected imgs (H, W, 3), or (D, H, W) with spacing."
                )
        except SamnnError as problem:
            problems.append(str(problem))
            continue
        n_dims[path] = 2 if is_picture else 3
        pickled = BOXES in headers and headers[BOXES][1].hasobject
        boxed = BOXES in headers and not pickled
        cases.append(
            Case(
                called=path.stem,
                files=(path,),
                read_images=partial(_pictures if is_picture else _volume, path),
                read_labels=partial(_labels, path, is_picture) if "gts" in headers else None,
                is_test="gts" not in headers,
                patient=patients[path.stem],
                sidecar=partial(_boxes, path, 0 not in headers[BOXES][0]) if boxed else None,
                changes=("boxes are pickled: not opened, left out",) if pickled else (),
            )
        )
    if len(set(n_dims.values())) > 1:
        fewer = min(set(n_dims.values()), key=list(n_dims.values()).count)
        listed = ", ".join(path.name for path, n in n_dims.items() if n == fewer)
        problems.append(f"{source}: holds 2D and 3D files; a dataset has one kind. {fewer}D are {listed}.")
    if problems:
        raise Problems(f"{source}: nothing was converted, {len(problems)} problem(s):", problems)
    refuse_unusable_names(cases, source)
    return cases, n_dims[paths[0]]


def _listed(headers: dict[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    return ", ".join(f"{key} {shape}" for key, (shape, _) in headers.items()) or "none"


def _spacing(path: Path) -> tuple[float, ...]:
    return checked(read_npz(path, "spacing").ravel().tolist(), 3, f"{path}, spacing")


def _volume(path: Path) -> list[Volume | Blocks]:
    spacing_mm = _spacing(path)
    return [npz_blocks(path, "imgs", spacing_mm) or upright(read_npz(path, "imgs").T, spacing_mm)]


def _pictures(path: Path) -> list[Volume]:
    colours = read_npz(path, "imgs")
    return [upright(colours[..., channel].T, (1.0, 1.0)) for channel in range(3)]


def _labels(path: Path, is_picture: bool) -> Volume | Blocks:
    if not is_picture and (blocks := npz_blocks(path, "gts", _spacing(path))):
        return blocks
    labels = whole_numbers(path, read_npz(path, "gts")).T
    if labels.ndim != (2 if is_picture else 3):
        raise SamnnError(f"{path}: gts has {labels.ndim} axes; expected those of imgs.")
    return upright(labels, (1.0, 1.0) if is_picture else _spacing(path))


def _boxes(path: Path, are_there: bool) -> dict[str, Any]:
    return {BOXES: read_npz(path, BOXES).tolist() if are_there else []}


# ---- and back


def _write_npz(source: Path, out: Path, job: Job) -> None:
    """Write every case of a raw dataset as OUT/CASE.npz, test cases below OUT/test; whole or not at all."""
    _layout.refuse_overlap(source, out)
    dataset = read_dataset(source)
    stored = [case for case in dataset.cases if case.images]
    if dataset.problems or not stored:
        problems = dataset.problems or ["there are no images"]
        raise SamnnError(f"{source}: is no raw dataset as `samnn check` wants it: {'; '.join(problems)}.")
    refused: dict[str, list[str]] = {}
    outcome = f"{len(stored)} cases"
    if job.dry_run:
        for _ in each("Checking", _arrays, stored, source, workers=job.n_workers, refused=refused):
            pass
        outcome += " checked, nothing written"
    else:
        with whole_folder(out, overwrite=job.overwrite) as folder:
            (folder / "test").mkdir()
            for _ in each("Writing", _save, stored, source, folder, workers=job.n_workers, refused=refused):
                pass
            if refused and not (job.skip_refused and len(refused) < len(stored)):
                raise Problems(f"{out} was not written, {len(refused)} cases refused:", flat(refused))
            if not any((folder / "test").iterdir()):
                (folder / "test").rmdir()
        outcome = f"{len(stored) - len(refused)} cases written to {out}"
    if refused:
        raise Problems(f"{outcome}; refused:", flat(refused))
    Console().print(Text(outcome), soft_wrap=True)


def _save(case: StoredCase, source: Path, folder: Path) -> None:
    target = folder / ("test" if case.test else "") / f"{case.name}.npz"
    np.savez_compressed(target, **_arrays(case, source))


def _arrays(case: StoredCase, source: Path) -> dict[str, np.ndarray]:
    """`imgs`, and `gts`, `spacing`, `boxes` where they belong."""
    files = [case.images[channel] for channel in sorted(case.images)]
    is_png = files[0].suffix == ".png"
    images = [image for path in files for image in (read_picture(path) if is_png else [read_volume(path)])]
    grid = images[0].grid
    if grid.n_dims == 3 and len(images) > 1:
        raise SamnnError(f"{files[1]}: a volume of several channels has no form in MedSAM's files.")
    if len(images) not in (1, 3):
        raise SamnnError(f"{files[-1]}: {len(images)} channels; MedSAM's pictures have 3.")
    if grid.n_dims == 3:
        arrays = {"imgs": images[0].voxels.T, "spacing": np.array([_shortest(s) for s in grid.spacing_mm])}
    else:
        arrays = {"imgs": np.stack([image.voxels.T for image in images * (3 // len(images))], -1)}
    if case.labels is not None:
        labels = read_mask(case.labels) if is_png else read_labels(case.labels)
        if differences := grid.differences(labels.grid):
            raise SamnnError(
                f"{case.labels}: does not lie on the grid of its image: {'; '.join(differences)}."
            )
        arrays["gts"] = _values_before(source, labels.voxels).T
    sidecar = source / "sidecars" / f"{case.name}.json"
    if sidecar.exists():
        try:
            arrays[BOXES] = np.array(json.loads(sidecar.read_text(encoding="utf-8"))[BOXES])
            if arrays[BOXES].dtype.kind not in "iuf":
                raise ValueError("other things than numbers")
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise SamnnError(f'{sidecar}: is not {{"boxes": [[…], …]}} ({error}).') from error
    return arrays


def _values_before(source: Path, labels: np.ndarray) -> np.ndarray:
    """Labels with the values that they had before `samnn convert` renumbered them, if it did."""
    path = source / "conversion.json"
    if not path.exists():
        return labels
    try:
        renumbered = json.loads(path.read_text(encoding="utf-8")).get("values_renumbered", {})
        old = {int(new): int(before) for before, new in renumbered.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise SamnnError(
            f"{path}: cannot be read ({error}). Move it away, or convert the set again."
        ) from error
    given = labels.astype(np.uint16) if old and max(old.values()) > 255 else labels.copy()
    for new, before in old.items():
        given[labels == new] = before
    return given


def _shortest(step_mm: float) -> float:
    """0.7 for the 0.699999988 that a NIfTI file, whose numbers are float32, makes of it."""
    single = np.float32(step_mm)
    return float(str(single)) if float(single) == step_mm else step_mm

"""BTCV abdomen as Synapse has it, or as SAMed and TransUNet preprocess it, into nnU-Net raw format."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from samnn.errors import Problems, SamnnError
from samnn.io import Volume

from . import _pair_work
from ._arrays import missing, read_h5, read_npz, stack, upright, whole_numbers
from ._cases import Case, inspect, refuse_unusable_names
from ._conversion import convert as convert_cases
from ._conversion import new_target
from ._label_names import LabelNames
from ._options import DatasetId, DryRun, Job, Name, Output, Overwrite, SkipRefused, Workers
from ._pair_files import Pair
from ._spacing import read_spacing

ORGANS = [  # in the order of their values, from 1
    "spleen",
    "right_kidney",
    "left_kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior_vena_cava",
    "portal_and_splenic_vein",
    "pancreas",
    "right_adrenal_gland",
    "left_adrenal_gland",
]
PREPROCESSED_ORGANS = [
    "spleen",
    "right_kidney",
    "left_kidney",
    "gallbladder",
    "liver",
    "stomach",
    "aorta",
    "pancreas",
]
SLICE = re.compile(r"(case\d+)_slice(\d+)\.npz")


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The folder of either form.")],
    dataset_id: DatasetId,
    name: Name = "Synapse",
    spacing: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,Z|FILE.json",
            help="Voxel size in mm of the preprocessed form, which does not tell it. The file: case → [X, Y, Z].",
        ),
    ] = None,
    skip_refused: SkipRefused = False,
    output: Output = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    workers: Workers = None,
) -> None:
    """Convert the BTCV abdomen set (Synapse multi-organ CT): 13 organs, or SAMed's preprocessed form with 8.

    - **Source:** Multi-Atlas Labeling Beyond the Cranial Vault, https://www.synapse.org/Synapse:syn3193805
    - **Licence:** Synapse's terms for syn3193805, after registration; do not pass the data on
    - **Citation:** Landman, Xu, Igelsias, Styner, Langerak, Klein: Multi-atlas labeling beyond the cranial vault.
      MICCAI 2015 workshop and challenge, doi:10.7303/syn3193805. Preprocessing: SAMed, arXiv:2304.13785
    - **Layout:** `SOURCE/[RawData/]Training/{img/img0001,label/label0001}.nii.gz`, test images in `Testing/img`; or
      `SOURCE/train_npz/case0005_slice000.npz` and `SOURCE/test_vol_h5/case0001.npy.h5`, each with `image` and `label`

    The preprocessed form holds images cut to -125…275 HU and scaled to 0…1, slices of one case are stacked again, and
    its test volumes go to `imagesTs` with `labelsTs`. It tells neither spacing nor orientation: say the first with
    `--spacing`; axes are taken as x, y, z. Its `.h5` files need h5py: `pip install 'samnn[synapse]'`.

    **Examples**

        samnn convert synapse ~/Abdomen -d 51 --name BTCV

        samnn convert synapse ~/Synapse -d 52 --spacing spacing.json --dry-run
    """
    job = Job(dataset_id, name, output, overwrite, dry_run, skip_refused, workers)
    if not source.is_dir():
        raise SamnnError(f"{source}: is not a folder. Name the one that --help describes.")
    if is_preprocessed := any((source / folder).is_dir() for folder in ("train_npz", "test_vol_h5")):
        if spacing is None:
            raise SamnnError(
                f"{source}: this form does not tell its spacing. Add --spacing X,Y,Z or FILE.json."
            )
        cases, look, arguments = _preprocessed(source, spacing), inspect, (1, dry_run)
        files = [path for case in cases for path in case.files]
    else:
        if spacing is not None:
            raise typer.BadParameter("--spacing is for the preprocessed form; NIfTI tells its own")
        cases, look, arguments = _raw(source), _pair_work.inspect, (_pair_work.Options(),)
        files = [path for pair in cases for path in pair.sources]
    organs = PREPROCESSED_ORGANS if is_preprocessed else ORGANS
    names = LabelNames({organ: value for value, organ in enumerate(organs, 1)})
    convert_cases(
        cases,
        look,
        *arguments,
        target=new_target(job, source, files),
        job=job,
        conversion={"converter": "synapse", "source": str(source.resolve())},
        names=lambda _: names,
        channels=["CT"],
    )


def _raw(source: Path) -> list[Pair]:
    """The images and labels of Synapse's RawData.zip; test images have none."""
    root = next((path for path in (source / "RawData", source) if (path / "Training").is_dir()), None)
    if root is None:
        raise SamnnError(
            f"{source}: holds none of Training/img, RawData/Training/img, train_npz, test_vol_h5. Is it the right folder?"
        )
    images, labels, tests = (
        {
            path.name.removeprefix(kind).removesuffix(".nii.gz"): path
            for path in sorted(folder.glob("[!.]*.nii.gz"))
        }
        for kind, folder in (
            ("img", root / "Training/img"),
            ("label", root / "Training/label"),
            ("img", root / "Testing/img"),
        )
    )
    problems = [
        f"{root / 'Training'}: img{number}.nii.gz or label{number}.nii.gz is missing."
        for number in sorted(images.keys() ^ labels.keys())
    ]
    problems += [
        f"{tests[number]}: is a training case, too." for number in sorted(tests.keys() & images.keys())
    ]
    if problems or not images:
        raise Problems(
            f"{source}: nothing was converted:", problems or [f"{root / 'Training/img'}: is empty."]
        )
    return [
        Pair(f"btcv_{number}", path.name, (path,), labels.get(number))
        for number, path in sorted((images | tests).items())
    ]


def _preprocessed(source: Path, spacing: str) -> list[Case]:
    """Training slices by case, and test volumes.

    Raises:
        SamnnError: a folder is there and empty, a name is not of this layout, a spacing is not told.
        Problems: slices are missing.
    """
    spacing_of = read_spacing(spacing, 3)
    by_case: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in sorted(source.glob("train_npz/[!.]*.npz")):
        match = SLICE.fullmatch(path.name)
        if match is None or int(match[2]) in by_case[match[1]]:
            raise SamnnError(f"{path}: expected names such as case0005_slice000.npz, each slice once.")
        by_case[match[1]][int(match[2])] = path
    problems = [
        f"{source / 'train_npz'}: {case} lacks slice(s) {', '.join(map(str, lacking))}."
        for case, slices in by_case.items()
        if (lacking := missing(list(slices)))
    ]
    if problems:
        raise Problems(f"{source}: nothing was converted:", problems)
    cases = []
    for case, slices in by_case.items():
        files, spacing_mm = tuple(slices[number] for number in sorted(slices)), spacing_of(case)
        cases.append(
            Case(
                called=case,
                files=files,
                read_images=partial(_slice_images, files, spacing_mm),
                read_labels=partial(_slice_labels, files, spacing_mm),
                settings={"spacing_mm": spacing_mm},
            )
        )
    for path in sorted(source.glob("test_vol_h5/[!.]*.npy.h5")):
        case = path.name.removesuffix(".npy.h5")
        spacing_mm = spacing_of(case)
        cases.append(
            Case(
                called=case,
                files=(path,),
                read_images=partial(_volume_images, path, spacing_mm),
                read_labels=partial(_volume_labels, path, spacing_mm),
                is_test=True,
                settings={"spacing_mm": spacing_mm},
            )
        )
    refuse_unusable_names(cases, source)
    return cases


def _slice_images(files: tuple[Path, ...], spacing_mm: tuple[float, ...]) -> list[Volume]:
    return [stack([read_npz(path, "image").T for path in files], files, spacing_mm)]


def _slice_labels(files: tuple[Path, ...], spacing_mm: tuple[float, ...]) -> Volume:
    slices = [whole_numbers(path, read_npz(path, "label")).T for path in files]
    return stack(slices, files, spacing_mm)


def _volume_images(path: Path, spacing_mm: tuple[float, ...]) -> list[Volume]:
    return [upright(_three_axes(path, read_h5(path, "image")).T, spacing_mm)]


def _volume_labels(path: Path, spacing_mm: tuple[float, ...]) -> Volume:
    return upright(whole_numbers(path, _three_axes(path, read_h5(path, "label"))).T, spacing_mm)


def _three_axes(path: Path, array: np.ndarray) -> np.ndarray:
    if array.ndim != 3:
        raise SamnnError(f"{path}: holds an array of shape {array.shape}; expected three axes, z first.")
    return array

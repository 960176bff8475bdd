"""ACDC cardiac MR into nnU-Net raw format, by nnU-Net's own code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from samnn.errors import Problems, SamnnError

from . import _nnunet
from ._conversion import convert as convert_cases
from ._conversion import new_target
from ._label_names import LabelNames
from ._options import DatasetId, DryRun, Job, Name, Output, Overwrite, SkipRefused, Workers
from ._pair_files import Pair
from ._pair_work import Plan
from ._splits import N_FOLDS, Splits

LABELS = {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
FRAME = re.compile(r"(patient\d{3})_frame\d\d")
MODULE = "Dataset027_ACDC"


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="The folder with training/ and testing/ inside.")
    ],
    dataset_id: DatasetId,
    name: Name = "ACDC",
    skip_refused: SkipRefused = False,
    output: Output = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    workers: Workers = None,
) -> None:
    """Convert ACDC, cardiac cine MR at two phases; nnU-Net's `Dataset027_ACDC` does the work and makes the folds.

    - **Source:** https://www.creatis.insa-lyon.fr/Challenge/acdc, after registration
    - **Licence:** the challenge's terms (CC BY-NC-SA 4.0)
    - **Citation:** Bernard and others: Deep Learning Techniques for Automatic MRI Cardiac Multi-structures Segmentation
      and Diagnosis: Is the Problem Solved? IEEE Transactions on Medical Imaging 37(11), 2514-2525 (2018)
    - **Layout:** `SOURCE/{training,testing}/patient001/patient001_frame01.nii.gz`, and `…_frame01_gt.nii.gz` beside it

    Labels: RV (right ventricle), MLV (myocardium), LVC (left ventricle). Both phases of a patient stay in one fold:
    `splits_final.json` has nnU-Net's own five. The 4-D series are left out, and labels of test patients, as nnU-Net's
    code does. A run that was stopped starts anew.

    **Examples**

        samnn convert acdc ~/ACDC/database -d 27

        samnn convert acdc ~/ACDC/database -d 27 --dry-run
    """
    job = Job(dataset_id, name, output, overwrite, dry_run, skip_refused, workers)
    pairs = _find(source)
    names = LabelNames({label: value for label, value in LABELS.items() if value})
    convert_cases(
        pairs,
        _nnunet.inspect_as_it_is,
        1,
        target=new_target(job, source, [path for pair in pairs for path in pair.sources]),
        job=job,
        conversion={"converter": "acdc", "source": str(source.resolve())},
        names=lambda _: names,
        channels=["cineMRI"],
        dataset_type=partial(_nnunet.Converted, run=_run, licence="CC BY-NC-SA 4.0"),
    )


def _find(source: Path) -> list[Pair]:
    """The frames of all patients, those of training with their labels.

    Raises:
        Problems: frames without labels, or folders without frames.
    """
    pairs, problems = [], []
    for part in ("training", "testing"):
        for folder in sorted(path for path in (source / part).glob("patient*") if path.is_dir()):
            frames = [
                path
                for path in sorted(folder.glob("*.nii.gz"))
                if FRAME.fullmatch(path.name.removesuffix(".nii.gz"))
            ]
            if not frames:
                problems.append(f"{folder}: holds no file such as {folder.name}_frame01.nii.gz.")
            for path in frames:
                stem = path.name.removesuffix(".nii.gz")
                labels = path.with_name(f"{stem}_gt.nii.gz") if part == "training" else None
                if labels is not None and not labels.is_file():
                    problems.append(f"{labels}: is missing.")
                pairs.append(Pair(stem, stem, (path,), labels))
    n_patients = len({pair.name.partition("_")[0] for pair in pairs if pair.mask is not None})
    if not problems and n_patients < N_FOLDS:
        problems.append(
            f"{source / 'training'}: holds {n_patients} patients; nnU-Net's five folds need as many."
        )
    if problems:
        raise Problems(f"{source}: nothing was converted, {len(problems)} problem(s):", problems)
    return pairs


def _run(plans: Sequence[Plan], scratch: _nnunet.Scratch) -> Splits:
    """Its `convert_acdc` does not run with nnU-Net 2.8.1 (its path has no `replace`); what that calls does."""
    files = []
    for plan in plans:
        folder = f"{'testing' if plan.is_test else 'training'}/{FRAME.fullmatch(plan.name)[1]}"
        files += [(f"{folder}/{plan.name}.nii.gz", plan.sources[0])]
        files += [] if plan.is_test else [(f"{folder}/{plan.name}_gt.nii.gz", plan.sources[-1])]
    source, made = scratch.link(files), scratch.raw / "Dataset027_ACDC"
    (source / "testing").mkdir(exist_ok=True)  # nnU-Net's code insists on it
    folders = {kind: made / kind for kind in ("imagesTr", "labelsTr", "imagesTs")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    n_training = scratch.call(
        MODULE,
        "copy_files",
        src_data_folder=source,
        train_dir=folders["imagesTr"],
        labels_dir=folders["labelsTr"],
        test_dir=folders["imagesTs"],
    )
    scratch.call(
        "generate_dataset_json",
        "generate_dataset_json",
        output_folder=str(made),
        channel_names={"0": "cineMRI"},
        labels=LABELS,
        num_training_cases=n_training,
        file_ending=".nii.gz",
    )
    splits = scratch.call(MODULE, "create_ACDC_split", labelsTr_folder=str(folders["labelsTr"]))
    if any(not fold["val"] for fold in splits):
        raise SamnnError("nnU-Net's code made a fold without validation cases; too few patients are left.")
    return splits

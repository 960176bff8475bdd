"""A task of the Medical Segmentation Decathlon into nnU-Net raw format, by nnU-Net's own code."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from samnn.atomic import write_json
from samnn.errors import Problems, SamnnError
from samnn.labels import LabelSet, read_dataset_json

from . import _nnunet
from ._conversion import convert as convert_cases
from ._conversion import new_target
from ._label_names import LabelNames
from ._options import DatasetId, DryRun, Job, Output, Overwrite, SkipRefused, Workers
from ._pair_files import Pair
from ._pair_work import Plan

TASK = re.compile(r"Task\d\d_(\w+)")


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="The folder of a task, such as Task04_Hippocampus.")
    ],
    dataset_id: DatasetId,
    name: Annotated[
        str | None, typer.Option(help="Name of the new dataset, after its number.  [default: the task's]")
    ] = None,
    skip_refused: SkipRefused = False,
    output: Output = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    workers: Workers = None,
) -> None:
    """Convert a task of the Medical Segmentation Decathlon; nnU-Net's `convert_MSD_dataset` does the work.

    - **Source:** http://medicaldecathlon.com
    - **Licence:** CC BY-SA 4.0
    - **Citation:** Antonelli and others: The Medical Segmentation Decathlon. Nature Communications 13, 4128 (2022),
      doi:10.1038/s41467-022-30695-9
    - **Layout:** `SOURCE/dataset.json` and `SOURCE/{imagesTr,labelsTr,imagesTs}/NAME_001.nii.gz`, as downloaded: images of
      several channels are 4-D

    Before anything is written, every header and label map is read; afterwards it is seen that all cases were written and
    no others. Hidden files (`._*`) are left out. A run that was stopped starts anew.

    **Examples**

        samnn convert decathlon ~/Task04_Hippocampus -d 4

        samnn convert decathlon ~/Task01_BrainTumour -d 81 --name Brain --dry-run
    """
    content = read_dataset_json(source / "dataset.json")
    label_names, modalities = _described(source / "dataset.json", content)
    if name is None:
        task = TASK.fullmatch(Path(os.path.abspath(source)).name)
        if task is None:
            raise SamnnError(f"{source}: is not named like Task04_Hippocampus. Say the name with --name.")
        name = task[1]
    job = Job(dataset_id, name, output, overwrite, dry_run, skip_refused, workers)
    pairs = _find(source)
    convert_cases(
        pairs,
        _nnunet.inspect_as_it_is,
        len(modalities),
        target=new_target(job, source, [path for pair in pairs for path in pair.sources]),
        job=job,
        conversion={"converter": "decathlon", "source": str(source.resolve())},
        names=lambda _: label_names,
        channels=modalities,
        dataset_type=partial(_nnunet.Converted, run=partial(_run, content), licence="CC BY-SA 4.0"),
    )


def _described(path: Path, content: dict) -> tuple[LabelNames, list[str]]:
    """Labels and channels in the Decathlon's own dataset.json: value → name, number → modality."""
    labels, modalities = content.get("labels"), content.get("modality")
    try:
        label_set = LabelSet.from_mapping({label: int(value) for value, label in labels.items()}, source=path)
        channels = [modalities[str(number)] for number in range(len(modalities))]
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise SamnnError(
            f'{path}: expected "labels" and "modality" as the Decathlon has them, {{"0": "background", …}}. nnU-Net\'s own '
            "format needs no conversion."
        ) from error
    names = LabelNames({label: values[0] for label, values in label_set.classes.items()}, label_set.ignore)
    return _nnunet.without_gaps(path, names), channels


def _find(source: Path) -> list[Pair]:
    """Images with their labels, and test images.

    Raises:
        Problems: images without labels, and labels without image.
    """
    images, labels, tests = (
        {path.name: path for path in sorted((source / folder).glob("[!._]*.nii.gz"))}
        for folder in ("imagesTr", "labelsTr", "imagesTs")
    )
    problems = [
        f"{source}: {name} is not in both imagesTr and labelsTr."
        for name in sorted(images.keys() ^ labels.keys())
    ]
    problems += [f"{tests[name]}: is in imagesTr, too." for name in sorted(tests.keys() & images.keys())]
    if problems or not images:
        raise Problems(
            f"{source}: nothing was converted:", problems or [f"{source / 'imagesTr'}: holds no .nii.gz."]
        )
    return [
        Pair(stem := name.removesuffix(".nii.gz"), stem, (path,), labels.get(name))
        for name, path in sorted((images | tests).items())
    ]


def _run(content: dict, plans: Sequence[Plan], scratch: _nnunet.Scratch) -> None:
    files = []
    for plan in plans:
        part = "Ts" if plan.is_test else "Tr"
        files += [(f"images{part}/{plan.name}.nii.gz", plan.sources[0])]
        files += [] if plan.is_test else [(f"labelsTr/{plan.name}.nii.gz", plan.sources[-1])]
    source = scratch.link((f"Task01_Set/{relative}", path) for relative, path in files) / "Task01_Set"
    (source / "imagesTs").mkdir(exist_ok=True)  # nnU-Net's code insists on it
    n_training = sum(not plan.is_test for plan in plans)
    keys = {"training": [], "test": []}  # it takes both out
    write_json(source / "dataset.json", content | keys | {"numTraining": n_training})
    scratch.call(
        "convert_MSD_dataset", "convert_msd_dataset", source_folder=str(source), num_processes=scratch.workers
    )

"""AMOS 2022, abdominal CT and MR, into nnU-Net raw format, by nnU-Net's own code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from samnn.atomic import write_json
from samnn.errors import Problems, SamnnError
from samnn.labels import LabelSet, read_dataset_json

from . import _nnunet
from ._conversion import convert as convert_cases
from ._conversion import new_target
from ._label_names import LabelNames
from ._options import DatasetId, DryRun, Job, Name, Output, Overwrite, SkipRefused, Workers
from ._pair_files import Pair
from ._pair_work import Plan

LICENCE = "that of https://zenodo.org/records/7262581"
PARTS = {"training": "Tr", "validation": "Va", "test": "Ts"}
LAST_CT = {
    "training": 410,
    "validation": 409,
    "test": 500,
}  # as in nnU-Net's Dataset218; higher numbers are MR
NUMBER = re.compile(r"amos_(\d{4})\.nii\.gz")


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The folder that holds dataset.json.")],
    dataset_id: DatasetId,
    name: Name = "AMOS",
    task: Annotated[int, typer.Option(min=1, max=2, help="1: CT alone; 2: CT and MR.")] = 1,
    skip_refused: SkipRefused = False,
    output: Output = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    workers: Workers = None,
) -> None:
    """Convert AMOS 2022, 15 abdominal organs; nnU-Net's `Dataset218` (task 1) or `Dataset219` (task 2) does the work.

    - **Source:** https://amos22.grand-challenge.org, data at https://zenodo.org/records/7262581
    - **Licence:** named on the Zenodo record. The paper's page on OpenReview says CC BY-NC, non-commercial use only: where
      they differ, keep to the stricter
    - **Citation:** Ji and others: AMOS: A Large-Scale Abdominal Multi-Organ Benchmark for Versatile Medical Image
      Segmentation. NeurIPS 2022, arXiv:2206.08023
    - **Layout:** `SOURCE/dataset.json` and `SOURCE/{imagesTr,labelsTr,imagesVa,labelsVa,imagesTs}/amos_0001.nii.gz`, the
      release after the challenge

    Its validation cases become training cases, as nnU-Net's code decides. Which cases there are is said by
    `dataset.json`; all are read before anything is written. A run that was stopped starts anew.

    **Examples**

        samnn convert amos ~/amos22 -d 218

        samnn convert amos ~/amos22 -d 219 --task 2 --name AMOS_CT_MR --dry-run
    """
    job = Job(dataset_id, name, output, overwrite, dry_run, skip_refused, workers)
    content = read_dataset_json(source / "dataset.json")
    names = _label_names(source / "dataset.json", content)
    pairs, listed = _find(source, content, task)
    convert_cases(
        pairs,
        _nnunet.inspect_as_it_is,
        1,
        target=new_target(job, source, [path for pair in pairs for path in pair.sources]),
        job=job,
        conversion={"converter": "amos", "source": str(source.resolve()), "task": task},
        names=lambda _: names,
        channels=["CT" if task == 1 else "either_CT_or_MR"],
        dataset_type=partial(
            _nnunet.Converted, run=partial(_run, content["labels"], listed, task), licence=LICENCE
        ),
    )


def _label_names(path: Path, content: dict[str, Any]) -> LabelNames:
    try:
        labels = {label: int(value) for value, label in content["labels"].items()}
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise SamnnError(f'{path}: expected "labels" as AMOS has them, {{"0": "background", …}}.') from error
    label_set = LabelSet.from_mapping(labels, source=path)
    names = LabelNames({label: values[0] for label, values in label_set.classes.items()})
    return _nnunet.without_gaps(path, names)


def _find(source: Path, content: dict[str, Any], task: int) -> tuple[list[Pair], dict[str, str]]:
    """The cases that dataset.json lists, and by name the part in which it lists each.

    Raises:
        SamnnError: it does not list them as AMOS does.
        Problems: files that are missing, cases listed twice.
    """
    pairs, listed, problems = [], {}, []
    for part, ending in PARTS.items():
        try:
            files = [Path(entry["image"]).name for entry in content[part]]
        except (KeyError, TypeError) as error:
            raise SamnnError(
                f'{source / "dataset.json"}: expected a list "{part}" of {{"image": "./images{ending}/amos_0001.nii.gz", …}}.'
            ) from error
        for file in files:
            match = NUMBER.fullmatch(file)
            if match is None:
                problems.append(
                    f"{source / 'dataset.json'}: lists {file!r}; expected names such as amos_0001.nii.gz."
                )
                continue
            if task == 1 and int(match[1]) > LAST_CT[part]:
                continue
            image = source / f"images{ending}" / file
            labels = None if part == "test" else source / f"labels{ending}" / file
            problems += [f"{path}: is missing." for path in (image, labels) if path and not path.is_file()]
            name = file.removesuffix(".nii.gz")
            if name in listed:
                problems.append(f"{source / 'dataset.json'}: lists {name} twice.")
            listed[name] = part
            pairs.append(Pair(name, name, (image,), labels))
    if problems or not pairs:
        problems = problems or [f"{source / 'dataset.json'}: lists no case of task {task}."]
        raise Problems(f"{source}: nothing was converted, {len(problems)} problem(s):", problems)
    return pairs, listed


def _run(
    labels: dict[str, str], listed: dict[str, str], task: int, plans: Sequence[Plan], scratch: _nnunet.Scratch
) -> None:
    files, content = [], {part: [] for part in PARTS}
    for plan in plans:
        part, file = listed[plan.name], f"{plan.name}.nii.gz"
        files += [(f"images{PARTS[part]}/{file}", plan.sources[0])]
        files += [] if plan.is_test else [(f"labels{PARTS[part]}/{file}", plan.sources[-1])]
        content[part].append({"image": f"./images{PARTS[part]}/{file}"})
    source = scratch.link(files)
    write_json(source / "dataset.json", {"labels": labels} | content)
    module = {1: "Dataset218_Amos2022_task1", 2: "Dataset219_Amos2022_task2"}[task]
    scratch.call(module, f"convert_amos_task{task}", amos_base_dir=str(source))

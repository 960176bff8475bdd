"""dataset.json: what nnU-Net needs in it, and the number of training cases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from samnn.atomic import write_json

from ._dataset import Dataset
from ._facts import Data
from ._finding import Finding, Fix, error, some, warning
from ._read import ENDINGS, NAMED


def find(data: Data) -> Iterator[Finding]:
    """Everything wrong with dataset.json, and with the name of the folder."""
    dataset = data.dataset
    if not re.fullmatch(r"Dataset[0-9]{3}_.+", dataset.folder.resolve().name):
        yield warning(
            dataset.folder,
            "is not named as nnU-Net's commands look for datasets",
            "Rename it to DatasetXXX_NAME with three digits",
        )
    for problem in dataset.problems:
        yield error(dataset.json, problem, "Mend it by hand; nnU-Net's dataset_format.md describes it")
    if not dataset.description:
        return
    required = ["labels", "channel_names", "numTraining", "file_ending"]
    if missing := [key for key in required if key not in dataset.description]:
        yield error(dataset.json, f"lacks {', '.join(missing)}", "Add what is missing; nnU-Net stops without")
    yield from _number(dataset)
    yield from _channels(dataset)
    yield from _ending(dataset)
    if dataset.labels is not None:
        yield from _labels(dataset)


def _number(dataset: Dataset) -> Iterator[Finding]:
    stated = dataset.description.get("numTraining")
    found = sum(bool(case.images) for case in dataset.training)  # nnU-Net goes by the images
    # without an ending the cases are unknown
    if (
        "numTraining" in dataset.description
        and dataset.file_ending
        and (type(stated) is not int or stated != found)
    ):
        new = {**dataset.description, "numTraining": found}
        yield error(
            dataset.json,
            f"says numTraining {stated!r}; {found} training cases are there",
            "If no case is missing, write that number",
            Fix(f"numTraining {stated!r} becomes {found}", partial(write_json, dataset.json, new)),
        )


def _channels(dataset: Dataset) -> Iterator[Finding]:
    channels = dataset.description.get("channel_names", {})
    if "channel_names" not in dataset.description:
        return
    if not isinstance(channels, dict) or not all(isinstance(name, str) for name in channels.values()):
        yield error(
            dataset.json, 'has no "channel_names" of number to name', 'Write, for example, {"0": "CT"}'
        )
    elif list(channels) != [str(number) for number in range(len(channels))] or not channels:
        yield error(
            dataset.json,
            f"numbers its channels {', '.join(channels) or 'not at all'}",
            'Number them "0", "1", … in this order: it is that of the files',
        )


def _ending(dataset: Dataset) -> Iterator[Finding]:
    ending, reader = (
        dataset.description.get(key) for key in ("file_ending", "overwrite_image_reader_writer")
    )
    named = reader in list(NAMED)
    if "file_ending" in dataset.description and not named and str(ending).lower() not in ENDINGS:
        yield error(
            dataset.json,
            f"says file_ending {ending!r}, for which nnU-Net has no reader",
            f"Convert the files to one of {', '.join(ENDINGS)}",
        )
    if reader not in (None, "None") and not named:
        yield warning(
            dataset.json,
            f"names a reader {reader!r}, which nnU-Net does not have and ignores",
            "Take overwrite_image_reader_writer out, or correct it",
        )


def _labels(dataset: Dataset) -> Iterator[Finding]:
    labels = dataset.labels
    classes = sorted({value for values in labels.classes.values() for value in values})
    if "background" not in dataset.description["labels"]:
        yield error(dataset.json, "has no label 'background'", 'Add "background": 0 to its labels')
    if classes != list(range(1, len(classes) + 1)):
        yield error(
            dataset.json,
            f"its label values are {some([*map(str, classes)], 20)}, with gaps",
            "Number them 1, 2, 3, … without gaps, here and in the label maps (`samnn convert pairs` can do it)",
        )
    elif labels.ignore is not None and labels.ignore != len(classes) + 1:
        yield error(
            dataset.json,
            f"its ignore label is {labels.ignore}",
            f"Make it the highest value plus one, {len(classes) + 1}",
        )
    if any(len(values) > 1 for values in labels.classes.values()):
        order = dataset.description.get("regions_class_order")
        if not isinstance(order, list) or len(order) != len(labels.classes):
            yield error(
                dataset.json,
                "has regions (labels of several values) without a matching regions_class_order",
                f"Add regions_class_order, a list of {len(labels.classes)} values, one a region",
            )

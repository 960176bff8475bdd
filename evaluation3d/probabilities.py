"""Saved probabilities: the label map they stand for and each class's calibration, in one pass over the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samnn.errors import SamnnError
from samnn.geometry import Grid
from samnn.io import read_grid
from samnn.labels import LabelSet, read_dataset_json

from .calibration import NOTHING, Calibration, measure
from .stored import read_blocks, read_header

TOLERANCE = 1e-3  # of the range and of the sum: rounding to 16 bits shifts a sum by 5e-4 at most


@dataclass(frozen=True)
class Channels:
    """What the channels of a model's output mean.

    Without regions channel i is the probability of the label value i, background first, and the greatest wins. With
    regions each class has its own channel; where that is above 0.5, the class's entry in `region_values` is written,
    later ones over earlier ones: nnU-Net's `regions_class_order`.
    """

    n: int
    region_values: tuple[int, ...] | None = None

    @classmethod
    def of_model(cls, labels: LabelSet, dataset_json: Path) -> Channels:
        """Take nnU-Net's rule: regions where a class has several values and `regions_class_order` is given.

        Raises:
            SamnnError: the values leave gaps, or `regions_class_order` does not fit the classes.
        """
        order = read_dataset_json(dataset_json).get("regions_class_order")
        if order is not None and any(len(values) > 1 for values in labels.classes.values()):
            known = sorted(labels.values - {0, labels.ignore})
            fits = isinstance(order, list) and len(order) == len(labels.classes)
            if not fits or any(value not in known for value in order):
                raise SamnnError(
                    f"{dataset_json}: regions_class_order is {order}; expected one label value for each of "
                    f"{len(labels.classes)} regions."
                )
            return cls(len(order), tuple(order))
        values = sorted(labels.values - {labels.ignore})
        if values != list(range(len(values))):
            raise SamnnError(
                f"{dataset_json}: the label values are {', '.join(map(str, values))}; a model has a channel for each "
                "of 0, 1, 2, … without gaps. Name with --labels the dataset.json it was trained with."
            )
        return cls(len(values))

    def of_class(self, labels: LabelSet, name: str) -> tuple[int, ...]:
        """The channels whose sum is the probability of a class."""
        return labels.classes[name] if self.region_values is None else (list(labels.classes).index(name),)


def check_probabilities(path: Path, grid: Grid, channels: Channels) -> None:
    """Compare the header of a file with the grid of its reference. An .npz has no place of its own, only a shape.

    Raises:
        SamnnError: the file is unreadable, or has another shape, number of channels, or place.
    """
    shape = read_header(path).shape
    is_one_slice = len(shape) == grid.n_dims + 2 and shape[1] == 1  # how nnU-Net saves two dimensions
    in_space = shape[2:] if is_one_slice else shape[1:]
    if in_space != grid.shape[::-1]:
        raise SamnnError(
            f"{path}: has the shape {shape}; expected classes, then (z, y, x) of its reference, {grid.shape[::-1]}. "
            "Is it nnU-Net's .npz, or NIfTI with the classes as its last axis?"
        )
    if shape[0] != channels.n:
        raise SamnnError(
            f"{path}: has {shape[0]} channels, but dataset.json stands for {channels.n}"
            f"{' regions' if channels.region_values else ', background included'}. "
            "Name with --labels the dataset.json the model was trained with."
        )
    if path.name.endswith(".npz"):
        return
    if differences := grid.differences(read_grid(path).first_axes(grid.n_dims)):
        raise SamnnError(
            f"{path}: lies on another grid than its reference. Reference against prediction: {'; '.join(differences)}."
        )


def read_probabilities(
    path: Path, reference: np.ndarray, *, labels: LabelSet, channels: Channels
) -> tuple[np.ndarray, dict[str, Calibration]]:
    """Return the label map that the probabilities stand for, and the calibration of every class.

    The file holds class after class, so a voxel needs its best probability so far, the sum and the label, whatever
    the number of classes; and one more sum for each class of several channels. `reference` and the label map: (x, y, z), or (x, y).

    Raises:
        SamnnError: as `read_blocks`, or numbers are no probabilities: outside of 0 to 1, or with another sum than 1.
    """
    truth = reference.transpose().ravel()  # (z, y, x): the order of the file, and of what samnn.io reads
    found = np.zeros(len(truth), np.uint8 if max(labels.values) < 256 else np.uint16)
    best = np.full(len(truth), -1, read_header(path).dtype)
    total = np.zeros(len(truth), np.float32)
    several: dict[
        str, np.ndarray
    ] = {}  # of classes of several channels: their sum so far, until the last one
    calibrations = dict.fromkeys(labels.classes, NOTHING)
    for channel, start, p in read_blocks(path):
        here = slice(start, start + len(p))
        if p.min() < -TOLERANCE or p.max() > 1 + TOLERANCE:
            raise SamnnError(
                f"{path}: holds {p.min():g} to {p.max():g} in channel {channel}; probabilities lie between 0 and 1. Are "
                f"they logits? Apply {'the sigmoid' if channels.region_values else 'the softmax over classes'} first."
            )
        if channels.region_values is not None:
            found[here][p > 0.5] = channels.region_values[channel]
        else:
            wins = p > best[here]
            found[here][wins] = channel
            best[here][wins] = p[wins]
            total[here] += p
        for name, members in labels.classes.items():
            of_class = channels.of_class(labels, name)
            if channel not in of_class:
                continue
            if len(of_class) > 1:
                sums = several.setdefault(name, np.zeros(len(truth), np.float32))
                sums[here] += p
                if channel < max(of_class):
                    continue
                p_class = sums[here]
                if here.stop == len(truth):
                    del several[name]
            else:
                p_class = p
            counted = truth[here] != labels.ignore if labels.ignore is not None else slice(None)
            is_member = np.isin(truth[here][counted], members)
            calibrations[name] += measure(np.clip(p_class[counted], 0, 1), is_member)
    worst = max(total.min(), total.max(), key=lambda of_a_voxel: abs(of_a_voxel - 1))
    if channels.region_values is None and abs(worst - 1) > TOLERANCE:
        raise SamnnError(
            f"{path}: the probabilities of a voxel add up to {worst:g}; expected 1 within {TOLERANCE:g}. Are they of "
            "a model with regions? Name with --labels its dataset.json, which has regions_class_order."
        )
    return found.reshape(reference.shape[::-1]).transpose(), calibrations

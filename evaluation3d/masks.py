"""MaskPair: one class in reference and prediction; all classes are counted and boxed in one pass over memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from samnn.errors import SamnnError
from samnn.labels import LabelSet

from .surface import SurfaceDistances, surface_distances

Outcome = Literal["compared", "absent", "missed", "false"]

CLASSES_A_WORD = 64  # while boxing, a voxel is one unsigned integer with a bit for each class


@dataclass(frozen=True)
class MaskPair:
    """One class in a reference and a prediction: all that a metric is computed from.

    `tp`, `fp`, `fn`, `tn` count voxels: in both, in the prediction only, in the reference only, in neither.
    Voxels that the reference marks with the ignore value belong to none of the four.
    """

    tp: int
    fp: int
    fn: int
    tn: int
    spacing_mm: tuple[float, ...]
    tolerance_mm: float
    reference: np.ndarray  # label values, cropped to the box around both masks
    prediction: np.ndarray
    values: tuple[int, ...]  # the label values that make up the class
    ignore: int | None = None

    @property
    def outcome(self) -> Outcome:
        """Both masks hold the class (compared), neither (absent), only the reference (missed), or only the prediction (false)."""
        if self.tp + self.fn:
            return "compared" if self.tp + self.fp else "missed"
        return "false" if self.fp else "absent"

    @cached_property
    def surface(self) -> SurfaceDistances:
        """Distances between both surfaces, measured when first asked for; defined where `outcome` is "compared"."""
        in_reference = np.isin(self.reference, self.values)
        in_prediction = np.isin(self.prediction, self.values)
        if self.ignore is not None:
            in_prediction &= self.reference != self.ignore
        return surface_distances(in_reference, in_prediction, spacing_mm=self.spacing_mm)


def mask_pairs(
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing_mm: tuple[float, ...],
    labels: LabelSet,
    tolerance_mm: float,
    names: tuple[object, object] = ("the reference", "the prediction"),
) -> dict[str, MaskPair]:
    """Pair the masks of every class of two label maps of one shape, 2D or 3D, in any memory order.

    Raises:
        SamnnError: a map holds a value that is not in `labels`. `names` say in the message which map it is.
    """
    values = sorted(labels.values)
    counts, boxes = _scan(reference, prediction, values, labels)
    strange = [
        _unknown_values(name, voxels, labels)
        for name, voxels, unknown in [
            (names[0], reference, counts[-1, :].any()),
            (names[1], prediction, counts[:, -1].any()),
        ]
        if unknown
    ]
    if strange:
        raise SamnnError("\n".join(strange))
    if labels.ignore is not None:
        counts[values.index(labels.ignore), :] = 0
    pairs = {}
    for (name, members), box in zip(labels.classes.items(), boxes, strict=True):
        is_member = np.isin([*values, -1], members)
        tp = int(counts[is_member][:, is_member].sum())
        fp = int(counts[~is_member][:, is_member].sum())
        fn = int(counts[is_member][:, ~is_member].sum())
        pairs[name] = MaskPair(
            tp=tp,
            fp=fp,
            fn=fn,
            tn=int(counts.sum()) - tp - fp - fn,
            spacing_mm=spacing_mm,
            tolerance_mm=tolerance_mm,
            reference=reference[box],
            prediction=prediction[box],
            values=members,
            ignore=labels.ignore,
        )
    return pairs


def _scan(
    reference: np.ndarray, prediction: np.ndarray, values: list[int], labels: LabelSet
) -> tuple[np.ndarray, list[tuple[slice, ...]]]:
    """Walk once along memory, slice by slice; return how often each two values meet, and each class's box.

    `counts[i, j]` is the number of voxels with the i-th value in the reference and the j-th in the prediction;
    the last row and column are for values that are not in the list.
    """
    n_values = len(values) + 1
    rank = np.full(
        values[-1] + 3, len(values)
    )  # value + 1 → its place in the list; both ends: not in the list
    rank[np.array(values) + 1] = np.arange(len(values))
    words = _class_bits(values, labels)

    along_memory = np.argsort(reference.strides, kind="stable")[::-1]
    slices = zip(reference.transpose(along_memory), prediction.transpose(along_memory), strict=True)
    shape = [reference.shape[axis] for axis in along_memory]
    seen = [[np.zeros(size, word.dtype) for size in shape] for word in words]
    counts = np.zeros(n_values**2, np.int64)
    for k, (in_reference, in_prediction) in enumerate(slices):
        meeting = np.take(rank, in_reference.astype(np.int64) + 1, mode="clip")
        meeting *= n_values
        meeting += np.take(rank, in_prediction.astype(np.int64) + 1, mode="clip")
        counts += np.bincount(meeting.ravel(), minlength=len(counts))
        for word, seen_along in zip(words, seen, strict=True):
            bits = np.take(word, meeting)
            seen_along[0][k] = np.bitwise_or.reduce(bits, axis=None)
            for axis in range(bits.ndim):
                others = tuple(other for other in range(bits.ndim) if other != axis)
                seen_along[axis + 1] |= np.bitwise_or.reduce(bits, axis=others)

    boxes = []
    for c in range(len(labels.classes)):
        seen_along, bit = seen[c // CLASSES_A_WORD], c % CLASSES_A_WORD
        box = [slice(0, 0)] * reference.ndim
        for axis, found in zip(along_memory, seen_along, strict=True):
            where = np.flatnonzero(found >> found.dtype.type(bit) & found.dtype.type(1))
            if len(where):
                box[axis] = slice(int(where[0]), int(where[-1]) + 1)
        boxes.append(tuple(box))
    return counts.reshape(n_values, n_values), boxes


def _class_bits(values: list[int], labels: LabelSet) -> list[np.ndarray]:
    """For each two values that can meet, the bits of the classes that one of them belongs to; 64 classes a word."""
    members = list(labels.classes.values())
    words = []
    for start in range(0, len(members), CLASSES_A_WORD):
        group = members[start : start + CLASSES_A_WORD]
        bits = np.zeros(len(values) + 1, np.min_scalar_type(2 ** len(group) - 1))
        for bit, wanted in enumerate(group):
            bits[np.isin([*values, -1], wanted)] |= bits.dtype.type(1 << bit)
        word = bits[:, None] | bits[None, :]
        if labels.ignore is not None:
            word[values.index(labels.ignore), :] = 0
        words.append(word.ravel())
    return words


def _unknown_values(name: object, voxels: np.ndarray, labels: LabelSet) -> str:
    unknown = sorted(set(np.unique(voxels).tolist()) - labels.values)
    shown = ", ".join(map(str, unknown[:10])) + (", …" if len(unknown) > 10 else "")
    known = ", ".join(map(str, sorted(labels.values)))
    return f"{name}: holds the value {shown}, which is not in the label set ({known})."

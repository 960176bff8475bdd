"""MaskPair: one class in reference and prediction; all classes are counted and boxed in one pass over memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Literal

import numpy as np

from samnn.errors import SamnnError
from samnn.labels import LabelSet

from .surface import Definition, SurfaceDistances, surface_distances

Outcome = Literal["compared", "absent", "missed", "false"]


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
    surface_definition: Definition = "surfel"

    @property
    def outcome(self) -> Outcome:
        """Both masks hold the class (compared), neither (absent), only the reference (missed), or only the prediction (false)."""
        if self.tp + self.fn:
            return "compared" if self.tp + self.fp else "missed"
        return "false" if self.fp else "absent"

    @cached_property
    def surface(self) -> SurfaceDistances:
        """Distances between both surfaces, measured when first asked for; defined where `outcome` is "compared"."""
        order = _along_memory(self.reference)
        reference, prediction = self.reference.transpose(order), self.prediction.transpose(order)

        def masks(planes: slice) -> tuple[np.ndarray, np.ndarray]:
            in_reference, in_prediction = (
                reduce(np.logical_or, [voxels[planes] == value for value in self.values])
                for voxels in (reference, prediction)
            )
            if self.ignore is not None:
                in_prediction &= reference[planes] != self.ignore
            return in_reference, in_prediction

        spacing_mm = tuple(self.spacing_mm[axis] for axis in order)
        return surface_distances(
            masks, reference.shape, spacing_mm=spacing_mm, definition=self.surface_definition
        )


def mask_pairs(
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing_mm: tuple[float, ...],
    labels: LabelSet,
    tolerance_mm: float,
    surface: Definition = "surfel",
    names: tuple[object, object] = ("the reference", "the prediction"),
) -> dict[str, MaskPair]:
    """Pair the masks of every class of two label maps of one shape, 2D or 3D, in any memory order.

    Raises:
        SamnnError: a map holds a value that is not in `labels`. `names` say in the message which map it is.
    """
    scan = _Scan(reference, prediction, labels)
    strange = [
        _unknown_values(name, voxels, labels)
        for name, voxels, unknown in zip(names, (reference, prediction), scan.unknown, strict=True)
        if unknown
    ]
    if strange:
        raise SamnnError("\n".join(strange))
    n_counted = int(scan.counts.sum())
    pairs = {}
    for name, members in labels.classes.items():
        tp, fp, fn, box = scan.of(members)
        pairs[name] = MaskPair(
            tp=tp,
            fp=fp,
            fn=fn,
            tn=n_counted - tp - fp - fn,
            spacing_mm=spacing_mm,
            tolerance_mm=tolerance_mm,
            reference=reference[box],
            prediction=prediction[box],
            values=members,
            ignore=labels.ignore,
            surface_definition=surface,
        )
    return pairs


class _Scan:
    """One walk along memory, plane by plane, that looks closely only where one of the maps is not 0.

    Values get a rank when they are first met, so that labels which are absent cost nothing.
    """

    def __init__(self, reference: np.ndarray, prediction: np.ndarray, labels: LabelSet) -> None:
        self.order = _along_memory(reference)
        self.ranks = {0: 0}  # value → its place in `counts` and `seen`
        self.counts = np.zeros((1, 1), np.int64)  # voxels by ranks in reference and prediction; none ignored
        self.seen = [np.zeros((1, reference.shape[axis]), bool) for axis in self.order]  # by rank and place
        self.unknown = [False, False]  # whether reference and prediction hold values of no label
        self._known = labels.values
        self._ignore = labels.ignore
        self._rank_of = np.full(max(self._known) + 3, -1)  # value + 1 → rank; both ends: all other values
        self._rank_of[1] = 0
        planes = [voxels.transpose(self.order) for voxels in (reference, prediction)]
        if reference.ndim == 2:  # one plane
            planes = [voxels[None] for voxels in planes]
            self.seen.insert(0, np.zeros((1, 1), bool))
        for k, both in enumerate(zip(*planes, strict=True)):
            self._look_at(k, *both)
        if reference.ndim == 2:
            del self.seen[0]

    def of(self, members: tuple[int, ...]) -> tuple[int, int, int, tuple[slice, ...]]:
        """Count TP, FP and FN of the class with these values, and find the box around both its masks."""
        ranks = [self.ranks[value] for value in members if value in self.ranks]
        box = [slice(0, 0)] * len(self.order)
        if not ranks:
            return 0, 0, 0, tuple(box)
        tp = int(self.counts[np.ix_(ranks, ranks)].sum())
        fp = int(self.counts[:, ranks].sum()) - tp
        fn = int(self.counts[ranks].sum()) - tp
        for axis, seen in zip(self.order, self.seen, strict=True):
            where = np.flatnonzero(seen[ranks].any(axis=0))
            if len(where):  # else every voxel of the class is ignored
                box[axis] = slice(int(where[0]), int(where[-1]) + 1)
        return tp, fp, fn, tuple(box)

    def _look_at(self, k: int, reference: np.ndarray, prediction: np.ndarray) -> None:
        where = np.flatnonzero((reference != 0) | (prediction != 0))
        row = where // reference.shape[1]
        column = where - row * reference.shape[1]
        here = self._ranked(0, reference.ravel()[where])
        there = self._ranked(1, prediction.ravel()[where])
        self.counts[0, 0] += reference.size - len(where)
        if self._ignore in self.ranks:
            counted = here != self.ranks[self._ignore]
            row, column, here, there = row[counted], column[counted], here[counted], there[counted]
        meeting = np.bincount(here * len(self.ranks) + there, minlength=self.counts.size)
        self.counts += meeting.reshape(self.counts.shape)
        differ = here != there
        for ranks, within in ((here, slice(None)), (there[differ], differ)):
            self.seen[0][:, k] |= np.bincount(ranks, minlength=len(self.ranks)) > 0
            self.seen[1][ranks, row[within]] = True
            self.seen[2][ranks, column[within]] = True

    def _ranked(self, which: int, values: np.ndarray) -> np.ndarray:
        """Replace values by their ranks; a value of no label becomes rank 0 and is noted."""
        places = values.astype(np.int64) + 1
        ranks = np.take(self._rank_of, places, mode="clip")
        if ranks.min(initial=0) >= 0:
            return ranks
        for value in np.unique(values[ranks < 0]).tolist():
            if value in self._known:
                self._rank_of[value + 1] = self.ranks.setdefault(value, len(self.ranks))
            else:
                self.unknown[which] = True
        n = len(self.ranks)
        self.counts = np.pad(self.counts, (0, n - len(self.counts)))
        self.seen = [np.pad(seen, ((0, n - len(seen)), (0, 0))) for seen in self.seen]
        return np.maximum(np.take(self._rank_of, places, mode="clip"), 0)


def _along_memory(voxels: np.ndarray) -> tuple[int, ...]:
    """The axes from the longest stride in memory to the shortest."""
    return tuple(np.argsort(np.abs(voxels.strides), kind="stable")[::-1].tolist())


def _unknown_values(name: object, voxels: np.ndarray, labels: LabelSet) -> str:
    unknown = sorted(set(np.unique(voxels).tolist()) - labels.values)
    shown = ", ".join(map(str, unknown[:10])) + (", …" if len(unknown) > 10 else "")
    known = ", ".join(map(str, sorted(labels.values)))
    return f"{name}: holds the value {shown}, which is not in the label set ({known})."

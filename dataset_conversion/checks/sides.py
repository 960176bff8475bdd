"""Left and right, front and back, top and bottom: label maps that are mirrored against anatomy or against the others."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ._facts import CaseFacts, Data
from ._finding import Finding, error, warning

AXES = {"left and right": 0, "front and back": 1, "top and bottom": 2}
LEAST_CASES = 5
LEAST_GAIN = 3.0  # mirrored, the classes must lie so many times closer to where they usually lie
LEAST_DISTANCE_MM = 5.0  # classes on the midline do not tell left from right
SIDE = re.compile(r"(?<![a-z])(left|right|l|r)(?![a-z])", re.IGNORECASE)


def find(data: Data) -> Iterator[Finding]:
    """Label maps in which a class called left lies to the right, or whose classes lie mirrored."""
    volumes = [facts for facts in data.with_labels() if facts.labels.grid.n_dims == 3]
    mirrored: set[int] = set()
    for left, right in pairs(list(data.classes)):
        both = [facts for facts in volumes if len(_centroids(facts, data, [left, right])) == 2]
        wrong = [facts for facts in both if _is_swapped(_centroids(facts, data, [left, right]))]
        if wrong and len(wrong) == len(both) > 1:
            yield error(
                data.dataset.folder,
                f"in all {len(both)} label maps {left!r} lies to the right of {right!r}",
                "Are the names exchanged, or left and right meant as seen on the screen? Correct dataset.json, "
                "or the headers if they are mirrored",
            )
        else:
            for facts in wrong:
                mirrored.add(id(facts))
                yield error(
                    facts.case.labels,
                    f"{left!r} lies to the right of {right!r}; it does not in {len(both) - len(wrong)} of {len(both)} cases",
                    "Mirrored, a wrong header, or the two labels exchanged? Look at it",
                )
    others = [facts for facts in volumes if id(facts) not in mirrored]
    yield from _unlike_others(others, data)


def pairs(names: list[str]) -> list[tuple[str, str]]:
    """The (left, right) pairs among class names: the same but for one word, left or right, l or r."""
    found = []
    for name in names:
        for side in SIDE.finditer(name):
            if side[0].lower() not in ("left", "l"):
                continue
            word = "right" if len(side[0]) > 1 else "r"
            twin = f"{name[: side.start()]}{word}{name[side.end() :]}".lower()
            found += [(name, other) for other in names if other.lower() == twin]
    return found


def _centroids(facts: CaseFacts, data: Data, names: list[str]) -> np.ndarray:
    """Centroids in mm (+x left, +y back, +z top), a row a class that the case holds."""
    rows = []
    for name in names:
        regions = [facts.regions[value] for value in data.classes[name] if value in facts.regions]
        if regions:
            weights = [region.n_voxels for region in regions]
            rows.append(np.average([region.centroid_mm for region in regions], axis=0, weights=weights))
    return np.array(rows).reshape(-1, 3)


def _is_swapped(left_and_right_mm: np.ndarray) -> bool:
    (left_x, *_), (right_x, *_) = left_and_right_mm
    return bool(left_x < right_x)


def _unlike_others(cases: list[CaseFacts], data: Data) -> Iterator[Finding]:
    """Where the classes lie to each other, compared with the median of the cases that hold them all."""
    names = list(data.classes)
    whole = [facts for facts in cases if len(_centroids(facts, data, names)) == len(names)]
    if len(names) < 2 or len(whole) < LEAST_CASES:
        return
    places_mm = np.array([_centroids(facts, data, names) for facts in whole])
    places_mm -= places_mm.mean(axis=1, keepdims=True)
    usual_mm = np.median(places_mm, axis=0)
    for words, axis in AXES.items():
        if np.abs(usual_mm[:, axis]).max() < LEAST_DISTANCE_MM:
            continue
        for facts, own_mm in zip(whole, places_mm[..., axis], strict=True):
            apart_mm = np.linalg.norm(own_mm - usual_mm[:, axis])
            mirrored_mm = np.linalg.norm(-own_mm - usual_mm[:, axis])
            if apart_mm > LEAST_GAIN * mirrored_mm:
                yield warning(
                    facts.case.labels,
                    f"its classes lie as in the other cases with {words} exchanged",
                    "Is it mirrored, or its header wrong? Look at it",
                )

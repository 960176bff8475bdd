"""Names and values of labels: what the user calls them, which values nnU-Net wants, and regions made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from samnn.errors import SamnnError
from samnn.labels import MAX_VALUE, LabelSet, read_dataset_json

_AT_ONCE = 1 << 16  # voxels that get their new values: numpy makes eight bytes of each first


@dataclass(frozen=True)
class LabelNames:
    """Names of the values in the masks, background left out, and regions: several of these values together."""

    values: dict[str, int]
    ignore: int | None = None
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def new_values(self) -> dict[int, int]:
        """Value in the mask → value in the dataset: in the same order, without gaps, the ignore label last."""
        known = [0, *sorted(self.values.values()), *([] if self.ignore is None else [self.ignore])]
        return {old: new for new, old in enumerate(known)}

    @property
    def changed(self) -> dict[int, int]:
        """The part of `new_values` that changes anything."""
        return {old: new for old, new in self.new_values.items() if old != new}

    def unknown(self, values: Iterable[int]) -> list[int]:
        return sorted(set(values) - self.new_values.keys())

    @property
    def dtype(self) -> np.dtype:
        """Of the dataset's label maps."""
        return np.dtype(np.uint8 if len(self.new_values) <= 256 else np.uint16)

    def renumber(self, labels: np.ndarray) -> np.ndarray:
        """Give every voxel its new value, as uint8 where that is enough."""
        new, dtype = self.new_values, self.dtype
        if not self.changed:
            return labels.astype(dtype, order="K", copy=False)
        table = np.zeros(max(new) + 1, dtype)
        table[list(new)] = list(new.values())
        order = "F" if labels.flags.f_contiguous else "C"  # as they lie in memory: quicker by far
        old = labels.ravel(order=order)
        renumbered = np.empty(old.shape, dtype)
        for start in range(0, len(old), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            np.take(table, old[some], out=renumbered[some])
        return renumbered.reshape(labels.shape, order=order)

    def description(self) -> dict[str, Any]:
        """`labels` of dataset.json, and with regions `regions_class_order`."""
        new = self.new_values
        labels: dict[str, Any] = {"background": 0}
        if not self.regions:
            labels |= {name: new[old] for name, old in sorted(self.values.items(), key=lambda item: item[1])}
            order = {}
        else:
            in_region = {value for values in self.regions.values() for value in values}
            regions = dict(self.regions)
            regions |= {name: (old,) for name, old in self.values.items() if old not in in_region}
            ordered = sorted(regions.items(), key=lambda item: (-len(item[1]), item[1]))
            labels |= {
                name: new[values[0]] if len(values) == 1 else [new[value] for value in values]
                for name, values in ordered
            }
            order = {"regions_class_order": [new[value] for value in _painted(ordered)]}
        if self.ignore is not None:
            labels["ignore"] = new[self.ignore]
        return {"labels": labels} | order


def read_label_names(text: str, regions: Sequence[str] = ()) -> LabelNames:
    """Read `liver=1,tumour=2`, or a JSON file of names and values (a dataset.json too), and `whole=liver+tumour`.

    Raises:
        SamnnError: it is neither, or names and values contradict each other.
    """
    mapping = _from_json(Path(text)) if text.endswith(".json") else _from_text(text)
    label_set = LabelSet.from_mapping(mapping, source="--labels")
    single = {name: values[0] for name, values in label_set.classes.items() if len(values) == 1}
    several = {name: values for name, values in label_set.classes.items() if len(values) > 1}
    for values in several.values():  # the values of a region have names of their own, or get some
        for value in values:
            if value not in single.values():
                single[f"label_{value}"] = value
    return with_regions(LabelNames(single, label_set.ignore, several), regions)


def names_for(values: Iterable[int], regions: Sequence[str] = ()) -> LabelNames:
    """Names for the values that occur, `label_VALUE`, where the user gave none.

    Raises:
        SamnnError: there is no value but 0, or one that cannot be a label.
    """
    found = sorted(set(values) - {0})
    if not found:
        raise SamnnError("The masks hold no voxel other than 0. Are they the right files?")
    if found[0] < 0 or found[-1] > MAX_VALUE:
        raise SamnnError(
            f"The masks hold values from {found[0]} to {found[-1]}; labels lie from 0 to {MAX_VALUE}. "
            "Name the right ones with --labels."
        )
    return with_regions(LabelNames({f"label_{value}": value for value in found}), regions)


def with_regions(names: LabelNames, regions: Sequence[str]) -> LabelNames:
    """Add regions written as `NAME=A+B`, where A and B are names or values in the masks.

    Raises:
        SamnnError: a region is not written so, unknown or taken, or cannot be told apart from the others.
    """
    made = dict(names.regions)
    for text in regions:
        name, equals, members = text.partition("=")
        parts = [part.strip() for part in members.split("+")]
        values = []
        for part in parts:
            value = names.values.get(part, int(part) if part.isdecimal() else None)
            if value not in names.values.values():
                raise SamnnError(
                    f"--region {text}: {part!r} is no label; there are {names.values}. Write NAME=A+B."
                )
            values.append(value)
        name = name.strip()
        if not equals or not name or name in made or name in (*names.values, "background", "ignore"):
            raise SamnnError(f"--region {text}: write NAME=A+B, with a name that is not taken.")
        made[name] = tuple(sorted(set(values)))
    result = LabelNames(names.values, names.ignore, made)
    result.description()  # finds regions that cannot be told apart
    return result


def _painted(ordered: Sequence[tuple[str, tuple[int, ...]]]) -> list[int]:
    """The value of each region in a label map of predictions: nnU-Net paints them in this order over one another."""
    painted = []
    for number, (name, values) in enumerate(ordered):
        later = {value for _, others in ordered[number + 1 :] for value in others}
        own = [value for value in values if value not in later]
        if not own:
            raise SamnnError(
                f"region {name!r} has no label of its own that smaller regions leave: it cannot be painted. Leave it out."
            )
        painted.append(own[0])
    return painted


def _from_text(text: str) -> dict[str, int]:
    mapping: dict[str, int] = {}
    for entry in text.split(","):
        name, equals, value = (part.strip() for part in entry.rpartition("="))
        if not equals or not name or not value.isdecimal() or name in mapping:
            raise SamnnError(
                f"--labels {text}: {entry!r} does not fit. Write NAME=VALUE,NAME=VALUE with different names, or a "
                "JSON file."
            )
        mapping[name] = int(value)
    return mapping


def _from_json(path: Path) -> Mapping[str, Any] | None:
    content = read_dataset_json(path)
    return content["labels"] if isinstance(content.get("labels"), dict) else content

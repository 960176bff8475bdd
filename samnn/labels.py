"""LabelSet: what the integers of a label map mean, as nnU-Net's dataset.json says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samnn.errors import SamnnError

MAX_VALUE = 65535  # the largest value of a label map: 16 bits


@dataclass(frozen=True)
class LabelSet:
    """Foreground classes (or regions: several values a name) and the ignore label, background left out."""

    classes: dict[str, tuple[int, ...]]
    ignore: int | None = None

    @property
    def values(self) -> set[int]:
        """Every value a label map may hold, background and ignore label included."""
        foreground = {value for values in self.classes.values() for value in values}
        return {0} | foreground | ({self.ignore} if self.ignore is not None else set())

    @classmethod
    def from_dataset_json(cls, path: Path) -> LabelSet:
        """Read the labels of an nnU-Net `dataset.json`.

        Raises:
            SamnnError: the file is missing, not JSON, or its `labels` are not what nnU-Net expects.
        """
        return cls.from_mapping(read_dataset_json(path).get("labels"), source=path)

    @classmethod
    def from_mapping(cls, labels: Mapping[str, Any] | None, *, source: Path | str = "labels") -> LabelSet:
        """Build from nnU-Net's `labels` mapping: name → value, or name → list of values for regions.

        Raises:
            SamnnError: not such a mapping, or two of its entries contradict each other. `source` is named.
        """
        if not isinstance(labels, Mapping) or not labels:
            raise SamnnError(
                f'{source}: has no "labels" mapping of class name to integer. See nnU-Net\'s dataset format.'
            )
        classes: dict[str, tuple[int, ...]] = {}
        ignore = None
        for name, value in labels.items():
            values = _values(name, value, source)
            if str(name) != str(name).encode("utf-8", "replace").decode():
                raise SamnnError(f"{source}: label {name!r} holds half a character; write it as UTF-8.")
            if (name == "background") != (values == (0,)) or (0 in values and len(values) > 1):
                raise SamnnError(
                    f"{source}: label {name!r} has value {value!r}; 0 is for 'background' and only for it."
                )
            if name == "ignore":
                if len(values) > 1:
                    raise SamnnError(f"{source}: 'ignore' has value {value!r}; expected one integer.")
                ignore = values[0]
            elif name != "background":
                twin = next((other for other, taken in classes.items() if set(taken) == set(values)), None)
                if twin is not None:
                    raise SamnnError(f"{source}: labels {twin!r} and {name!r} have the same value {value!r}.")
                classes[name] = values
        if not classes:
            raise SamnnError(f"{source}: has no class besides background and ignore.")
        if ignore is not None and any(ignore in values for values in classes.values()):
            raise SamnnError(f"{source}: the ignore value {ignore} is also the value of a class.")
        return cls(classes, ignore)


def read_dataset_json(path: Path) -> dict[str, Any]:
    """Read an nnU-Net `dataset.json` whole.

    Raises:
        SamnnError: the file is missing, cannot be read, or is not a JSON object.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
    except FileNotFoundError as error:
        raise SamnnError(f"{path}: not found. It holds the names of the classes.") from error
    except OSError as error:
        raise SamnnError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise SamnnError(f"{path}: not valid JSON ({error}). Restore it from the raw dataset.") from error
    if not isinstance(content, dict):
        raise SamnnError(f"{path}: is not a JSON object. See nnU-Net's dataset format.")
    return content


def _values(name: str, value: Any, source: Path | str) -> tuple[int, ...]:
    """The values of one label; a single number becomes a tuple of one."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    whole = all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= MAX_VALUE for v in values)
    if not values or not whole or len(set(values)) < len(values):
        raise SamnnError(
            f"{source}: label {name!r} has value {value!r}; expected an integer from 0 to {MAX_VALUE}, "
            "or a list of different ones."
        )
    return values

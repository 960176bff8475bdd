"""LabelSet: what the integers of a label map mean, as nnU-Net's dataset.json says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samnn.errors import SamnnError


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
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SamnnError(
                f"{path}: not found. It holds the class names; nnU-Net raw folders have one."
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise SamnnError(f"{path}: not valid JSON ({error}). Restore it from the raw dataset.") from error
        return cls.from_mapping(content.get("labels") if isinstance(content, dict) else None, source=path)

    @classmethod
    def from_mapping(cls, labels: Mapping[str, Any] | None, *, source: Path | str = "labels") -> LabelSet:
        """Build from nnU-Net's `labels` mapping: name → value, or name → list of values for regions."""
        if not isinstance(labels, Mapping) or not labels:
            raise SamnnError(
                f'{source}: has no "labels" mapping of class name to integer. See nnU-Net\'s dataset format.'
            )
        classes: dict[str, tuple[int, ...]] = {}
        ignore = None
        for name, value in labels.items():
            values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
            if not values or not all(
                isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values
            ):
                raise SamnnError(
                    f"{source}: label {name!r} has value {value!r}; expected integers from 0 upwards."
                )
            if name == "ignore":
                ignore = values[0]
            elif values != (0,):
                classes[name] = values
        return cls(classes, ignore)

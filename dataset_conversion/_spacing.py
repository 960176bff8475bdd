"""The spacing of data that does not say it: from the command line, for all cases or for each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samnn.errors import SamnnError

_LEAST_MM, _MOST_MM = 1e-6, 1e6  # from an atom's width to a kilometre: beyond, NIfTI's float32 fails, too


def read_spacing(text: str, n_dims: int) -> Callable[[str], tuple[float, ...]]:
    """The spacing in mm of a case by its name: from `0.9,0.9,2.5`, or a JSON file of names and such lists.

    Raises:
        SamnnError: it is neither; from the function, the file does not name the case.
    """
    if not text.endswith(".json"):
        spacing_mm = checked(text.split(","), n_dims, f"--spacing {text}")
        return lambda _: spacing_mm
    path = Path(text)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SamnnError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise SamnnError(f"{path}: is not a JSON object of case names and lists of {n_dims} numbers in mm.")
    by_name = {name: checked(steps, n_dims, f"{path}, {name}") for name, steps in content.items()}

    def of(name: str) -> tuple[float, ...]:
        if name not in by_name:
            raise SamnnError(f"{path}: does not name {name}. Add its spacing.")
        return by_name[name]

    return of


def checked(steps: Any, n_dims: int, where: str) -> tuple[float, ...]:
    """A spacing in mm.

    Raises:
        SamnnError: it is none; `where` it stands is named.
    """
    try:
        spacing_mm = tuple(float(step) for step in steps) if isinstance(steps, Sequence) else ()
    except (TypeError, ValueError):
        spacing_mm = ()
    if len(spacing_mm) != n_dims or not all(_LEAST_MM <= step <= _MOST_MM for step in spacing_mm):
        example = ",".join(["0.9", "0.9", "2.5"][:n_dims])
        raise SamnnError(f"{where}: is not {n_dims} positive numbers in mm, such as {example}.")
    return spacing_mm

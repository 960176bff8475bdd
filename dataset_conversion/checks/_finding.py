"""Finding: which file, what is wrong with it, what to do, and how it is mended where that loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Severity(str, Enum):
    """How bad a finding is."""

    error = "error"  # nnU-Net would stop, or train on wrong data without a word
    warning = "warning"  # may be meant: look at it


@dataclass(frozen=True)
class Fix:
    """A change that loses nothing: in words, and the function that makes it."""

    words: str
    make: Callable[[], None]
    renames: bool = False  # made last: the other changes know the file by its old name


@dataclass(frozen=True)
class Finding:
    """One thing to mend or to look at."""

    severity: Severity
    path: Path
    wrong: str
    cure: str
    fix: Fix | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.wrong}. {self.cure}."


def error(path: Path, wrong: str, cure: str, fix: Fix | None = None) -> Finding:
    """A finding with which nnU-Net would stop, or train on wrong data without a word."""
    return Finding(Severity.error, path, wrong, cure, fix)


def warning(path: Path, wrong: str, cure: str, fix: Fix | None = None) -> Finding:
    """A finding that may be meant."""
    return Finding(Severity.warning, path, wrong, cure, fix)


def some(names: list[str], most: int = 8) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

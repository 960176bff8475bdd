"""Hashes that name contents: of a file, of this room's code, of all that the numbers of a set of cases depend on."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

from .cases import CaseSet


def key_of_cases(case_set: CaseSet, **settings: object) -> str:
    """A hash of everything that numbers of these cases depend on: the bytes of every file, the settings, the code."""
    source = case_set.labels_source
    content = {
        "code": key_of_code(),
        "settings": settings,
        "labels": key_of_file(source) if source else None,
        "paths": [str(case_set.reference.absolute()), str(case_set.prediction.absolute())],
        "cases": [
            (case.name, key_of_file(case.reference), key_of_file(case.prediction)) for case in case_set.cases
        ],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@cache
def key_of_code() -> str:
    """A hash of every source file of this room."""
    room = Path(__file__).parent
    return hashlib.sha256("".join(map(key_of_file, sorted(room.rglob("*.py")))).encode()).hexdigest()


def key_of_file(path: Path) -> str:
    """The SHA-256 of its bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

"""A small SegTHOR folder to convert, and the installed command to convert it with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from small_thorax import command, save, tamper, thorax


@pytest.fixture(scope="module", autouse=True)
def without_folders_of_nnunet() -> Iterator[None]:
    """No nnUNet_ variable of the user's, or of other tests in this process, says where folds are written."""
    found = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("nnUNet_")}
    yield
    os.environ |= found


@pytest.fixture
def segthor(tmp_path: Path) -> Path:
    """A course copy of two training patients and one test patient: Patient_01 displaced, Patient_02 not."""
    source = tmp_path / "source"
    for name, heart_z, is_displaced in [("Patient_01", 25, True), ("Patient_02", 24, False)]:
        image, labels = thorax(heart_z)
        save(source / "train" / name / f"{name}.nii.gz", image)
        save(source / "train" / name / "GT.nii.gz", tamper(labels) if is_displaced else labels)
    save(source / "test" / "Patient_41.nii.gz", thorax(26)[0])
    return source


Samnn = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def samnn(tmp_path: Path) -> Samnn:
    """Run the installed `samnn` in a process of its own; nnUNet_raw is tmp_path/raw unless told otherwise."""

    def run(*arguments: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess:
        base = {"PATH": "/usr/bin:/bin", "nnUNet_raw": str(tmp_path / "raw"), "COLUMNS": "200"}
        return subprocess.run(
            [command(), *map(str, arguments)],
            env=base if env is None else dict(env),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run

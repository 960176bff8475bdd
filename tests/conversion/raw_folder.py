"""Copies of real raw datasets, and ways to break them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np

from samnn.dataset_conversion import checks

SMALL = ("001", "004", "006", "007", "008")  # hippocampi with integer labels


def copy_of(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def small_hippocampus(shared: Path, target: Path) -> Path:
    """Five training cases and a test case of 904."""
    source = shared / "data/Dataset904_Hippocampus"
    for name in SMALL:
        for file in (f"imagesTr/hippocampus_{name}_0000.nii.gz", f"labelsTr/hippocampus_{name}.nii.gz"):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, target / file)
    (target / "imagesTs").mkdir()
    test = sorted((source / "imagesTs").iterdir())[0]
    shutil.copyfile(test, target / "imagesTs" / test.name)
    shutil.copyfile(source / "dataset.json", target / "dataset.json")
    describe(target, numTraining=len(SMALL))
    return target


def describe(folder: Path, **changes: object) -> None:
    """Change entries of dataset.json; None takes one out."""
    path = folder / "dataset.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nibabel.load(path)
    return np.array(image.dataobj), image.affine.copy()


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    path.unlink(missing_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def found(folder: Path | str) -> set[tuple[str, str, str]]:
    """Severity, check and path below the folder of every finding."""
    report = checks.check(str(folder), workers=1)
    return {(f.severity.value, name, relative(f.path, folder)) for name, f in report.findings}


def relative(path: Path, folder: Path | str) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name

"""Label maps on disk, and the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from samnn.geometry import Grid
from samnn.io import Volume, write_volume

SPACING_MM = (1.5, 1.0, 3.0)


@pytest.fixture(scope="session")
def write_labels():
    """Write an array in (x, y, z) order as a label map; folders are made."""

    def write(path: Path, voxels: np.ndarray, *, spacing_mm=None, origin_mm=None) -> Path:
        n = voxels.ndim
        path.parent.mkdir(parents=True, exist_ok=True)
        grid = Grid(
            voxels.shape, spacing_mm or SPACING_MM[:n], origin_mm or (0.0,) * n, tuple(np.eye(n).ravel())
        )
        write_volume(path, Volume(voxels, grid))
        return path

    return write


@pytest.fixture(scope="session")
def write_dataset_json():
    """Write a dataset.json with the given labels into a folder."""

    def write(folder: Path, labels: dict, **more) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "dataset.json"
        path.write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz", **more}))
        return path

    return write


@pytest.fixture(scope="session")
def run_evaluate():
    """Run `samnn evaluate` in a process of its own."""

    def run(*arguments, env=None, cwd=None) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "samnn.cli", "evaluate", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=cwd,
            env={**os.environ, "COLUMNS": "100", **(env or {})},
        )

    return run


@pytest.fixture
def box():
    """An 20 × 16 × 12 map with a box of 10 × 8 × 6 voxels of one value, moved along x by some voxels."""

    def make(value: int = 1, *, moved: int = 0) -> np.ndarray:
        voxels = np.zeros((20, 16, 12), np.uint8)
        voxels[3 + moved : 13 + moved, 4:12, 2:8] = value
        return voxels

    return make

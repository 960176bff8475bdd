"""A toy experiment in nnU-Net's three folders, run by the commands that users type."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toy import FOLDERS, SMALL, write_toy

BIN = Path(sys.executable).parent


@pytest.fixture
def toy_folders(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Makes the three folders with a raw toy dataset below a folder, and points nnU-Net to them."""

    def make(root: Path, **sizes: int) -> Path:
        for name in FOLDERS:
            (root / name).mkdir(parents=True, exist_ok=True)
            monkeypatch.setenv(name, str(root / name))
        for name, value in SMALL.items():
            monkeypatch.setenv(name, value)
        write_toy(root / "nnUNet_raw", **sizes)
        return root

    return make


@pytest.fixture
def samnn() -> Callable[..., subprocess.CompletedProcess]:
    """Runs `samnn …` in a process of its own; fails with its output where it fails."""

    def run(*arguments: object, ok: bool = True, **env: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [str(BIN / "samnn"), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | env,
            timeout=1800,
        )
        if ok and done.returncode != 0:
            logs = [path for arg in map(str, arguments) for path in Path(arg).glob("logs/*.log")]
            ends = "\n".join(f"{path}:\n{path.read_text()[-1500:]}" for path in logs)
            pytest.fail(
                f"samnn {' '.join(map(str, arguments))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{ends}"
            )
        return done

    return run

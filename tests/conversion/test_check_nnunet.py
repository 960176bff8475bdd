"""What nnU-Net's own verification stops at, `samnn check` calls an error: asked of nnU-Net itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from raw_folder import found, small_hippocampus
from test_check import SMALL_DEFECTS, gap_in_labels, no_labels, wrong_number

ASK = """
import json, sys
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

if __name__ == "__main__":
    verdicts = {}
    for folder in sys.argv[2:]:
        try:
            verify_dataset_integrity(folder, 1)
            verdicts[folder] = ""
        except Exception as problem:
            verdicts[folder] = f"{type(problem).__name__}: {problem}"
    json.dump(verdicts, open(sys.argv[1], "w"))
"""


def nnunet_stops_at(folders: list[Path], scratch: Path) -> dict[str, str]:
    """By folder why nnU-Net stops, empty if it does not."""
    (scratch / "ask.py").write_text(ASK)
    command = [sys.executable, scratch / "ask.py", scratch / "verdicts.json", *folders]
    subprocess.run([*map(str, command)], check=True, capture_output=True, cwd=scratch)
    return json.loads((scratch / "verdicts.json").read_text())


def broken(shared: Path, scratch: Path, defects: list) -> dict[str, Path]:
    """By defect a folder that has it."""
    folders = {}
    for make in defects:
        folders[make.__name__] = small_hippocampus(shared, scratch / make.__name__ / "Dataset904_Hippocampus")
        make(folders[make.__name__])
    return folders


def has_errors(folder: Path) -> bool:
    return any(severity == "error" for severity, *_ in found(folder))


def sound(folder: Path) -> None:
    """Break nothing."""


def test_where_nnunet_stops_there_is_an_error(shared, tmp_path):
    folders = broken(shared, tmp_path, [wrong_number, no_labels, gap_in_labels])
    assert all(nnunet_stops_at([*folders.values()], tmp_path).values())
    assert all(map(has_errors, folders.values()))


@pytest.mark.slow
def test_where_there_is_no_error_nnunet_does_not_stop(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    folders = broken(shared, tmp_path, [sound, *SMALL_DEFECTS])
    without = {name: folder for name, folder in folders.items() if not has_errors(folder)}
    assert len(without) > 10
    verdicts = nnunet_stops_at([*without.values()], tmp_path)
    assert {name: verdicts[str(folder)] for name, folder in without.items()} == dict.fromkeys(without, "")

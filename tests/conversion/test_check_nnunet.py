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


def agree(shared: Path, scratch: Path, defects: list) -> dict[str, str]:
    folders = {}
    for make in defects:
        folder = small_hippocampus(shared, scratch / make.__name__ / "Dataset904_Hippocampus")
        make(folder)
        folders[make.__name__] = folder
    verdicts = nnunet_stops_at([*folders.values()], scratch)
    stops = {name: verdicts[str(folder)] for name, folder in folders.items() if verdicts[str(folder)]}
    called_errors = {
        name for name, folder in folders.items() if any(severity == "error" for severity, *_ in found(folder))
    }
    assert not stops.keys() - called_errors
    return stops


def sound(folder: Path) -> None:
    """Break nothing."""


def test_where_nnunet_stops_before_it_reads_voxels_there_is_an_error(shared, tmp_path):
    stops = agree(shared, tmp_path, [wrong_number, no_labels, gap_in_labels])
    assert stops.keys() == {"wrong_number", "no_labels", "gap_in_labels"}


@pytest.mark.slow
def test_wherever_nnunet_stops_there_is_an_error_and_it_does_not_stop_at_a_sound_folder(
    shared, tmp_path, monkeypatch
):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    stops = agree(shared, tmp_path, [sound, *SMALL_DEFECTS])
    print(*(f"{name}: {why.splitlines()[0][:100]}" for name, why in sorted(stops.items())), sep="\n")
    assert "sound" not in stops and len(stops) >= 20

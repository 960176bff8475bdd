"""`samnn doctor` sees what is wrong and says the cure."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


def doctor(*args: str, **env: str) -> subprocess.CompletedProcess:
    own = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet")}
    return subprocess.run(
        [sys.executable, "-m", "samnn.cli", "doctor", *args],
        capture_output=True,
        text=True,
        env=own | {"COLUMNS": "300", "PYTHONWARNINGS": "ignore"} | env,
    )


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    return {name: str(tmp_path / name) for name in names} | {"nnUNet_extTrainer": str(PLUGINS)}


def test_a_whole_installation_is_ready(folders: dict[str, str]) -> None:
    done = doctor(**folders)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ready to train." in done.stdout
    assert "nnUNetTrainerENet" in done.stdout and "found by nnU-Net" in done.stdout


def test_what_is_not_set_is_a_problem_with_its_cure(folders: dict[str, str]) -> None:
    done = doctor(nnUNet_raw=folders["nnUNet_raw"])
    assert done.returncode == 1
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        line = next(line for line in done.stdout.splitlines() if variable in line)
        assert "not set" in line and 'eval "$(samnn env ROOT)"' in line
    assert f"does not list {PLUGINS}" in done.stdout


def test_one_broken_file_of_others_breaks_the_lookup_and_is_named(
    folders: dict[str, str], tmp_path: Path
) -> None:
    other = tmp_path / "others"
    other.mkdir()
    (other / "broken.py").write_text("import a_module_that_is_not_there\n")
    folders["nnUNet_extTrainer"] = f"{other}{os.pathsep}{PLUGINS}"
    done = doctor(**folders)
    assert done.returncode == 1
    assert "a_module_that_is_not_there" in done.stdout


def test_a_second_copy_of_our_trainers_is_noticed(folders: dict[str, str], tmp_path: Path) -> None:
    copy = tmp_path / "older"
    copy.mkdir()
    shutil.copy(PLUGINS / "trainer_enet.py", copy)
    folders["nnUNet_extTrainer"] = f"{copy}{os.pathsep}{PLUGINS}"
    done = doctor(nnUNet_n_proc_DA="0", **folders)
    assert f"{copy} has trainer_enet.py too" in done.stdout
    assert "planning crashes" in done.stdout


def test_a_path_that_looks_like_markup_is_printed_as_it_is(folders: dict[str, str], tmp_path: Path) -> None:
    done = doctor(**folders | {"nnUNet_raw": f"{tmp_path}/a[/b]"})
    assert f"{tmp_path}/a[/b]" in done.stdout


def test_trainers_lists_names_and_suffixes() -> None:
    done = doctor("--trainers")
    assert done.returncode == 0
    for word in ("nnUNetTrainerENet", "nnUNetTrainerUNet", "_<N>epochs", "_seed<N>", "_GDL", "2D and 3D"):
        assert word in done.stdout

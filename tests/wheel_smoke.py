"""Tries an installed wheel, alone, in an empty folder: `python -I SOURCE/tests/wheel_smoke.py`, without pytest."""

from __future__ import annotations

import configparser
import csv
import importlib
import importlib.metadata
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TRAINERS = ["nnUNetTrainerENet", "nnUNetTrainerUNet", "nnUNetTrainerENet_GDL_5epochs_seed1"]


def the_installed_samnn_is_the_wheel():
    import samnn

    assert Path(samnn.__file__).is_relative_to(sys.prefix), samnn.__file__
    assert not any(Path(entry or ".").resolve() == SOURCE for entry in sys.path), sys.path
    assert importlib.metadata.version("samnn") == samnn.__version__


def every_file_of_every_room_is_in_the_wheel():
    setup = configparser.ConfigParser()
    setup.read(SOURCE / "setup.cfg", encoding="utf-8")
    for line in setup["options"]["package_dir"].strip().splitlines():
        package, folder = (part.strip() for part in line.split("="))
        installed = Path(importlib.import_module(package).__file__).parent
        missing = [
            path
            for path in sorted((SOURCE / folder).rglob("*"))
            if path.is_file()
            and not (
                (copy := installed / path.relative_to(SOURCE / folder)).is_file()
                and copy.read_bytes() == path.read_bytes()
            )
        ]
        assert not missing, f"not in the wheel, or other there: {', '.join(map(str, missing))}"


def every_module_of_every_room_imports():
    import samnn

    def stop(name: str) -> None:
        raise ImportError(f"{name} cannot be imported")

    names = [module.name for module in pkgutil.walk_packages(samnn.__path__, "samnn.", onerror=stop)]
    assert {"samnn.nn.enet", "samnn.plugins", "samnn.evaluation3d.metrics"} <= set(names), names
    for name in names:
        importlib.import_module(name)


def the_command_answers():
    for arguments in ["--help", "--version", "evaluate --help", "convert --help"]:
        run(f"samnn {arguments}")


def nnunet_finds_the_trainers():
    find = (
        "import sys; from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find; "
        "print([find(name).__name__ for name in sys.argv[1:]])"
    )
    shown = run(f"eval \"$(samnn env)\"; python -c '{find}' {' '.join(TRAINERS)}")
    assert str(TRAINERS) in shown, shown


def evaluate_writes_a_dice_that_is_known_by_hand():
    """A cube of 4 voxels, predicted one voxel too far along x: 2 · 48 / (64 + 64) = 0.75."""
    import SimpleITK

    for folder, start in [("reference", 2), ("predicted", 3)]:
        Path(folder).mkdir()
        labels = np.zeros((10, 10, 10), np.uint8)  # z, y, x
        labels[2:6, 2:6, start : start + 4] = 1
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(labels), f"{folder}/cube.nii.gz")
    Path("dataset.json").write_text('{"labels": {"background": 0, "cube": 1}, "file_ending": ".nii.gz"}')
    run("samnn evaluate reference predicted --labels dataset.json -o out")
    with open("out/metrics.csv", encoding="utf-8") as table:
        dice = [float(row["value"]) for row in csv.DictReader(table) if row["metric"] == "dice"]
    assert dice == [0.75], dice


def run(script: str) -> str:
    """Run a line of bash with the wheel's commands first on PATH; its output."""
    shown = subprocess.run(
        ["bash", "-c", f'PATH="{BIN}:$PATH"; {script}'],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, f"{script}\n{shown.stdout}\n{shown.stderr}"
    return shown.stdout


if __name__ == "__main__":
    for check in [
        the_installed_samnn_is_the_wheel,
        every_file_of_every_room_is_in_the_wheel,
        every_module_of_every_room_imports,
        the_command_answers,
        nnunet_finds_the_trainers,
        evaluate_writes_a_dice_that_is_known_by_hand,
    ]:
        check()
        print(f"ok: {check.__name__.replace('_', ' ')}", flush=True)

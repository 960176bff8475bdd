"""Runs nnU-Net's own fingerprint, planning and 2D preprocessing where they are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from samnn.errors import SamnnError
from samnn.planning.method import PARENT
from samnn.planning.plans_file import PLANNERS


def preprocess(folder: Path, base: str) -> None:
    """Make the fingerprint, the plans `base` and the data of their 2d configuration, each unless it is there.

    Raises:
        SamnnError: the plans are missing and none that nnU-Net makes; one of its commands failed.
    """
    number = str(int(folder.name[7:10]))
    plans = folder / f"{base}.json"
    if not plans.is_file() and base not in PLANNERS:
        raise SamnnError(
            f"{plans}: does not exist, and --preprocess makes {', '.join(PLANNERS)} alone. Plan it yourself."
        )
    if not (folder / "dataset_fingerprint.json").is_file():
        _run("extract_fingerprint", "-d", number, "--verify_dataset_integrity")
    if not plans.is_file():
        _run("plan_experiment", "-d", number, "-pl", PLANNERS[base])
    if not is_preprocessed(folder, base):
        _run("preprocess", "-d", number, "-plans_name", base, "-c", PARENT)


def is_preprocessed(folder: Path, base: str) -> bool:
    """Whether there are cases of the 2d configuration; `samnn doctor -d …` says whether it is all of them."""
    data = folder / PlansManager(str(folder / f"{base}.json")).get_configuration(PARENT).data_identifier
    if not data.is_dir():
        return False
    try:
        return bool(infer_dataset_class(str(data)).get_identifiers(str(data)))
    except (AssertionError, KeyError):  # an empty folder, or files of others
        return False


def _run(step: str, *arguments: str) -> None:
    """A command of nnU-Net's, in a process of its own: its pools must not be forked from one that has used torch."""
    command = [str(Path(sys.executable).with_name(f"nnUNetv2_{step}")), *arguments]
    if subprocess.run(command).returncode:
        raise SamnnError(f"nnUNetv2_{step} {' '.join(arguments)} failed; what it printed says why.")

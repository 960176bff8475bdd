"""Runs nnU-Net's own fingerprint, planning and 2D preprocessing where they are missing."""

from __future__ import annotations

from pathlib import Path

import nnunetv2
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprint_dataset,
    plan_experiment_dataset,
    preprocess_dataset,
)
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from samnn.errors import SamnnError
from samnn.planning.method import PARENT

PLANNERS = {  # name of plans → nnU-Net's planner that writes them by default
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}


def preprocess(folder: Path, base: str) -> None:
    """Make the fingerprint, the plans `base` and the data of their 2d configuration, each unless it is there.

    Raises:
        SamnnError: the plans are missing and none that nnU-Net makes.
    """
    number = int(folder.name[7:10])
    if not (folder / "dataset_fingerprint.json").is_file():
        extract_fingerprint_dataset(number, check_dataset_integrity=True)
    plans = folder / f"{base}.json"
    if not plans.is_file():
        if base not in PLANNERS:
            raise SamnnError(
                f"{plans}: does not exist, and --preprocess makes {', '.join(PLANNERS)} alone. Plan it yourself."
            )
        package = str(Path(nnunetv2.__path__[0], "experiment_planning"))
        planner = recursive_find_python_class(package, PLANNERS[base], "nnunetv2.experiment_planning")
        plan_experiment_dataset(number, planner)
    if not is_preprocessed(folder, base):
        preprocess_dataset(number, base, configurations=(PARENT,), num_processes=[8])


def is_preprocessed(folder: Path, base: str) -> bool:
    """Whether there are cases of the 2d configuration; `samnn doctor -d …` says whether it is all of them."""
    data = folder / PlansManager(str(folder / f"{base}.json")).get_configuration(PARENT).data_identifier
    if not data.is_dir():
        return False
    try:
        return bool(infer_dataset_class(str(data)).get_identifiers(str(data)))
    except (AssertionError, KeyError):  # an empty folder, or files of others
        return False

"""What a model folder holds: read without running code that may be in it."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from samnn import environment
from samnn.errors import SamnnError

_IN_CHECKPOINTS = [  # what nnU-Net's checkpoints hold besides tensors and plain Python: the numbers of its log
    np._core.multiarray.scalar if hasattr(np, "_core") else np.core.multiarray.scalar,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float16", "float32", "float64")),
]


@dataclass(frozen=True)
class Model:
    """A trained model: one network, and the weights of each fold. The names are nnU-Net's."""

    network: nn.Module
    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    parameters: list[dict[str, Any]]
    dataset_json: dict[str, Any]
    trainer_name: str
    inference_allowed_mirroring_axes: tuple[int, ...] | None


def read_model(
    folder: str | Path, folds: Sequence[int | str] | None, checkpoint_name: str, *, trust: bool = False
) -> Model:
    """Read `Trainer__Plans__configuration`, of whatever trainer; `folds` None means all that are there.

    Raises:
        SamnnError: it is no model folder, a fold is missing, a checkpoint is damaged or holds what may run code
            (unless `trust`), its trainer is not installed, its weights are of another network.
    """
    folder = Path(folder)
    plans, dataset = (read_json(folder / name) for name in ("plans.json", "dataset.json"))
    paths = [
        folder / f"fold_{fold}" / checkpoint_name
        for fold in folds or _finished_folds(folder, checkpoint_name)
    ]
    missing = [path.parent.name for path in paths if not path.is_file()]
    if missing or not paths:
        found = ", ".join(_finished_folds(folder, checkpoint_name)) or "none"
        raise SamnnError(
            f"{folder}: has no {checkpoint_name} in {', '.join(missing) or 'any fold'}; folds that have one: {found}. "
            "Name the folds with -f, another checkpoint with -chk."
        )
    checkpoints = [read_checkpoint(path, trust=trust) for path in paths]
    first = checkpoints[0]
    manager = PlansManager(plans)
    configuration = manager.get_configuration(first["init_args"]["configuration"])
    network = build_network(find_trainer(first["trainer_name"]), manager, configuration, dataset)
    try:
        network.load_state_dict(first["network_weights"])
    except RuntimeError as error:
        raise SamnnError(
            f"{paths[0]}: its weights are not those of the network that {first['trainer_name']} builds from plans.json: "
            f"{str(error).splitlines()[-1].strip()} Is the folder a mixture?"
        ) from error
    return Model(
        network,
        manager,
        configuration,
        [checkpoint["network_weights"] for checkpoint in checkpoints],
        dataset,
        first["trainer_name"],
        first.get("inference_allowed_mirroring_axes"),
    )


def build_network(
    trainer: Any, plans: PlansManager, configuration: ConfigurationManager, dataset: dict[str, Any]
) -> nn.Module:
    """The network that nnU-Net's predictor would build."""
    channels = determine_num_input_channels(plans, configuration, dataset)
    classes = plans.get_label_manager(dataset).num_segmentation_heads
    if "plans_manager" in inspect.signature(trainer.build_network_architecture).parameters:
        given = (plans, configuration)
    else:  # as before nnU-Net 2.8
        given = (
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
        )
    return trainer.build_network_architecture(*given, channels, classes, enable_deep_supervision=False)


def find_trainer(name: str) -> type[nnUNetTrainer]:
    """nnU-Net's lookup, which also sees our trainers whether or not the environment lists them.

    Raises:
        SamnnError: there is no such trainer.
    """
    os.environ.update(environment.settings(os.environ).variables)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise SamnnError(
            f"The model was trained by {name}, which is not installed here. Put the folder of its file on "
            "nnUNet_extTrainer."
        ) from error


def read_checkpoint(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """A checkpoint of nnU-Net's or ours.

    Raises:
        SamnnError: it is damaged, or holds what may run code and `trust` is not set.
    """
    if path.is_file() and not zipfile.is_zipfile(path):
        raise SamnnError(f"{path}: is no checkpoint of torch. Is it whole? Copy it again.")
    try:
        with torch.serialization.safe_globals(_IN_CHECKPOINTS):
            content = torch.load(path, map_location="cpu", weights_only=not trust, mmap=True)
    except Exception as error:  # torch raises most things, depending on what is wrong
        said = str(error)
        if "GLOBAL " in said:
            found = said.partition("GLOBAL ")[2].split()[0]
            raise SamnnError(
                f"{path}: holds {found} besides tensors and numbers. Such files can run code when they are read. If you "
                "know where it comes from, add --trust."
            ) from error
        raise SamnnError(
            f"{path}: cannot be read as a checkpoint of nnU-Net's: {(said.splitlines() or [''])[0]} Is it whole?"
        ) from error
    needed = ("network_weights", "trainer_name", "init_args")
    if not isinstance(content, dict) or any(key not in content for key in needed):
        raise SamnnError(f"{path}: is no checkpoint of nnU-Net's: it lacks one of {', '.join(needed)}.")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model folder.

    Raises:
        SamnnError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SamnnError(
            f"{path}: not found. Name a results folder of nnU-Net (Trainer__Plans__configuration)."
        ) from error
    except ValueError as error:
        raise SamnnError(
            f"{path}: is no JSON ({error}). Copy it again from where the model was trained."
        ) from error


def _finished_folds(folder: Path, checkpoint_name: str) -> list[str]:
    """The folds that have the checkpoint; a fold on all data only where it is the only one."""
    names = sorted(
        path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint_name}")
    )
    return [name for name in names if name != "all"] or names

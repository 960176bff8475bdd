"""SamnnPlanner: existing nnU-Net plans, and a configuration for each of our networks beside them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from samnn.atomic import whole_file
from samnn.environment import dataset_there, our_trainers
from samnn.errors import SamnnError
from samnn.planning.costs import FITTED_ON
from samnn.planning.measure import real_step
from samnn.planning.method import GIB, PARENT, Choice, Cost, Method, Wishes, backbones, takes_rank
from samnn.planning.plans_file import joined, read_base
from samnn.planning.slices import read_slices
from samnn.planning.verify import check_names, verify
from samnn.training.base import SamnnTrainer
from samnn.training.steps import OUR_KEY


class SamnnPlanner(ExperimentPlanner):
    """Plans `plans_name` from the plans `base`, which stay as they are; the arguments before `base` are nnU-Net's.

    Everything that decides about preprocessing is the base's, so nothing is preprocessed again.

    Args:
        base: name of the plans to add to.
        wishes: what the planner does not choose; None: nothing but `gpu_memory_target_in_gb`.
        only: names of methods (samed, enet, …); empty: all.
        device: on which candidates are measured instead of estimated; None: estimates alone.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "samnnPlans",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
        *,
        base: str = "nnUNetPlans",
        wishes: Wishes | None = None,
        only: Collection[str] = (),
        device: torch.device | None = None,
    ) -> None:
        self.folder = preprocessed_folder(dataset_name_or_id)
        if overwrite_target_spacing is not None:
            raise SamnnError(
                "The spacing is that of the plans ours are added to: plan those with it, nnUNetv2_plan_experiment "
                "-overwrite_target_spacing … -overwrite_plans_name NAME, and then samnn plan -p NAME."
            )
        if plans_name == base:
            raise SamnnError(f"{base}: would be overwritten. Choose another --name.")
        self.base, self.base_plans = base, read_base(self.folder, base)
        self.wishes = wishes or Wishes(gpu_memory_gib=gpu_memory_target_in_gb)
        self.measure_on = device
        self.trainers = chosen_trainers(only, self.wishes)
        if not (self.folder / "dataset_fingerprint.json").is_file():
            raise SamnnError(
                f"{self.folder}: has no dataset_fingerprint.json. Make it: nnUNetv2_extract_fingerprint -d "
                f"{int(self.folder.name[7:10])}, or add --preprocess."
            )
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )

    @property
    def path(self) -> Path:
        """The file to write."""
        return self.folder / f"{self.plans_identifier}.json"

    @cached_property
    def methods(self) -> list[Method]:
        """Each trainer with this dataset.

        Raises:
            SamnnError: the base plans cannot serve.
        """
        plans = PlansManager(self.base_plans)
        if PARENT not in plans.available_configurations:
            raise SamnnError(
                f"{self.base}: refused by the rule of one preprocessing: it has no configuration {PARENT} for ours to inherit "
                f"from, only {', '.join(plans.available_configurations)}. Plan one: nnUNetv2_plan_experiment."
            )
        configuration = plans.get_configuration(PARENT)
        if len(configuration.patch_size) != 2:
            raise SamnnError(
                f"{self.base}: refused by the rule of 2D patches: its {PARENT} has patches {configuration.patch_size}."
            )
        check_names(plans)
        slices = read_slices(self.folder, plans, configuration)
        return [Method(trainer, plans, self.dataset_json, slices, self.wishes) for trainer in self.trainers]

    @cached_property
    def choices(self) -> list[Choice]:
        """What is chosen for each of the methods."""
        return [
            self._measured_choice(method) if self.measure_on else method.choose() for method in self.methods
        ]

    def plan_experiment(self) -> dict[str, Any]:
        """nnU-Net's entry: choose, and write the plans once each configuration was built from them; → the plans."""
        content, _ = self.content()
        if not self.unchanged(content):
            with whole_file(self.path) as part:
                part.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
                verify(part, [method for method in self.methods if self._is_ours(method, content)])
        self.plans = content
        return content

    def content(self) -> tuple[dict[str, Any], list[str]]:
        """The plans as they will be, and the configurations in them that are a person's."""
        pairs = zip(self.methods, self.choices, strict=True)
        ours = {
            method.trainer.planned.configuration: self._configuration(method, choice)
            for method, choice in pairs
        }
        return joined(self.path, self.base, self.base_plans, ours)

    def unchanged(self, content: dict[str, Any]) -> bool:
        """Whether the file holds that already."""
        return self.path.is_file() and PlansManager(str(self.path)).plans == content

    def cost(self, method: Method, choice: Choice) -> Cost | None:
        """Measured where that was asked for, else estimated; None: out of memory."""
        if self.measure_on is not None and choice not in method.measured:
            name = method.trainer.planned.configuration
            plans = {**self.base_plans, "plans_name": self.plans_identifier}
            plans["configurations"] = {**plans["configurations"], name: method.configuration(choice)}
            step = real_step(method.trainer, plans, name, self.dataset_json, self.measure_on)
            method.measured[choice] = step and Cost(step.peak_bytes, step.seconds)
        return method.cost(choice)

    def _measured_choice(self, method: Method) -> Choice:
        """The choice that is still one after it was measured."""
        while True:
            choice = method.choose()
            if choice in method.measured:
                return choice
            self.cost(method, choice)

    def _configuration(self, method: Method, choice: Choice) -> dict[str, Any]:
        """As the plans have it, with what a training step of it costs."""
        configuration, cost = method.configuration(choice), self.cost(method, choice)
        device = self.measure_on.type if self.measure_on is not None else FITTED_ON
        configuration[OUR_KEY]["step"] = {
            "device": device,
            "measured": self.measure_on is not None,
            "seconds": float(f"{cost.seconds:.2g}"),
            "gib": float(f"{cost.peak_bytes / GIB:.2g}"),
        }
        return configuration

    def _is_ours(self, method: Method, content: dict[str, Any]) -> bool:
        return method.trainer.planned.configuration in content["samnn"]["wrote"]


def chosen_trainers(only: Collection[str], wishes: Wishes) -> list[type[SamnnTrainer]]:
    """The trainers to plan for.

    Raises:
        SamnnError: an unknown method; a wish that none of them can fulfil.
    """
    planned = {trainer.planned.name: trainer for trainer in our_trainers() if trainer.planned is not None}
    unknown = [name for name in only if name not in planned]
    if unknown:
        raise SamnnError(f"--only {unknown[0]}: there is no such method, there are {', '.join(planned)}.")
    trainers = [trainer for name, trainer in planned.items() if not only or name in only]
    known = [name for trainer in trainers for name in backbones(trainer)]
    for backbone in wishes.backbones:
        if backbone not in known:
            there = f"there are {', '.join(known)}" if known else "they have none to choose"
            raise SamnnError(f"--backbone {backbone}: not one of the planned methods'; {there}.")
    for trainer in trainers:
        asked = [name for name in wishes.backbones if name in backbones(trainer)]
        if len(asked) > 1:
            said = " and ".join(asked)
            raise SamnnError(f"--backbone {said}: both of {trainer.planned.configuration}. Name one of them.")
    if wishes.rank is not None and not any(map(takes_rank, trainers)):
        raise SamnnError("--rank: none of the planned methods has LoRA.")
    if wishes.image_size is not None and not any(trainer.planned.resizes for trainer in trainers):
        raise SamnnError("--image-size: none of the planned methods resizes its patches.")
    return trainers


def preprocessed_folder(dataset: str | int) -> Path:
    """A dataset's folder among the preprocessed.

    Raises:
        SamnnError: nnU-Net's folders are not set, or there is no such dataset.
    """
    for folder in (nnUNet_raw, nnUNet_preprocessed):
        if not folder:
            raise SamnnError(f'{folder.env_var_name} is not set: eval "$(samnn env ROOT)"')
    return Path(nnUNet_preprocessed.require(), dataset_there(str(dataset)))

"""The options that decide where training patches are taken from, and the report of what the patches held."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import distributed as dist

from samnn.atomic import write_json
from samnn.errors import SamnnError
from samnn.training.base import SamnnTrainer
from samnn.training.occupancy import occupancy_of
from samnn.training.sampled_loader import ClassKey, SampledLoader


class PatchSampling(SamnnTrainer):
    """What both options share: the loader, its index, and the realised shares in log, logger and sampling.json."""

    numbered_batches = True

    def background_acceptance(self, epoch: int) -> float:
        """The probability of keeping a free patch without foreground; 1 is nnU-Net's rule."""
        return 1.0

    def forced_class_weights(self, voxels: Mapping[str, int]) -> dict[str, float]:
        """Class → its weight among the classes that forced patches draw from; equal ones are nnU-Net's rule.

        voxels: how many each class has in the training cases.
        """
        return dict.fromkeys(voxels, 1.0)

    def training_loader(self, loader: nnUNetDataLoader) -> SampledLoader:
        """Our hook: nnU-Net's loader with our rules for places."""
        results = Path(self.output_folder_base).parent  # shared by all folds and trainers of the dataset
        occupancy = occupancy_of(
            Path(self.preprocessed_dataset_folder),
            self.dataset_class,
            labels=[label for label in self.label_manager.all_labels if label != 0],
            patch_dims=len(self.configuration_manager.patch_size),
            places=[Path(self.preprocessed_dataset_folder_base), results],
            tell=self.print_to_log_file,
        )
        classes = self._classes()
        voxels = {
            name: occupancy.voxels(loader.indices, key if isinstance(key, tuple) else (key,))
            for name, key in classes.items()
        }
        self.effective_class_weights = self.forced_class_weights(voxels)
        return SampledLoader.made_of(
            loader,
            occupancy,
            classes=list(classes.values()),
            acceptance=[self.background_acceptance(epoch) for epoch in range(self.num_epochs)],
            class_weights=[self.effective_class_weights[name] for name in classes],
        )

    def _classes(self) -> dict[str, ClassKey]:
        """Name → key in `class_locations`, background and ignore label left out."""
        manager = self.label_manager
        keys = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        names = [
            name
            for name, value in manager.label_dict.items()
            if name != "ignore" and value not in (0, [0], (0,))
        ]
        if not manager.has_regions:  # nnU-Net sorts labels, and keeps regions as they are written
            names.sort(key=lambda name: np.ravel(manager.label_dict[name])[0])
        return {
            name: key if isinstance(key, tuple) else int(key) for name, key in zip(names, keys, strict=True)
        }

    def train_step(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """nnU-Net's hook; the step's outputs, which checkpoints keep, take the counts of the batch along."""
        return super().train_step(batch) | {"patch_counts": batch["patch_counts"]}

    def on_train_epoch_end(self, train_outputs: list[dict[str, np.ndarray]]) -> None:
        """nnU-Net's hook; says what the patches of the epoch held, over all ranks."""
        counts = over_ranks(np.sum([output["patch_counts"] for output in train_outputs], axis=0))
        self._log_shares(counts)
        super().on_train_epoch_end(
            [{k: v for k, v in output.items() if k != "patch_counts"} for output in train_outputs]
        )

    def _log_shares(self, counts: np.ndarray) -> None:
        names = list(self._classes())
        n_patches, n_background, by_class = int(counts[0]), int(counts[1]), counts[2:].reshape(2, len(names))
        n_forced = max(int(by_class[1].sum()), 1)
        shares = {
            "background_only_share": n_background / n_patches,
            "class_shares": [int(n) / n_patches for n in by_class[0]],
            "forced_class_shares": [int(n) / n_forced for n in by_class[1]],
        }
        logged = self.logger.local_logger.my_fantastic_logging
        for key, value in shares.items():
            logged.setdefault(key, [None] * self.current_epoch)  # a checkpoint of another trainer has none
            self.logger.log(key, value, self.current_epoch)
        if self.local_rank != 0:
            return

        def listed(values: list[float]) -> str:
            return ", ".join(f"{name} {value:.1%}" for name, value in zip(names, values, strict=True))

        acceptance = self.background_acceptance(self.current_epoch)
        self.print_to_log_file(
            f"{n_patches} patches: {shares['background_only_share']:.1%} without foreground (kept with probability "
            f"{acceptance:.3f}); with {listed(shares['class_shares'])}; "
            f"{int(by_class[1].sum())} forced on {listed(shares['forced_class_shares'])}"
        )
        epochs = [
            {"epoch": epoch, "acceptance": self.background_acceptance(epoch)}
            | {key: logged[key][epoch] for key in shares}
            for epoch in range(self.current_epoch + 1)
        ]
        write_json(Path(self.output_folder) / "sampling.json", {"classes": names, "epochs": epochs})

    def settings(self) -> dict[str, dict[str, Any]]:
        """Ours, and the weights by which forced patches draw their class."""
        weights = {"value": self.effective_class_weights, "source": self._source("forced_class_weights")}
        return super().settings() | {"class_weights": weights}


class AdaptiveSampler(PatchSampling):
    """A curriculum from organs to the whole body: patches without foreground are kept more and more often.

    With t = epoch / epochs, counted from 0, `acceptance_schedule` chooses the probability of keeping one: "linear" t
    (as published), "cosine" (1 − cos πt) / 2, "step" 0 and from t = `acceptance_step` on 1, "constant"
    `acceptance_constant`. What exactly it means for a patch: `SampledLoader`. Validation batches are nnU-Net's.
    """

    acceptance_schedule: str = "linear"
    acceptance_step: float = 0.5
    acceptance_constant: float = 0.5

    def background_acceptance(self, epoch: int) -> float:
        """The probability in `epoch`.

        Raises:
            SamnnError: no such schedule, or a constant that is no probability.
        """
        t = epoch / self.num_epochs
        schedules = {
            "linear": t,
            "cosine": (1 - math.cos(math.pi * t)) / 2,
            "step": float(t >= self.acceptance_step),
            "constant": self.acceptance_constant,
        }
        if self.acceptance_schedule not in schedules:
            raise SamnnError(
                f"{type(self).__name__}: acceptance_schedule is {self.acceptance_schedule!r}; "
                f"use one of {', '.join(schedules)}."
            )
        if not 0 <= self.acceptance_constant <= 1:
            raise SamnnError(
                f"{type(self).__name__}: acceptance_constant is {self.acceptance_constant}; "
                "use a probability from 0 to 1."
            )
        return schedules[self.acceptance_schedule]

    def settings(self) -> dict[str, dict[str, Any]]:
        """Ours, and the schedule."""
        names = ["acceptance_schedule"]
        if self.acceptance_schedule in ("step", "constant"):
            names.append(f"acceptance_{self.acceptance_schedule}")
        return super().settings() | {
            name: {"value": getattr(self, name), "source": self._source(name)} for name in names
        }


class ClassBalanced(PatchSampling):
    """Forced-foreground patches draw the class by weights: rare ones more often, organs as thin as the esophagus.

    `class_weights` is None for inverse frequency, 1 / voxels of the class in the training cases; or a positive weight
    for every class or region by its name in dataset.json. They count relative to those of the classes that the drawn
    case has; equal ones are nnU-Net's own rule.
    """

    class_weights: Mapping[str, float] | None = None

    def forced_class_weights(self, voxels: Mapping[str, int]) -> dict[str, float]:
        """The weights, scaled to a sum of 1.

        Raises:
            SamnnError: `class_weights` does not name every class and no other, or has a weight that is not positive.
        """
        given = self.class_weights
        if given is None:
            given = {
                name: 1 / n if n else 0.0 for name, n in voxels.items()
            }  # never drawn where there is none
        elif given.keys() != voxels.keys() or not all(0 < weight < math.inf for weight in given.values()):
            raise SamnnError(
                f"{type(self).__name__}: class_weights is {dict(given)}; give every one of {', '.join(voxels)} a "
                "positive weight."
            )
        total = sum(given.values())
        return {name: given[name] / total for name in voxels}


def over_ranks(counts: np.ndarray) -> np.ndarray:
    """The sum of `counts` over all processes of a distributed training; without one, `counts`."""
    if not (dist.is_available() and dist.is_initialized()):
        return counts
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, counts)
    return np.sum(everyone, axis=0)

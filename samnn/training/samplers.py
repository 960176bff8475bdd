"""Where training patches are taken from: fewer empty ones early on, and rare classes as often as common ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import distributed as dist

from samnn.atomic import write_json
from samnn.errors import SamnnError
from samnn.training.base import SamnnTrainer
from samnn.training.occupancy import Occupancy, occupancy_of

MOST_DRAWS = 1000
ClassKey = (
    int | tuple[int, ...]
)  # nnU-Net's name of a class in `class_locations`: a label, or a region's labels


class SampledLoader(nnUNetDataLoader):
    """nnU-Net's training loader with two rules of ours for the place of a patch in its case.

    nnU-Net draws the cases of a batch (uniformly, with replacement) and forces the last samples of the batch
    (`oversample_foreground_percent`, a third) on foreground; the others are free. All that stays.

    *A free sample.* Let q be nnU-Net's own distribution of places in the case: uniform; with an ignore label, around
    one of the annotated voxels it has stored. A place without foreground is kept with probability a, the acceptance
    of the batch's epoch; otherwise another is drawn from q in the same case, and so on. So

        P(place) ∝ q(place) · (1 with foreground, a without),

    and where a share b of the places is without foreground, a share a·b / (1 − b + a·b) of the kept ones is. In a case
    without any foreground every place is kept. After 1000 rejected places in a row (only where a is about 0 and hardly
    any place has foreground) the sample is placed as a forced one.

    *A forced sample* is never rejected. Its class is drawn among those present in the case with probabilities
    proportional to `class_weights` (equal ones are nnU-Net's rule), its place is nnU-Net's: around a stored voxel of
    that class, which may be a subsample, since it only has to be fair. It always has foreground, so patches without
    come from the free samples, and, in cases without any foreground, which nnU-Net places freely, from all.

    *Foreground* is every label but background and ignore; with regions, every label of any region. In a cascade the
    reference decides, the segmentation of the previous stage has no say.

    *The box that decides* is the central part of the drawn one that has the final patch size. nnU-Net draws a larger
    box, so that rotation and scaling do not run out of image; samples that are neither rotated nor scaled (64 %) are
    exactly that central part, the others about it. The larger box would call a patch foreground for what the
    network mostly never sees: in 3D it has several times the volume. Boxes reach over the borders of a case; there is
    nothing there. The box is rounded to the blocks of the index (`Occupancy.labels_in`): a patch that counts
    as without foreground has none; in a 3D patch, and across a 2D one, foreground up to 7 voxels outside may count.

    Batches carry `patch_counts`, so that what is reported is what was trained on, whatever made it: patches,
    those without foreground, those that hold each class, and those forced on each class.
    """

    epoch = 0  # set by SeededBatches: of the training that will use the batch

    @classmethod
    def made_of(
        cls,
        loader: nnUNetDataLoader,
        occupancy: Occupancy,
        *,
        classes: Sequence[ClassKey],
        acceptance: Sequence[float],
        class_weights: Sequence[float],
    ) -> SampledLoader:
        """Turn nnU-Net's loader into ours, with all its settings: it is built where no hook reaches.

        classes: keys of `class_locations`; class_weights: one a class, positive; acceptance: one an epoch, in [0, 1].
        """
        loader.__class__ = cls
        loader.occupancy = occupancy
        loader.classes = list(classes)
        loader.class_bits = np.stack(
            [occupancy.bits(key if isinstance(key, tuple) else (key,)) for key in classes]
        )
        loader.acceptance = list(acceptance)
        loader.class_weights = np.asarray(class_weights, float)
        loader.margin = [
            p // 2 - f // 2 for p, f in zip(loader.patch_size, loader.final_patch_size, strict=True)
        ]
        return loader

    def get_indices(self) -> Sequence[str]:
        """nnU-Net's hook: the cases of a batch, whose places `get_bbox` is then asked for one by one."""
        cases = super().get_indices()
        self._cases: Iterator[str] = iter(cases)
        return cases

    def generate_train_batch(self) -> dict[str, Any]:
        """nnU-Net's hook: a batch, and what it holds as `patch_counts`."""
        self._counts = np.zeros(2 + 2 * len(self.classes), np.int64)
        return super().generate_train_batch() | {"patch_counts": self._counts}

    def get_bbox(
        self,
        data_shape: Sequence[int],
        force_fg: bool,
        class_locations: Mapping[ClassKey, Any],
        overwrite_class: ClassKey | None = None,
        verbose: bool = False,
    ) -> tuple[list[int], list[int]]:
        """nnU-Net's hook: first voxel and end of the box to draw, by the rules above."""
        case = next(self._cases)
        if not self.occupancy.has_foreground(case):
            box = super().get_bbox(data_shape, force_fg, class_locations)
        elif force_fg:
            drawn = self._draw_class(class_locations)
            self._counts[2 + len(self.classes) + drawn] += 1
            box = super().get_bbox(data_shape, True, class_locations, self.classes[drawn])
        else:
            box = self._accepted_box(case, data_shape, class_locations)
        self._count(self._labels_in(case, box))
        return box

    def _accepted_box(
        self, case: str, data_shape: Sequence[int], class_locations: Mapping[ClassKey, Any]
    ) -> tuple[list[int], list[int]]:
        acceptance = self.acceptance[min(self.epoch, len(self.acceptance) - 1)]
        for _ in range(MOST_DRAWS):
            box = super().get_bbox(data_shape, False, class_locations)
            if acceptance == 1 or self._labels_in(case, box).any() or np.random.uniform() < acceptance:
                return box
        drawn = self._draw_class(class_locations)
        return super().get_bbox(data_shape, True, class_locations, self.classes[drawn])

    def _labels_in(self, case: str, box: tuple[list[int], list[int]]) -> np.ndarray:
        first = [b + m for b, m in zip(box[0], self.margin, strict=True)]
        return self.occupancy.labels_in(
            case, first, [f + size for f, size in zip(first, self.final_patch_size, strict=True)]
        )

    def _draw_class(self, class_locations: Mapping[ClassKey, Any]) -> int:
        present = [i for i, key in enumerate(self.classes) if len(class_locations[key]) > 0]
        up_to = np.cumsum(self.class_weights[present])
        return present[int(np.searchsorted(up_to, np.random.uniform() * up_to[-1], side="right"))]

    def _count(self, labels: np.ndarray) -> None:
        self._counts[0] += 1
        if labels.any():
            self._counts[2 : 2 + len(self.classes)] += (self.class_bits & labels).any(axis=1)
        else:
            self._counts[1] += 1


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

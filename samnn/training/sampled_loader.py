"""nnU-Net's training loader with rules of ours for the place of a patch in its case."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from samnn.training.occupancy import Occupancy
from samnn.training.places import MOST_DRAWS, Places

ClassKey = int | tuple[int, ...]  # a class in nnU-Net's `class_locations`: a label, or the labels of a region


class SampledLoader(nnUNetDataLoader):
    """nnU-Net's training loader with two rules of ours for the place of a patch in its case.

    nnU-Net draws the cases of a batch (uniformly, with replacement) and forces the last samples of the batch
    (`oversample_foreground_percent`, a third) on foreground; the others are free. All that stays.

    *A free sample.* Let q be nnU-Net's own distribution of places in the case: uniform; with an ignore label, around
    one of the annotated voxels it has stored. A place without foreground is kept with probability a, the acceptance
    of the batch's epoch; otherwise another is drawn from q in the same case, and so on. So

        P(place) ∝ q(place) · (1 with foreground, a without),

    and where a share b of the places is without foreground, a share a·b / (1 − b + a·b) of the kept ones is. In a case
    without any foreground every place is kept. `Places.draw` skips places that cannot have foreground instead of
    rejecting them one by one; after 1000 rejected ones in a row (a about 0, foreground only at opposite ends of a huge
    case) the sample is placed as a forced one.

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
        loader.patch_size = tuple(map(int, loader.patch_size))
        loader.occupancy = occupancy
        loader.classes = list(classes)
        loader.class_bits = np.stack(
            [occupancy.bits(key if isinstance(key, tuple) else (key,)) for key in classes]
        )
        loader.acceptance = list(acceptance)
        loader.class_weights = list(class_weights)
        loader.margin = [
            p // 2 - f // 2 for p, f in zip(loader.patch_size, loader.final_patch_size, strict=True)
        ]
        loader._places = {}
        loader._present = {}  # case → the classes in it, and their weights cumulated
        loader._nothing = np.zeros_like(loader.class_bits[0])
        return loader

    def get_indices(self) -> Sequence[str]:
        """nnU-Net's hook: the cases of a batch, whose places `get_bbox` is then asked for one by one."""
        cases = super().get_indices()
        self._cases: Iterator[str] = iter(cases)
        return cases

    def generate_train_batch(self) -> dict[str, Any]:
        """nnU-Net's hook: a batch, and what it holds as `patch_counts`."""
        self._labels: list[np.ndarray] = []  # of each patch
        self._forced = [0] * len(self.classes)
        batch = super().generate_train_batch()
        labels = np.stack(self._labels)
        holding = (labels[:, None] & self.class_bits).any(axis=2).sum(axis=0)
        without = len(labels) - np.count_nonzero(labels.any(axis=1))
        return batch | {"patch_counts": np.array([len(labels), without, *holding, *self._forced], np.int64)}

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
        acceptance = self.acceptance[min(self.epoch, len(self.acceptance) - 1)]
        if not self.occupancy.has_foreground(case) or (acceptance == 1 and not force_fg):
            box = super().get_bbox(data_shape, force_fg, class_locations)
        else:
            first = None if force_fg else self._free_place(case, data_shape, class_locations, acceptance)
            if first is not None:
                self._labels.append(self._looked_at)
                return first, [f + size for f, size in zip(first, self.patch_size, strict=True)]
            drawn = self._draw_class(case, class_locations)
            self._forced[drawn] += force_fg
            box = super().get_bbox(data_shape, True, class_locations, self.classes[drawn])
        self._labels.append(self._labels_in(case, box[0]))
        return box

    def _free_place(
        self,
        case: str,
        data_shape: Sequence[int],
        class_locations: Mapping[ClassKey, Any],
        acceptance: float,
    ) -> list[int] | None:
        """First voxel of a box, or None after too many rejections."""
        places = self._places.get(case)
        if places is None:
            places = self._places[case] = Places(
                data_shape,
                patch=self.patch_size,
                pad=self.need_to_pad,
                margin=self.margin,
                final=self.final_patch_size,
                occupied=self.occupancy.occupied_layers(case),
                block=self.occupancy.block,
            )
        # What is looked at last is the place taken, or, where that needed no look, a place as empty as it.
        self._looked_at = self._nothing
        if not self.has_ignore:
            return places.draw(acceptance, lambda place: self._has_foreground(case, place))
        annotated = class_locations[self.annotated_classes_key]
        for _ in range(MOST_DRAWS):
            voxel = annotated[random.randrange(len(annotated))][1:]
            place = [
                max(r[0], int(v) - size // 2)
                for r, v, size in zip(places.ranges, voxel, self.patch_size, strict=True)
            ]
            if self._has_foreground(case, place) or random.random() < acceptance:
                return place
        return None

    def _has_foreground(self, case: str, place: Sequence[int]) -> bool:
        self._looked_at = self._labels_in(case, place)
        return bool(self._looked_at.any())

    def _labels_in(self, case: str, place: Sequence[int]) -> np.ndarray:
        # written out: this is asked for every patch
        (x, y, z), (dx, dy, dz), (nx, ny, nz) = place, self.margin, self.final_patch_size
        x, y, z = x + dx, y + dy, z + dz
        return self.occupancy.labels_in(case, (x, y, z), (x + nx, y + ny, z + nz))

    def _draw_class(self, case: str, class_locations: Mapping[ClassKey, Any]) -> int:
        known = self._present.get(case)
        if known is None:
            present = [i for i, key in enumerate(self.classes) if len(class_locations[key]) > 0]
            known = present, list(accumulate(self.class_weights[i] for i in present))
            self._present[case] = known
        present, cumulated = known
        return random.choices(present, cum_weights=cumulated)[0]

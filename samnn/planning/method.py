"""One method and one dataset: which patch, image size, batch and micro-batch, and what each choice costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from samnn.errors import SamnnError
from samnn.planning.costs import Coefficients, coefficients
from samnn.planning.counting import Count, count
from samnn.planning.slices import Slices
from samnn.training.base import SamnnTrainer
from samnn.training.steps import OUR_KEY

PARENT = "2d"
SHARE_OF_DATASET = 0.05  # the most a batch may hold of it: nnU-Net's rule
SMALLEST_BATCH = 2  # nnU-Net's
SMALLEST_SIDE = 64  # of a patch that shrinks for memory, pixels
USABLE, CONTEXT_GIB = 0.9, 0.5  # share of a GPU's memory left by fragmentation, after what CUDA itself takes
GIB = 2**30


@dataclass(frozen=True)
class Wishes:
    """What a person asked for; None and empty: the planner chooses."""

    gpu_memory_gib: float = 8.0
    backbones: tuple[str, ...] = ()
    rank: int | None = None
    image_size: int | None = None

    @property
    def budget_bytes(self) -> float:
        """What a training step may take."""
        return max(0.0, USABLE * self.gpu_memory_gib - CONTEXT_GIB) * GIB


@dataclass(frozen=True)
class Choice:
    """A candidate: sizes are (height, width) in pixels."""

    patch: tuple[int, int]
    image_size: tuple[int, int] | None  # None: the network takes patches as they are
    batch: int
    micro_batch: int
    saving: int = 0  # place in Planned.savings


@dataclass(frozen=True)
class Cost:
    """Of a training step."""

    peak_bytes: float
    seconds: float
    measured: bool = False


@dataclass
class Method:
    """A trainer and the dataset it is planned for."""

    trainer: type[SamnnTrainer]
    plans: PlansManager  # with PARENT
    dataset_json: Mapping[str, Any]
    slices: Slices
    wishes: Wishes
    measured: dict[Choice, Cost | None] = field(default_factory=dict)  # None: out of memory

    def choose(self) -> Choice:
        """The best candidate that fits into memory.

        Size is what is given up last. Where batch norm sees micro-batches, larger ones come before speed.

        Raises:
            SamnnError: none fits.
        """
        for patch, image_size in self.sizes():
            fitting = [choice for choice in self._at(patch, image_size) if self.fits(choice)]
            if fitting:
                return min(fitting, key=self._reluctance)
        smallest = min(self._at(patch, image_size), key=lambda choice: self._peak(choice))
        raise SamnnError(
            f"{self.trainer.planned.configuration}: refused by the rule of memory: the smallest step "
            f"({self.described(smallest)}) takes about {self._peak(smallest) / GIB:.1f} GiB, and of "
            f"{self.wishes.gpu_memory_gib:g} GiB {self.wishes.budget_bytes / GIB:.1f} can be used. Raise --gpu-memory-gb, "
            "name a smaller --backbone, or leave it out with --only."
        )

    def next_choices(self, chosen: Choice) -> list[Choice]:
        """What else one could want: other savings, the whole batch at once, the next smaller size."""
        others = [replace(chosen, saving=saving) for saving in range(len(self.trainer.planned.savings))]
        others.append(replace(chosen, micro_batch=chosen.batch))
        sizes = [replace(chosen, patch=patch, image_size=image) for patch, image in self.sizes()]
        others += [choice for choice in sizes if math.prod(_size(choice)) < math.prod(_size(chosen))][:1]
        return [choice for choice in dict.fromkeys(others) if choice != chosen]

    def cost(self, choice: Choice) -> Cost | None:
        """Measured where it was, else estimated; None: measured, and out of memory."""
        if choice in self.measured:
            return self.measured[choice]
        args = self.count(choice), choice.batch, choice.micro_batch
        return Cost(self._coefficients.peak_bytes(*args), self._coefficients.seconds(*args))

    def fits(self, choice: Choice) -> bool:
        """Whether it stays within the memory that can be used."""
        cost = self.cost(choice)
        return cost is not None and cost.peak_bytes <= self.wishes.budget_bytes

    def count(self, choice: Choice) -> Count:
        """What a picture of it keeps and computes."""
        planned = self.trainer.planned
        outputs = planned.outputs if self.trainer.deep_supervision else 1
        return count(self.architecture(choice), self.channels, self.classes, choice.patch, outputs=outputs)

    def configuration(self, choice: Choice) -> dict[str, Any]:
        """As the plans have it; nnU-Net fills in the rest from its parent."""
        return {
            "inherits_from": PARENT,
            "batch_size": choice.batch,
            "patch_size": list(choice.patch),
            "architecture": self.architecture(choice),
            OUR_KEY: {"trainer": self.trainer.__name__, "micro_batch": choice.micro_batch},
        }

    def architecture(self, choice: Choice) -> dict[str, Any]:
        """The network of a candidate, as plans write it."""
        planned, wishes = self.trainer.planned, self.wishes
        own = self.trainer.architecture(self.plans.get_configuration(PARENT))
        arguments: dict[str, Any] = {}
        if backbones(self.trainer):
            arguments["backbone"] = self.backbone
        if wishes.rank is not None and takes_rank(self.trainer):
            arguments["lora_rank"] = wishes.rank
        if choice.image_size is not None:
            height, width = choice.image_size
            arguments["image_size"] = height if height == width else [height, width]
        arguments |= planned.savings[choice.saving]
        return {
            "network_class_name": own["network_class_name"],
            "arch_kwargs": arguments | {"strides": planned.strides},
            "_kw_requires_import": [],
        }

    @property
    def backbone(self) -> str:
        """The one asked for, or the trainer's default."""
        asked = (name for name in self.wishes.backbones if name in backbones(self.trainer))
        return next(asked, self.trainer.backbone)

    def sizes(self) -> list[tuple[tuple[int, int], tuple[int, int] | None]]:
        """(patch, image size), largest first."""
        planned = self.trainer.planned
        patch = self.slices.covering(planned.token if planned.resizes else planned.multiple)
        if not planned.resizes:
            return [(smaller, None) for smaller in _shrinking(patch, planned.multiple)]
        if (asked := self.wishes.image_size) is not None:
            if asked % planned.token:
                raise SamnnError(
                    f"--image-size {asked}: {planned.configuration} takes multiples of {planned.token}, such as "
                    f"{max(1, round(asked / planned.token)) * planned.token}; multiples of {planned.multiple} waste nothing."
                )
            return [(patch, (asked, asked))]
        full = tuple(-(-side // planned.multiple) * planned.multiple for side in patch)
        return [(patch, smaller) for smaller in _stepping_down(full, planned.multiple)]

    def tokens(self, choice: Choice) -> int:
        """Of one picture, without filling."""
        height, width = _size(choice)
        return (height // self.trainer.planned.token) * (width // self.trainer.planned.token)

    def padding(self, choice: Choice) -> float:
        """Share of the work on what is not picture: slices smaller than the patch, and filling inside the network."""
        multiple = self.trainer.planned.multiple
        height, width = _size(choice)
        filled = (-(-height // multiple) * multiple) * (-(-width // multiple) * multiple)
        return 1 - self.slices.used(choice.patch) * height * width / filled

    def described(self, choice: Choice) -> str:
        """In a few words."""
        patch, image = spelled(choice.patch), choice.image_size
        words = [f"patch {patch}"] if image is None else [f"image size {spelled(image)}"]
        words.append(
            f"batch {choice.batch}"
            + (f" in parts of {choice.micro_batch}" if choice.micro_batch < choice.batch else "")
        )
        words += [f"{name} {value}" for name, value in self.trainer.planned.savings[choice.saving].items()]
        return ", ".join(words)

    @cached_property
    def channels(self) -> int:
        """Of a picture."""
        return determine_num_input_channels(
            self.plans, self.plans.get_configuration(PARENT), self.dataset_json
        )

    @cached_property
    def classes(self) -> int:
        """Maps of the network: classes with the background, or regions."""
        return self.plans.get_label_manager(self.dataset_json).num_segmentation_heads

    @cached_property
    def _coefficients(self) -> Coefficients:
        return coefficients(self.trainer.planned.name)

    def _at(self, patch: tuple[int, int], image_size: tuple[int, int] | None) -> Iterator[Choice]:
        """Every saving and even micro-batch of a size."""
        covered = SHARE_OF_DATASET * self.slices.pixels() / (patch[0] * patch[1])
        batch = max(SMALLEST_BATCH, min(self.trainer.planned.batch_size, round(covered)))
        micro_batches = dict.fromkeys(-(-batch // parts) for parts in range(1, batch + 1))
        for saving in range(len(self.trainer.planned.savings)):
            for micro_batch in micro_batches:
                yield Choice(patch, image_size, batch, micro_batch, saving)

    def _reluctance(self, choice: Choice) -> tuple[float, ...]:
        parts = -choice.micro_batch if self.count(choice).batch_norm else 0
        return parts, self.cost(choice).seconds, -choice.micro_batch, choice.saving

    def _peak(self, choice: Choice) -> float:
        cost = self.cost(choice)
        return float("inf") if cost is None else cost.peak_bytes


def backbones(trainer: type[SamnnTrainer]) -> list[str]:
    """Names that a trainer's suffixes choose among, its default first; none where there is nothing to choose."""
    if "backbone" not in getattr(trainer, "network_options", ()):
        return []
    others = [option.value for option in trainer.suffixes if option.attribute == "backbone"]
    return list(dict.fromkeys([trainer.backbone, *others]))


def takes_rank(trainer: type[SamnnTrainer]) -> bool:
    """Whether a trainer's network has LoRA."""
    return "lora_rank" in getattr(trainer, "network_options", ())


def _size(choice: Choice) -> tuple[int, int]:
    """Of what the network computes on."""
    return choice.image_size or choice.patch


def spelled(size: tuple[int, int]) -> str:
    """Height and width."""
    return f"{size[0]} × {size[1]}"


def _shrinking(patch: tuple[int, int], multiple: int) -> list[tuple[int, int]]:
    """The patch, and ever smaller ones: the longer side three quarters of what it was."""
    found = [patch]
    while max(patch) > SMALLEST_SIDE:
        longer = max(patch)
        patch = tuple(
            max(multiple, side * 3 // 4 // multiple * multiple) if side == longer else side for side in patch
        )
        found.append(patch)
    return found


def _stepping_down(size: tuple[int, int], step: int) -> list[tuple[int, int]]:
    """The size, and ever smaller ones: the longer side one step less."""
    found = [size]
    while max(size) > step:
        longer = max(size)
        size = tuple(side - step if side == longer else side for side in size)
        found.append(size)
    return found

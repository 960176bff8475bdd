"""Trainer names are experiments: resolves `nnUNetTrainer<Arch>[_option…]` from one visible table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from samnn.errors import SamnnError
from samnn.training import options, samplers
from samnn.training.base import SamnnTrainer
from samnn.training.crf import CRF, CRFfinetune


@dataclass(frozen=True)
class Option:
    """One suffix of a trainer's name: it mixes in a class or sets an attribute.

    In `suffix`, `<N>` stands for a whole number, from `minimum` upwards, which the attribute becomes; without it the
    attribute becomes `value`.
    Options with the same `group` exclude each other.
    """

    suffix: str
    what: str
    mixin: type[SamnnTrainer] | None = None
    attribute: str | None = None
    value: Any = None
    minimum: int = 1
    group: str | None = None

    def parse(self, word: str) -> dict[str, Any] | None:
        """The attributes `word` sets, or None where it is not this option."""
        pattern = re.escape(self.suffix).replace("<N>", r"(\d+)")
        match = re.fullmatch(pattern, word)
        if match is None:
            return None
        if self.attribute is None:
            return {}
        if not match.groups():
            return {self.attribute: self.value}
        number = match.group(1)
        if len(number) > 9 or str(int(number)) != number or int(number) < self.minimum:
            raise SamnnError(
                f"_{word[:40]}: _{self.suffix} takes a number from {self.minimum} to 999999999, without leading zeros."
            )
        return {self.attribute: int(number)}


# suffix → mixin → attribute, in the one order in which a name lists them. A published name never changes its meaning.
OPTIONS: tuple[Option, ...] = (
    Option("AdamW", "AdamW 5e-4, weight decay 1e-4", options.AdamW),
    Option(
        "PolyWarmup", "warm-up, then polynomial decay, per iteration", options.PolyWarmup, group="schedule"
    ),
    Option(
        "CosineWarmup",
        "warm-up, then half a cosine to 0, per iteration",
        options.CosineWarmup,
        group="schedule",
    ),
    Option("GDL", "generalised Dice in the place of Dice", options.GDL, group="loss"),
    Option("fp32", "no autocast", options.fp32),
    Option("CRF", "a CRF behind the network, trained with it", CRF, group="crf"),
    Option(
        "CRFfinetune",
        "a CRF and the network's last layers, trained on top of the finished fold without this suffix",
        CRFfinetune,
        group="crf",
    ),
    Option(
        "AdaptiveSampler",
        "patches without foreground are kept more and more often: with probability epoch/epochs",
        samplers.AdaptiveSampler,
    ),
    Option(
        "ClassBalanced",
        "forced-foreground patches draw rare classes more often: by inverse frequency",
        samplers.ClassBalanced,
    ),
    Option("<N>epochs", "epochs instead of nnU-Net's 1000", attribute="epochs"),
    Option(
        "<N>iters",
        "iterations per epoch instead of nnU-Net's 250 (validation: a fifth of them, as 50 of 250)",
        attribute="iterations_per_epoch",
    ),
    Option("seed<N>", "seeds every random source, loader workers included", attribute="seed", minimum=0),
)


def resolve(architecture: type[SamnnTrainer], name: str) -> type[SamnnTrainer]:
    """The class that `name` describes; the three lines of a plugin's module-level `__getattr__` call this.

    Raises:
        AttributeError: `name` does not start with the name of `architecture`: not ours, nnU-Net looks further.
        SamnnError: a known stem with an unknown, repeated, excluded or misplaced suffix. Not an AttributeError:
            nnU-Net asks with `hasattr` and would hide it.
    """
    stem = architecture.__name__
    if not name.startswith(stem + "_"):
        raise AttributeError(name)
    table = (*architecture.suffixes, *OPTIONS)
    chosen: list[tuple[int, Option, str, dict[str, Any]]] = []
    for word in name[len(stem) + 1 :].split("_"):
        parsed = [
            (i, option, word, found)
            for i, option in enumerate(table)
            if (found := option.parse(word)) is not None
        ]
        if not parsed:
            valid = ", ".join(f"_{option.suffix}" for option in table)
            raise SamnnError(f"{name}: unknown suffix _{word}. {stem} takes, in this order: {valid}")
        chosen += parsed
    _refuse_conflicts(architecture, name, [option for _, option, _, _ in chosen])
    in_order = sorted(chosen, key=lambda found: found[0])
    if in_order != chosen:
        right = "_".join([stem, *(word for _, _, word, _ in in_order)])
        raise SamnnError(f"{name}: suffixes have one order, so that an experiment has one name. Use {right}")

    attributes: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for _, _, word, found in in_order:
        attributes |= found
        sources |= dict.fromkeys(found, word) if found else {word: word}
    mixins = [option.mixin for _, option, _, _ in in_order if option.mixin is not None]
    body = attributes | {"options_in_name": sources, "__doc__": f"{stem} with {', '.join(sources.values())}."}
    return type(name, (*mixins, architecture), body | {"__module__": architecture.__module__})


def _refuse_conflicts(architecture: type[SamnnTrainer], name: str, chosen: list[Option]) -> None:
    for i, option in enumerate(chosen):
        if option.mixin is not None and issubclass(architecture, option.mixin):
            raise SamnnError(
                f"{name}: {architecture.__name__} is already _{option.suffix}; leave the suffix out."
            )
        for other in chosen[:i]:
            if option is other or (option.group is not None and option.group == other.group):
                raise SamnnError(
                    f"{name}: _{other.suffix} and _{option.suffix} exclude each other; keep one."
                )

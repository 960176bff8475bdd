"""Builds each planned configuration from the written JSON as nnU-Net will, and sends a picture through, without computing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import nnunetv2
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from samnn.errors import SamnnError
from samnn.planning.method import PARENT, Method


def verify(path: Path, methods: Iterable[Method]) -> None:
    """Read the plans at `path` and build every method's configuration, for its own trainer and for nnU-Net's.

    Raises:
        SamnnError: a name that nnU-Net does not have, other preprocessed data than the parent's, a network that cannot
            be built or gives maps of another shape.
    """
    plans = PlansManager(str(path))
    check_names(plans)
    data = plans.get_configuration(PARENT).data_identifier
    for method in methods:
        name = method.trainer.planned.configuration
        configuration = plans.get_configuration(name)
        if configuration.data_identifier != data:
            raise SamnnError(f"{name}: refused by the rule of one preprocessing: it has data of its own.")
        method.trainer.check(plans, name)
        deep = bool(method.trainer.deep_supervision)
        _build(method, plans, configuration, method.trainer, deep_supervision=deep)
        if (
            len(configuration.pool_op_kernel_sizes) < 3
        ):  # of two, nnU-Net would weigh the only output with 0 / 0
            raise SamnnError(f"{name}: strides are too few for nnU-Net's own trainers.")
        _build(method, plans, configuration, nnUNetTrainer, deep_supervision=True)


def check_names(plans: PlansManager) -> None:
    """Refuse plans whose preprocessing nnU-Net cannot find: it looks inside itself alone."""
    configuration = plans.get_configuration(PARENT)
    schemes = str(Path(nnunetv2.__path__[0], "preprocessing", "normalization"))
    found = {
        configuration.preprocessor_name: lambda: configuration.preprocessor_class,
        configuration.configuration["resampling_fn_data"]: lambda: configuration.resampling_fn_data,
        configuration.configuration["resampling_fn_seg"]: lambda: configuration.resampling_fn_seg,
        configuration.configuration["resampling_fn_probabilities"]: lambda: (
            configuration.resampling_fn_probabilities
        ),
        plans.plans["image_reader_writer"]: lambda: plans.image_reader_writer_class,
    } | {
        scheme: lambda scheme=scheme: recursive_find_python_class(
            schemes, scheme, "nnunetv2.preprocessing.normalization"
        )
        for scheme in configuration.normalization_schemes
    }
    for name, find in found.items():
        try:
            missing = find() is None
        except (RuntimeError, TypeError, AttributeError):
            missing = True
        if missing:
            raise SamnnError(
                f"{plans.plans_name}: refused by the rule of built-in names: nnU-Net has no {name}, so nobody else could "
                "preprocess for these plans."
            )


def _build(
    method: Method,
    plans: PlansManager,
    configuration: ConfigurationManager,
    trainer: type[nnUNetTrainer],
    *,
    deep_supervision: bool,
) -> None:
    sizes = plans, configuration, method.channels, method.classes
    with torch.device("meta"):
        network = trainer.build_network_architecture(*sizes, deep_supervision)
        picture = torch.empty(2, method.channels, *configuration.patch_size)
    network.eval()
    with torch.no_grad():
        maps = network(picture)
    if deep_supervision != isinstance(maps, list):
        raise SamnnError(f"{method.trainer.planned.configuration}: the network ignores deep supervision.")
    for one in maps if deep_supervision else [maps]:
        if one.shape != (2, method.classes, *configuration.patch_size):
            raise SamnnError(
                f"{method.trainer.planned.configuration}: the network gives maps of {tuple(one.shape[1:])}, expected "
                f"{(method.classes, *configuration.patch_size)}."
            )

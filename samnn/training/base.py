"""SamnnTrainer: what all our trainers share; a subclass says what its recipe changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as host
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import distributed as dist

from samnn import __version__, hardware
from samnn.atomic import write_json
from samnn.errors import SamnnError
from samnn.inference import BatchedPredictor
from samnn.inference.export import export_prediction_from_logits
from samnn.training.loaders import SeededLoaders
from samnn.training.parallel import wrapped_for
from samnn.training.planned import Planned
from samnn.training.randomness import seed_all
from samnn.training.resume import Resumable
from samnn.training.steps import GuardedSteps


class SamnnTrainer(Resumable, GuardedSteps, SeededLoaders, nnUNetTrainer):
    """nnU-Net's trainer with a guard, micro-batches, exact resume, seeds, and settings that are written down.

    A recipe is a set of class attributes and overridden hooks (`build_optimizer`, `build_schedule`, `_build_loss`,
    `autocast_dtype`, `architecture`). None means that nnU-Net's own value stays.
    """

    epochs: int | None = None  # nnU-Net: 1000
    iterations_per_epoch: int | None = None  # nnU-Net: 250
    learning_rate: float | None = None  # nnU-Net: 1e-2
    decay: float | None = None  # weight decay; nnU-Net: 3e-5
    deep_supervision: bool | None = None  # nnU-Net: True
    spatial_dims: ClassVar[tuple[int, ...]] = (2, 3)  # patches the network can take
    planned: ClassVar[Planned | None] = None  # the configuration that `samnn plan` makes for it
    suffixes: ClassVar[
        tuple[Any, ...]
    ] = ()  # name options of this architecture alone (samnn.training.variants.Option)
    options_in_name: ClassVar[
        dict[str, str]
    ] = {}  # attribute → suffix that set it; filled by samnn.training.variants

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ) -> None:
        self.check(PlansManager(plans), configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp and not torch.cuda.is_available():  # nnU-Net names a GPU to each process
            self.device, self.grad_scaler = torch.device("cpu"), None
        if self.device.type == "cpu":
            torch.set_num_threads(hardware.cores())
        for ours, theirs in _NNUNET_NAMES.items():
            value = getattr(self, ours)
            if value is not None:
                setattr(self, theirs, value)
        if self.iterations_per_epoch is not None:  # nnU-Net's ratio of 250 to 50
            self.num_val_iterations_per_epoch = max(1, round(self.iterations_per_epoch / 5))

    @classmethod
    def check(cls, manager: PlansManager, configuration: str) -> None:
        """Refuse what this trainer cannot train.

        Raises:
            SamnnError: the patches have another dimension.
        """
        dims = len(manager.get_configuration(configuration).patch_size)
        if dims in cls.spatial_dims:
            return
        fitting = [
            name
            for name in manager.available_configurations
            if len(manager.get_configuration(name).patch_size) in cls.spatial_dims
        ]
        raise SamnnError(
            f"{cls.__name__} takes {' or '.join(f'{d}D' for d in cls.spatial_dims)} patches, but configuration "
            f"{configuration} of {manager.plans_name} has {dims}D ones. "
            + (
                f"Use -c {' or '.join(fitting)}."
                if fitting
                else "Plan a fitting one: nnUNetv2_plan_experiment."
            )
        )

    @classmethod
    def architecture(cls, configuration: ConfigurationManager) -> dict[str, Any]:
        """The network as plans write it: class, arguments, and which of these name things to import.

        `build_network_architecture` builds it, and `samnn export` hands it to a stock trainer.
        """
        return configuration.configuration["architecture"]

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> torch.nn.Module:
        """nnU-Net's hook, called at prediction time too: patches (B, C, *spatial) → logits (B, classes, *spatial)."""
        network = cls.architecture(configuration_manager)
        return get_network_from_plans(
            network["network_class_name"],
            network["arch_kwargs"],
            network["_kw_requires_import"],
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
        )

    def initialize(self) -> None:
        """nnU-Net's hook; with a seed, the network's random weights are drawn from it.

        Raises:
            SamnnError: the batch cannot be shared by the processes.
        """
        if self.is_ddp:
            self._refuse_uneven_batch(dist.get_world_size())
        if self.seed is not None and not self.was_initialized:
            seed_all(self.seed)
        with wrapped_for(self.device):
            super().initialize()

    def _refuse_uneven_batch(self, processes: int) -> None:
        """nnU-Net's Dice over the batch gathers (samples, classes) of all processes as if all had as many."""
        batch = self.configuration_manager.batch_size
        if self.configuration_manager.batch_dice and batch % processes:
            raise SamnnError(
                f"{self.__class__.__name__}: a batch of {batch} cannot be shared evenly by {processes} processes, which "
                "nnU-Net's Dice loss over the batch needs. Use another number of processes, or plans with a batch size "
                f"that is a multiple of {processes}."
            )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's hook, split in two so that an option can replace either half."""
        optimizer = self.build_optimizer()
        return optimizer, self.build_schedule(optimizer)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """nnU-Net's SGD on the trainable parameters, norms and biases not decayed."""
        return torch.optim.SGD(self.parameter_groups(), self.initial_lr, momentum=0.99, nesterov=True)

    def build_schedule(self, optimizer: torch.optim.Optimizer) -> Any:
        """nnU-Net's polynomial decay, per epoch."""
        return PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters in two groups: weights, and norms, biases and other vectors without decay."""
        trainable = [p for p in self.network.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """nnU-Net's hook; networks with one output stay with one output."""
        super().set_deep_supervision_enabled(enabled and self.enable_deep_supervision)

    def on_train_start(self) -> None:
        """nnU-Net's hook; writes the effective settings to the log and to settings.json."""
        if self.seed is not None:
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        super().on_train_start()
        if self.local_rank == 0:
            self._write_settings()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's hook, with our predictor and export in the place of its own, in the precision of training steps.

        Several processes share the cases, each with the first one's buffers.
        """
        if self.is_ddp:
            for buffer in self.network.module.buffers():
                dist.broadcast(buffer, 0)
            self.network.broadcast_buffers = False  # they predict different numbers of patches
        with _our_prediction(self.autocast_dtype()):
            super().perform_actual_validation(save_probabilities)

    def settings(self) -> dict[str, dict[str, Any]]:
        """Every effective setting: name → its value and where the value comes from."""
        rows = {name: (getattr(self, theirs), name) for name, theirs in _NNUNET_NAMES.items()}
        for name in ("seed", "gradient_clip", "minutes_between_checkpoints", "max_skipped_steps"):
            rows[name] = (getattr(self, name), name)
        rows["optimizer"] = (type(self.optimizer).__name__, "build_optimizer")
        rows["schedule"] = (type(self.lr_scheduler).__name__, "build_schedule")
        rows["loss"] = (_loss_name(self.loss), "_build_loss")
        rows["precision"] = (
            str(self.autocast_dtype() or torch.float32).removeprefix("torch."),
            "autocast_dtype",
        )
        rows["micro_batch"] = (self.effective_micro_batch or self.batch_size, "micro_batch")
        settings = {
            name: {"value": value, "source": self._source(origin)} for name, (value, origin) in rows.items()
        }
        plans = f"plans {self.plans_manager.plans_name}, configuration {self.configuration_name}"
        if self.micro_batch == "auto" and self.planned_micro_batch() is not None:
            settings["micro_batch"]["source"] = plans
        settings["batch_size"] = {"value": self.batch_size, "source": plans}
        settings["patch_size"] = {"value": list(self.configuration_manager.patch_size), "source": plans}
        return settings

    def _source(self, attribute: str) -> str:
        if attribute in self.options_in_name:
            return f"suffix _{self.options_in_name[attribute]}"
        owner = next(cls for cls in type(self).__mro__ if attribute in vars(cls))
        if owner.__name__ in self.options_in_name.values():
            return f"suffix _{owner.__name__}"
        if getattr(self, attribute) is None or owner is nnUNetTrainer:
            return "nnU-Net default"
        recipe = issubclass(owner, SamnnTrainer) and owner is not SamnnTrainer
        return f"default of {owner.__name__}" if recipe else "samnn default"

    def _write_settings(self) -> None:
        network = self.network
        parameters = {
            "trainable": sum(p.numel() for p in network.parameters() if p.requires_grad),
            "total": sum(p.numel() for p in network.parameters()),
        }
        settings = self.settings()
        content = {
            "trainer": type(self).__name__,
            "samnn": __version__,
            "torch": torch.__version__,
            "device": str(self.device),
            "parameters": parameters,
            "settings": settings,
        }
        write_json(Path(self.output_folder) / "settings.json", content)
        self.logger.update_config({"samnn": content})
        lines = [
            f"{type(self).__name__}: {parameters['trainable']:,} trainable of {parameters['total']:,} parameters"
        ]
        lines += [f"  {name}: {row['value']}  ({row['source']})" for name, row in settings.items()]
        self.print_to_log_file("\n".join(lines), add_timestamp=False)


_NNUNET_NAMES = {
    "epochs": "num_epochs",
    "iterations_per_epoch": "num_iterations_per_epoch",
    "learning_rate": "initial_lr",
    "decay": "weight_decay",
    "deep_supervision": "enable_deep_supervision",
}


@contextmanager
def _our_prediction(precision: torch.dtype | None) -> Iterator[None]:
    """nnU-Net's validation names its predictor and its export in its own module: there ours take their place."""
    theirs = host.nnUNetPredictor, host.export_prediction_from_logits
    host.nnUNetPredictor = partial(BatchedPredictor, precision=precision)
    host.export_prediction_from_logits = export_prediction_from_logits
    try:
        yield
    finally:
        host.nnUNetPredictor, host.export_prediction_from_logits = theirs


def _loss_name(loss: Any) -> str:
    inner = getattr(loss, "loss", loss)  # inside the deep-supervision wrapper
    parts = [inner.ce, inner.dc] if hasattr(inner, "dc") else [inner]
    return " + ".join(type(getattr(part, "_orig_mod", part)).__name__ for part in parts)

"""The suffixes _CRF and _CRFfinetune: a CRF behind any trainer's network, trained with it or after it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from samnn.errors import SamnnError
from samnn.inference.predictor import bare
from samnn.nn.crf_head import CRFHead, attach_crf, crf_of
from samnn.training.base import SamnnTrainer


class CRF(SamnnTrainer):
    """A mean-field CRF refines the main output; it is trained with the network.

    It starts as crfseg's does on voxels, with bandwidths of one voxel, and counts in mm from then on.
    """

    crf_filter_size: int = 11  # voxels along each axis
    crf_iterations: int = 5
    crf_kernel: str = "crfseg"
    crf_weight: float = 1.0  # at the start
    crf_bandwidth_voxels: float = 1.0  # at the start
    crf_appearance_weight: float | None = None  # at the start; None: the image is not looked at
    crf_appearance_filter_size: int = 5
    crf_intensity: float = 0.5  # bandwidth at the start, in units of the preprocessed image

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """nnU-Net's hook, called at prediction time too: the trainer's network, with a CRF behind it."""
        network = super().build_network_architecture(
            plans_manager,
            configuration_manager,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )
        spacing_mm = np.asarray(configuration_manager.spacing, dtype=float)
        theta_mm = cls.crf_bandwidth_voxels * spacing_mm
        head = CRFHead(
            spacing_mm.tolist(),
            filter_size=cls.crf_filter_size,
            n_iter=cls.crf_iterations,
            kernel=cls.crf_kernel,
            smoothness_weight=cls.crf_weight,
            smoothness_theta=theta_mm,
            appearance_weight=cls.crf_appearance_weight,
            appearance_theta=theta_mm,
            appearance_filter_size=cls.crf_appearance_filter_size,
            intensity_theta=cls.crf_intensity,
        )
        attach_crf(network, head)
        return network

    def initialize(self) -> None:
        """nnU-Net's hook; tells the CRF whether the channels are regions."""
        super().initialize()
        self.crf.set_regions(self.label_manager.has_regions)

    @property
    def crf(self) -> CRFHead:
        """The CRF behind the network."""
        return crf_of(bare(self.network))

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """nnU-Net's hook; logs what the CRF has learned."""
        super().on_train_epoch_end(train_outputs)
        learned = self.crf.learned()
        words = [f"{name} {' x '.join(f'{n:.4f}' for n in np.atleast_1d(v))}" for name, v in learned.items()]
        self.print_to_log_file(f"CRF: {', '.join(words)}")
        for logger in self.logger.loggers:  # nnU-Net's own list of values is a fixed one
            for name, value in learned.items():
                for axis, number in enumerate(np.atleast_1d(value)):
                    logger.log(f"crf/{name}_{axis}", float(number), self.current_epoch)

    def settings(self) -> dict[str, dict[str, Any]]:
        """The trainer's settings, those of the CRF, and what it starts from."""
        names = ["crf_filter_size", "crf_iterations", "crf_kernel", "crf_weight", "crf_bandwidth_voxels"]
        if self.crf.has_appearance:
            names += ["crf_appearance_weight", "crf_appearance_filter_size", "crf_intensity"]
        rows = {name: {"value": getattr(self, name), "source": self._source(name)} for name in names}
        spacing = self.crf.spacing_mm.tolist()
        rows["crf_spacing_mm"] = {
            "value": spacing,
            "source": f"plans, configuration {self.configuration_name}",
        }
        rows["crf_parameters"] = {"value": self.crf.learned(), "source": "at this start"}
        return super().settings() | rows


class CRFfinetune(CRF):
    """The CRF and the network's last layers, trained on top of the finished fold of the trainer without this suffix.

    Everything else is frozen; the network stays in evaluation mode, so batch norm keeps its statistics and nothing is
    dropped. A network says with `output_layers`, a list of modules, what its last layers are; without that it is the
    last of `decoder.seg_layers`, as in nnU-Net's own networks.
    """

    started_from: str = "a checkpoint of its own (--c)"
    _has_weights = False
    _pretrained: tuple[str, Mapping[str, Tensor]] | None = None

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's hook; freezes first what is not trained, and notices when the network is given weights."""
        network = bare(self.network)
        network.requires_grad_(False)
        for module in (*_output_layers(network), self.crf):
            module.requires_grad_(True)
        network.register_load_state_dict_post_hook(self._note_weights)
        return super().configure_optimizers()

    def on_train_start(self) -> None:
        """nnU-Net's hook; loads the finished fold, unless --c or -pretrained_weights have loaded something.

        Raises:
            SamnnError: there is no such fold, it is not finished, or its weights do not fit.
        """
        if not self.was_initialized:
            self.initialize()
        if self._pretrained is not None:
            self._start_from(*self._pretrained)
            self._pretrained = None
        elif not self._has_weights:
            path = self._finished_fold()
            content = torch.load(
                path, map_location="cpu", weights_only=False
            )  # the user's own, as nnU-Net does
            self._start_from(str(path), content["network_weights"])
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        """nnU-Net's hook; what is frozen stays as it will be at prediction."""
        super().on_train_epoch_start()
        self.network.eval()

    def settings(self) -> dict[str, dict[str, Any]]:
        """The trainer's settings, what it started from and what it trains."""
        trained = [name for name, p in bare(self.network).named_parameters() if p.requires_grad]
        rows = {"started_from": self.started_from, "trained_parameters": trained}
        return super().settings() | {
            name: {"value": value, "source": "suffix _CRFfinetune"} for name, value in rows.items()
        }

    def _note_weights(self, network: nn.Module, _: Any) -> None:
        self._has_weights = True
        self._pretrained = _given_by_nnunet() or self._pretrained

    def _start_from(self, source: str, weights: Mapping[str, Tensor]) -> None:
        """Load all of the network, and the CRF where `weights` hold one."""
        network = bare(self.network)
        own = {name: value for name, value in network.state_dict().items() if name.startswith("crf.")}
        try:
            network.load_state_dict(own | dict(weights))
        except RuntimeError as error:
            raise SamnnError(
                f"{source}: does not fit the network of {type(self).__name__}. Was it trained with the same trainer, "
                f"plans and classes? {error}"
            ) from error
        self.crf.set_regions(self.label_manager.has_regions)
        self.started_from = source
        self.print_to_log_file(f"Starts from {source}")

    def _finished_fold(self) -> Path:
        """The last checkpoint of the same fold of the same trainer without this suffix."""
        own = Path(self.output_folder)
        trainer = type(self).__name__.replace("_CRFfinetune", "")
        rest = own.parent.name.removeprefix(type(self).__name__)
        path = own.parent.with_name(trainer + rest) / own.name / "checkpoint_final.pth"
        if path.is_file():
            return path
        others = sorted(own.parent.parent.glob(f"*{rest}/{own.name}/checkpoint_final.pth"))
        known = "".join(f"\n  {other}" for other in others)
        raise SamnnError(
            f"{path}: not found. {type(self).__name__} starts from that finished training. Train it first: "
            f"nnUNetv2_train {self.plans_manager.dataset_name} {self.configuration_name} {self.fold} -tr {trainer} "
            f"-p {self.plans_manager.plans_name}. Or name another checkpoint of the same network with "
            f"-pretrained_weights FILE." + (f" Finished ones of this fold:{known}" if known else "")
        )


def _output_layers(network: nn.Module) -> list[nn.Module]:
    declared = getattr(network, "output_layers", None)
    if declared is not None:
        return list(declared)
    layers = getattr(getattr(network, "decoder", None), "seg_layers", None)
    if layers is None:
        raise SamnnError(
            f"{type(network).__name__} does not say which its last layers are. Give it `output_layers`, a list of modules."
        )
    return [layers[-1]]


def _given_by_nnunet() -> tuple[str, Mapping[str, Tensor]] | None:
    """The file and all the weights of -pretrained_weights, while nnU-Net is loading them.

    nnU-Net tells no trainer of that file and leaves the segmentation layers in it out, which are to be trained on here,
    not anew. So its function is looked up among the callers.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "load_pretrained_weights":
            return str(frame.f_locals["fname"]), frame.f_locals["saved_model"]["network_weights"]
        frame = frame.f_back
    return None

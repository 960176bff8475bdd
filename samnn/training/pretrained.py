"""Networks with pretrained parts: loaded before training, left out of checkpoints where frozen, filled in when loading."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from samnn import weights as store
from samnn.errors import SamnnError
from samnn.inference.predictor import bare
from samnn.nn import lora
from samnn.training.base import SamnnTrainer

RECORD = (
    "left_out"  # key, in a state dict, of what is left out of it; no network has a parameter of that name
)
IN_PLANS = "pretrained_weights"  # key of a plans configuration: a name of the registry, or the path of a file


class Pretrained(SamnnTrainer):
    """Trainer of a network that starts from pretrained weights.

    A subclass names its network and the arguments that suffixes may choose. Plans that name the same network fix what
    they say; a suffix that contradicts them is refused.

    Checkpoints leave out frozen weights whose file has a public source and a published sha256, with `lean` those of
    any file. `checkpoint_final` and `checkpoint_best` leave out the state of the optimizer, too.
    """

    network_class_name: ClassVar[str]  # importable, as plans write it
    network_options: ClassVar[tuple[str, ...]]  # attributes of the trainer that are arguments of the network
    weights: ClassVar[dict[str, str]]  # suffix → name of the weights, the empty suffix being the default
    backbone: str
    initial_weights: str | None = None  # where they are not called as the backbone is
    scratch = False  # train from random weights
    lean = False  # leave frozen weights out of checkpoints even where their file is the user's own

    @staticmethod
    def load_weights(network: nn.Module, state_dict: Mapping[str, Tensor]) -> Collection[str]:
        """Load a pretrained checkpoint into the network; → the names of the network's tensors that it gave."""
        raise TypeError(
            "A trainer of a pretrained network says how its weights are loaded: define load_weights."
        )

    @classmethod
    def check(cls, manager: PlansManager, configuration: str) -> None:
        """Refuse what this trainer cannot train: also suffixes that contradict each other or the plans."""
        super().check(manager, configuration)
        if cls.scratch and (cls.lean or "initial_weights" in cls.options_in_name):
            raise SamnnError(
                f"{cls.__name__}: _scratch trains from random weights, so no other suffix can say which are loaded or left "
                "out of checkpoints. Keep one."
            )
        cls.architecture(manager.get_configuration(configuration))
        cls.needed_weights(manager, configuration)

    @classmethod
    def architecture(cls, configuration: ConfigurationManager) -> dict[str, Any]:
        """Our network; its arguments are those of plans that name it too, then those of suffixes, then our defaults.

        Raises:
            SamnnError: a suffix contradicts the plans.
        """
        fixed = cls._fixed(configuration)
        for name in cls.network_options:
            if name not in cls.options_in_name:
                continue
            if name == "backbone" and fixed.get("architecture"):
                said = "an architecture of its own"
            elif name in fixed and fixed[name] != getattr(cls, name):
                said = f"{name} {fixed[name]}"
            else:
                continue
            raise SamnnError(
                f"{cls.__name__}: the plans fix {said} for this configuration, and _{cls.options_in_name[name]} says "
                f"{name} {getattr(cls, name)}. Leave the suffix out, or use another configuration."
            )
        arguments = {name: getattr(cls, name) for name in cls.network_options} | fixed
        if cls.scratch:
            arguments["scratch"] = True
        return {
            "network_class_name": cls.network_class_name,
            "arch_kwargs": arguments,
            "_kw_requires_import": [],
        }

    @classmethod
    def needed_weights(cls, plans_manager: PlansManager, configuration: str) -> str | None:
        """The name, or the path, of the weights that training starts from; None for random ones.

        Raises:
            SamnnError: a suffix contradicts the plans; no public weights fit the architecture in the plans.
        """
        manager = plans_manager.get_configuration(configuration)
        arguments = cls.architecture(manager)["arch_kwargs"]
        planned = manager.configuration.get(IN_PLANS)
        if arguments.get("scratch"):
            if not cls.scratch and (cls.lean or "initial_weights" in cls.options_in_name):
                raise SamnnError(
                    f'{cls.__name__}: configuration {configuration} of the plans starts from random weights ("scratch": true), '
                    "so no suffix can say which are loaded or left out of checkpoints. Leave it out, or use another "
                    "configuration."
                )
            return None
        if planned not in (None, cls.initial_weights) and "initial_weights" in cls.options_in_name:
            raise SamnnError(
                f"{cls.__name__}: the plans name the weights {planned} for configuration {configuration}, the suffix "
                f"_{cls.options_in_name['initial_weights']} says {cls.initial_weights}. Leave the suffix out, or use "
                "another configuration."
            )
        if planned is None and arguments.get("architecture"):
            raise SamnnError(
                f"{cls.__name__}: configuration {configuration} has an architecture of its own, for which there are no "
                f'public weights. Name a file of yours in the plans, beside the architecture ("{IN_PLANS}": "FILE"), or '
                "train from random weights with the suffix _scratch."
            )
        return planned or cls.initial_weights or arguments["backbone"]

    @classmethod
    def try_weights(cls, plans_manager: PlansManager, configuration: str) -> None:
        """Load the needed weights into a network that takes no memory, to see whether they fit.

        Raises:
            SamnnError: they are missing, damaged, or do not fit.
        """
        manager = plans_manager.get_configuration(configuration)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that nothing is copied
            network = cls.build_network_architecture(plans_manager, manager, 3, 2)
            network.pretrained_part.load(network, cls.needed_weights(plans_manager, configuration))

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """nnU-Net's hook; needs no weights: they come with a checkpoint, or at the start of training."""
        network = super().build_network_architecture(
            plans_manager,
            configuration_manager,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )
        PretrainedPart(network, cls.load_weights)
        network.eval()
        lora.merge(network)  # for prediction; training takes it apart again
        return network

    def initialize(self) -> None:
        """nnU-Net's hook; the network stands in training mode."""
        super().initialize()
        self.network.train()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's hook, with LoRA merged as in prediction."""
        self.network.eval()
        lora.merge(self.network)
        super().perform_actual_validation(save_probabilities)

    def run_training(self) -> None:
        """nnU-Net's entry; without the optimizer's state a run that has not ended cannot go on."""
        if self._resumed is not None and self._resumed["without_optimizer"]:
            if self.current_epoch < self.num_epochs:
                raise SamnnError(
                    f"{self.output_folder}: has no checkpoint_latest.pth, and checkpoint_best.pth holds no optimizer state, "
                    f"so the training cannot go on from epoch {self.current_epoch}. Start it again without --c."
                )
            self.print_to_log_file(
                f"All {self.num_epochs} epochs are done. checkpoint_final.pth holds no optimizer state: there is nothing to "
                "continue from it."
            )
        super().run_training()

    def on_train_start(self) -> None:
        """nnU-Net's hook; before anything else, pretrained weights are loaded where no checkpoint gave them.

        Raises:
            SamnnError: they are not there, or do not fit.
        """
        if not self.was_initialized:
            if (weights := self._weights()) is not None:
                store.verified(weights)  # a large network is built in vain without them
            self.initialize()
        for _, network, part in _parts(self.network):
            if not network.pretrained:
                part.load(network, self._weights())
                self.print_to_log_file(f"Loaded {part.source}.")
        super().on_train_start()

    def checkpoint(self, *, epochs_done: int, to_continue: bool = False) -> dict[str, Any]:
        """What a checkpoint holds, less what can be had elsewhere or is of no use."""
        content = super().checkpoint(epochs_done=epochs_done, to_continue=to_continue)
        content["network_weights"] = lean_state_dict(bare(self.network), own_files=self.lean)
        content["samnn"]["without_optimizer"] = not to_continue
        if not to_continue:  # nnU-Net loads what is here even for --val, so it stays an optimizer's state
            content["optimizer_state"]["state"] = {}
        return content

    def settings(self) -> dict[str, dict[str, Any]]:
        """Also the arguments of the network, and the weights that training started from."""
        settings = super().settings()
        plans = settings["batch_size"]["source"]
        fixed = self._fixed(self.configuration_manager)
        for name, value in self.architecture(self.configuration_manager)["arch_kwargs"].items():
            source = plans if name in fixed else self._source(name)
            settings[name] = {"value": value, "source": source}
        source = self._source("scratch" if self.scratch else "initial_weights")
        if self.initial_weights is None and not self.scratch:
            in_plans = IN_PLANS in self.configuration_manager.configuration
            source = plans if in_plans or "scratch" in fixed else settings["backbone"]["source"]
        settings["weights"] = {"value": self._weights(), "source": source}
        for _, _, part in _parts(self.network):
            settings["weights"]["sha256"] = part.source and part.source.sha256
        return settings

    def _weights(self) -> str | None:
        return self.needed_weights(self.plans_manager, self.configuration_name)

    @classmethod
    def _fixed(cls, configuration: ConfigurationManager) -> dict[str, Any]:
        planned = configuration.configuration["architecture"]
        return planned["arch_kwargs"] if planned["network_class_name"] == cls.network_class_name else {}


@dataclass(frozen=True)
class Source:
    """Where frozen tensors of a network come from."""

    weights: str  # a name of the registry, or the path of a user's own file
    sha256: str
    tensors: list[str]  # the network's names

    @property
    def is_public(self) -> bool:
        """Whether anyone can get the file, and prove that it is the same."""
        return store.is_name(self.weights) and store.entry(self.weights).sha256 is not None

    def __str__(self) -> str:
        return f"{self.weights} (sha256 {self.sha256}), {len(self.tensors)} tensors of it frozen"


class PretrainedPart:
    """What a network remembers of its pretrained weights; fills them into state dicts that leave them out.

    It hooks into the loading of the network, however that is wrapped. The weights that are in the network already are
    not read again, be it for the next fold or the next case.
    """

    def __init__(
        self, network: nn.Module, load: Callable[[nn.Module, Mapping[str, Tensor]], Collection[str]]
    ) -> None:
        self.source: Source | None = None
        self._load = load
        network.pretrained_part = self
        network.register_load_state_dict_pre_hook(self._fill)

    def load(self, network: nn.Module, weights: str) -> None:
        """Load a name of the registry, or the user's own file.

        Raises:
            SamnnError: it is missing, not what its name says, or does not fit the network.
        """
        path, sha256 = store.verified(weights)
        state = store.read_state_dict(path)
        try:
            loaded = self._load(network, state)
        except SamnnError as error:
            raise SamnnError(
                f"{path}: cannot be what this network starts from. {error}\nName a file that fits under {IN_PLANS} in the "
                "plans, or train the variant that this one holds."
            ) from error
        frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
        self.source = Source(weights, sha256, [name for name in loaded if name in frozen])

    def _fill(self, network: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Called before a state dict is loaded into the network or into what wraps it."""
        record = state_dict.pop(prefix + RECORD, None)
        if record is None:  # complete, and perhaps of another origin
            self.source = None
            return
        wanted = Source(**record)
        inside = self.source
        if inside is None or inside.sha256 != wanted.sha256 or not set(wanted.tensors) <= set(inside.tensors):
            self._restore(network, wanted)
        own = network.state_dict()
        state_dict.update({prefix + name: own[name] for name in wanted.tensors})
        self.source = wanted

    def _restore(self, network: nn.Module, wanted: Source) -> None:
        try:
            self.load(network, wanted.weights)
            if self.source.sha256 != wanted.sha256:
                raise SamnnError(f"{wanted.weights}: has another sha256 here, {self.source.sha256}.")
        except SamnnError as error:
            raise SamnnError(
                f"The checkpoint leaves out {len(wanted.tensors)} frozen tensors, which are those of {wanted.weights} "
                f"(sha256 {wanted.sha256}), and they cannot be had here: {error}\nOr run `samnn export MODEL_FOLDER OUT` "
                "where the model was trained (not with a CRF behind it): what that writes needs no other weights."
            ) from error


def lean_state_dict(network: nn.Module, *, own_files: bool = False) -> dict[str, Any]:
    """The state dict of a network without the frozen weights of its pretrained parts, and a record of them instead.

    Left out are those from a public file of a published hash; with `own_files`, those from any file.
    """
    state = network.state_dict()
    for prefix, module, part in _parts(network):
        if part.source is None or not (own_files or part.source.is_public):
            continue
        frozen = [name for name in part.source.tensors if not module.get_parameter(name).requires_grad]
        for name in frozen:
            del state[prefix + name]
        state[prefix + RECORD] = asdict(part.source) | {"tensors": frozen}
    return state


def _parts(network: nn.Module) -> Iterator[tuple[str, nn.Module, PretrainedPart]]:
    """Prefix, network and record of each network with pretrained weights inside another, or the network itself."""
    for name, module in network.named_modules():
        part = vars(module).get(
            "pretrained_part"
        )  # a compiled wrapper would hand on its network's by getattr
        if part is not None:
            yield f"{name}." if name else "", module, part

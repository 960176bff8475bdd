"""Exports a trained model to a folder and zip that stock nnU-Net predicts from: no weights folder, no trainers of ours."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from samnn.atomic import whole_file, whole_folder, write_json
from samnn.errors import SamnnError
from samnn.inference.model import build_network, find_trainer, read_checkpoint, read_json
from samnn.nn import lora

CHECKPOINT = "checkpoint_final.pth"
OF_MODEL = (  # what else belongs to a model, where it is there
    "dataset.json",
    "dataset_fingerprint.json",
    "crossval_results_folds_*/postprocessing.*",
    "crossval_results_folds_*/summary.json",
)
OF_FOLD = ("settings.json", "validation/summary.json")


@dataclass(frozen=True)
class Exported:
    """What an export has written."""

    model: Path  # the model folder inside the new folder
    archive: Path
    dataset: str
    plans: str
    configuration: str
    folds: list[str]


def export(model: Path, out: Path, *, merge: bool = False, overwrite: bool = False) -> Exported:
    """Write the folder `out` and `out`.zip, both with the tree that nnUNet_results has.

    The plans name the network and the checkpoints hold all of its weights, so that nnU-Net's own trainer builds and
    fills it; for every fold the network built that way is compared with the trained one on a random patch. Plans
    are renamed after the trainer, so that nothing of nnU-Net's own results is in the way.

    Args:
        model: a results folder (`Trainer__Plans__configuration`) with finished folds.
        merge: fold LoRA into the weights for good; the network in the plans has none then.

    Raises:
        SamnnError: no finished fold, frozen weights that a checkpoint leaves out are not here, a network that plans
            cannot name, nothing to merge, `out` exists.
    """
    folds = sorted(path.parent for path in model.glob(f"fold_*/{CHECKPOINT}"))
    if not folds:
        raise SamnnError(
            f"{model}: holds no fold_*/{CHECKPOINT}. Name a results folder (Trainer__Plans__configuration) of a training "
            "that has ended."
        )
    plans, dataset = (read_json(model / name) for name in ("plans.json", "dataset.json"))
    archive = out.with_name(f"{out.name}.zip")
    if archive.exists() and not overwrite:
        raise SamnnError(f"{archive}: exists already. Add --overwrite to replace it.")
    first = read_checkpoint(folds[0] / CHECKPOINT)
    configuration = first["init_args"]["configuration"]
    trained = _Trained(first["trainer_name"], plans, configuration, dataset)
    plans = trained.stock_plans(merge=merge)
    inside = Path(plans["dataset_name"], f"nnUNetTrainer__{plans['plans_name']}__{configuration}")

    with whole_folder(out, overwrite=overwrite) as new:
        (new / inside).mkdir(parents=True)
        write_json(new / inside / "plans.json", plans)
        for fold in folds:
            checkpoint = read_checkpoint(fold / CHECKPOINT)
            network = trained.network(checkpoint["network_weights"])
            (new / inside / fold.name).mkdir()
            with whole_file(new / inside / fold.name / CHECKPOINT) as part:
                torch.save(_stock_checkpoint(checkpoint, network, plans, dataset, merge=merge), part)
            _copy(OF_FOLD, fold, new / inside / fold.name)
        _copy(OF_MODEL, model, new / inside)
    _zip(out, archive)
    return Exported(
        out / inside, archive, plans["dataset_name"], plans["plans_name"], configuration,
        [fold.name.removeprefix("fold_") for fold in folds],
    )  # fmt: skip


class _Trained:
    """The trainer of a model, with what its hooks ask for."""

    def __init__(
        self, trainer: str, plans: dict[str, Any], configuration: str, dataset: dict[str, Any]
    ) -> None:
        self.trainer = find_trainer(trainer)
        self.plans, self.dataset = plans, dataset
        self.configuration = configuration

    def stock_plans(self, *, merge: bool) -> dict[str, Any]:
        """The plans with one configuration, which names the network."""
        configuration = PlansManager(self.plans).get_configuration(self.configuration)
        chosen = getattr(self.trainer, "architecture", _of_plans)(configuration)
        arguments = dict(chosen["arch_kwargs"])
        if str(arguments.get("adapt", "")).startswith("lora"):
            arguments |= {"adapt": "frozen"} if merge else {"merged": True}
        elif merge:
            raise SamnnError(f"{self.trainer.__name__}: has no LoRA to merge. Leave --merge out.")
        settings = configuration.configuration | {"architecture": chosen | {"arch_kwargs": arguments}}
        settings.pop("inherits_from", None)
        return self.plans | {
            "plans_name": f"{self.trainer.__name__}_{self.plans['plans_name']}",
            "configurations": {self.configuration: settings},
        }

    def network(self, weights: dict[str, Any]) -> nn.Module:
        """The trained network of a fold, as prediction has it."""
        network = _build(self.trainer, self.plans, self.configuration, self.dataset)
        network.load_state_dict(weights)
        return network.eval()


def _stock_checkpoint(
    checkpoint: dict[str, Any],
    network: nn.Module,
    plans: dict[str, Any],
    dataset: dict[str, Any],
    *,
    merge: bool,
) -> dict[str, Any]:
    """All weights, for nnU-Net's own trainer; proved by what a network made from them gives."""
    configuration = checkpoint["init_args"]["configuration"]
    weights = lora.merged_state_dict(network) if merge else network.state_dict()
    stock = _build(nnUNetTrainer, plans, configuration, dataset)
    patch = torch.randn(
        1, *_input_shape(plans, configuration, dataset), generator=torch.Generator().manual_seed(0)
    )
    try:
        stock.load_state_dict(weights)
    except RuntimeError as error:
        raise _not_stock(checkpoint) from error
    with torch.inference_mode():
        expected, found = network(patch), stock.eval()(patch)
    if not torch.equal(expected, found):
        raise _not_stock(checkpoint)
    return {
        "network_weights": {name: value.detach().cpu().clone() for name, value in weights.items()},
        "trainer_name": nnUNetTrainer.__name__,
        "init_args": {"configuration": configuration, "fold": checkpoint["init_args"]["fold"]},
        "inference_allowed_mirroring_axes": checkpoint["inference_allowed_mirroring_axes"],
        "current_epoch": checkpoint["current_epoch"],
        "samnn": {"exported_from": checkpoint["trainer_name"]},
    }


def _not_stock(checkpoint: dict[str, Any]) -> SamnnError:
    return SamnnError(
        f"{checkpoint['trainer_name']}: builds another network than its plans can name, so a stock trainer cannot predict "
        "with it. Share the model folder itself; samnn is needed where it predicts."
    )


def _build(trainer: Any, plans: dict[str, Any], configuration: str, dataset: dict[str, Any]) -> nn.Module:
    """The network that the predictor would build."""
    manager = PlansManager(plans)
    return build_network(trainer, manager, manager.get_configuration(configuration), dataset)


def _input_shape(plans: dict[str, Any], configuration: str, dataset: dict[str, Any]) -> tuple[int, ...]:
    """(channels, *patch)."""
    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    return (determine_num_input_channels(manager, chosen, dataset), *chosen.patch_size)


def _of_plans(configuration: Any) -> dict[str, Any]:
    return configuration.configuration["architecture"]


def _copy(patterns: tuple[str, ...], source: Path, target: Path) -> None:
    for pattern in patterns:
        for path in source.glob(pattern):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def _zip(folder: Path, archive: Path) -> None:
    """What nnUNetv2_install_pretrained_model_from_zip unpacks; stored, for weights do not shrink."""
    with whole_file(archive) as part, zipfile.ZipFile(part, "w") as writer:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                writer.write(path, path.relative_to(folder))

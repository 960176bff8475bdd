"""Model folders of nnU-Net's with random weights, images for them, and an exact prediction to compare with."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

from samnn.geometry import Grid
from samnn.inference.model import build_network, find_trainer, read_model
from samnn.io import Volume, write_volume

CLASSES = {"background": 0, "ball": 1, "core": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
SIZES = {"2d": ([32, 24], [1.0, 1.0]), "3d_fullres": ([16, 16, 16], [1.0, 1.0, 1.0])}


def write_model(
    folder: Path,
    configuration: str = "2d",
    *,
    labels: dict[str, Any] = CLASSES,
    folds: tuple[int, ...] = (0,),
    previous_stage: str | None = None,
    trainer: str = "nnUNetTrainer",
    architecture: dict[str, Any] | None = None,
    resampling: dict[str, Any] | None = None,
    mirrored: tuple[int, ...] | None = None,
) -> Path:
    """A results folder whose checkpoints hold random weights, a different draw for each fold."""
    patch, spacing = SIZES[configuration]
    dims = len(patch)
    of_probabilities = resampling or {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    default = "resample_data_or_seg_to_shape"
    settings = {
        "data_identifier": f"nnUNetPlans_{configuration}", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": patch, "spacing": spacing, "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False], "batch_dice": True,
        "resampling_fn_data": default, "resampling_fn_seg": default, "resampling_fn_probabilities": default,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities_kwargs": of_probabilities,
        "architecture": architecture or unet(dims), "previous_stage": previous_stage,
    }  # fmt: skip
    plans = {
        "dataset_name": "Dataset501_Tiny", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "configurations": {configuration: settings}, "foreground_intensity_properties_per_channel": {"0": {}},
    }  # fmt: skip
    if previous_stage is not None:
        plans["configurations"][previous_stage] = settings | {"previous_stage": None}
    regions = any(isinstance(value, list) for value in labels.values())
    dataset = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    dataset |= {"regions_class_order": [1, 2]} if regions else {}
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for fold in folds:
        write_fold(folder, fold, configuration, trainer, mirrored or tuple(range(dims)))
    return folder


def write_fold(
    folder: Path, fold: int, configuration: str, trainer: str, mirrored: tuple[int, ...], **more: Any
) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(json.loads((folder / "plans.json").read_text()))
    torch.manual_seed(fold)
    dataset = json.loads((folder / "dataset.json").read_text())
    network = build_network(find_trainer(trainer), plans, plans.get_configuration(configuration), dataset)
    checkpoint = {
        "network_weights": network.state_dict(), "trainer_name": trainer,
        "init_args": {"configuration": configuration, "fold": fold}, "inference_allowed_mirroring_axes": mirrored,
        "logging": {"mean_fg_dice": [np.float64(0.5)]}, **more,
    }  # fmt: skip
    (folder / f"fold_{fold}").mkdir(exist_ok=True)
    torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")


def unet(dims: int) -> dict[str, Any]:
    """nnU-Net's own, with two stages."""
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2, "features_per_stage": [8, 16], "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [[3] * dims] * 2, "strides": [[1] * dims, [2] * dims], "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1], "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip


def write_images(folder: Path, n: int = 1, *, spacing_mm: tuple[float, ...] = (1.0, 1.5, 1.2)) -> Path:
    """Noise of (x, y, z) voxels that have to be resampled, at an odd place in the patient."""
    folder.mkdir(parents=True)
    for i in range(n):
        shape = (26, 22 + i, 12)
        voxels = np.random.default_rng(i).normal(100, 20, shape).astype(np.float32)
        grid = Grid(shape, spacing_mm, (-12.5, 40.0, 7.25), (0, 1, 0, -1, 0, 0, 0, 0, 1))
        write_volume(folder / f"case_{i}_0000.nii.gz", Volume(voxels, grid))
    return folder


@torch.inference_mode()
def exact_logits(folder: Path, image: torch.Tensor, folds: tuple[int, ...] = (0,)) -> torch.Tensor:
    """(classes, *shape) of an image (channels, *shape) that is nowhere smaller than the patch: nnU-Net's algorithm, every
    tile and mirror image alone in float32, every sum in float64."""
    model = read_model(folder, folds, "checkpoint_final.pth")
    patch = tuple(model.configuration_manager.patch_size)
    weight = compute_gaussian(
        patch, sigma_scale=1 / 8, value_scaling_factor=10, dtype=torch.float64, device=torch.device("cpu")
    )
    within = image.shape[-len(patch) :]
    starts = itertools.product(*compute_steps_for_sliding_window(within, patch, 0.5))
    tiles = [tuple(slice(s, s + n) for s, n in zip(start, patch, strict=True)) for start in starts]
    if len(patch) == 2:
        tiles = [(slice(d, d + 1), *tile) for tile in tiles for d in range(image.shape[1])]
    axes = model.inference_allowed_mirroring_axes
    mirrors = [
        [-len(patch) + a for a in some]
        for n in range(len(axes) + 1)
        for some in itertools.combinations(axes, n)
    ]
    total, weights = 0.0, torch.zeros(image.shape[1:], dtype=torch.float64)
    for parameters in model.parameters:
        network = model.network.eval()
        network.load_state_dict(parameters)
        logits = None
        weights.zero_()
        for tile in tiles:
            part = image[(slice(None), *tile)]
            batch = part.movedim(0, 1) if len(patch) == 2 else part[None]
            mean = sum(network(batch.flip(m)).flip(m).double() for m in mirrors) / len(mirrors)
            mean = mean.movedim(1, 0) if len(patch) == 2 else mean[0]
            if logits is None:
                logits = torch.zeros(len(mean), *image.shape[1:], dtype=torch.float64)
            logits[(slice(None), *tile)] += mean * weight
            weights[tile] += weight
        total = total + logits / weights
    return total / len(model.parameters)

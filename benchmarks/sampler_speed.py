"""What `_AdaptiveSampler_ClassBalanced` adds to nnU-Net's own time for a training batch, in one process.

    python benchmarks/sampler_speed.py

Batches of nnU-Net's loader (with its augmentation) and of ours are made in turns from the same made-up cases, with no
patch without foreground accepted, which is when most places are drawn again. The part of both that finds places is
timed within: what ours takes longer there is the overhead, in percent of nnU-Net's median batch.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from samnn.training.occupancy import occupancy_of
from samnn.training.sampled_loader import SampledLoader

# name → shape of a case, patch, batch size; slices or voxels with foreground are a fifth of each axis
SETTINGS = {
    "2D, small (35 × 50 × 36, patch 56 × 40)": ((36, 50, 35), (56, 40), 58),
    "2D, large (80 × 320 × 320, patch 256 × 256)": ((80, 320, 320), (256, 256), 12),
    "3D, small (48 × 56 × 48, patch 40 × 56 × 40)": ((48, 56, 48), (40, 56, 40), 9),
    "3D, large (128 × 240 × 240, patch 64 × 128 × 128)": ((128, 240, 240), (64, 128, 128), 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=20, help="of each loader (default 20)")
    parser.add_argument("--cases", type=int, nargs="+", default=[10, 300], help="default: 10 300")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name, (shape, patch, batch_size) in SETTINGS.items():
        print(name)
        for n_cases in chosen.cases:
            with tempfile.TemporaryDirectory() as scratch:
                report(n_cases, *measured(Path(scratch), n_cases, shape, patch, batch_size, chosen.batches))


def measured(
    scratch: Path, n_cases: int, shape: tuple, patch: tuple, batch_size: int, n_batches: int
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Seconds of each batch and, of those, for finding places: nnU-Net's, nnU-Net's; ours, ours."""
    folder = written(scratch / "Plans", n_cases, shape, patch)
    loaders = loader_of(folder, patch, batch_size), loader_of(folder, patch, batch_size)
    occupancy = occupancy_of(
        folder,
        nnUNetDatasetBlosc2,
        labels=[1, 2],
        patch_dims=len(patch),
        places=[scratch],
        tell=lambda _: None,
    )
    SampledLoader.made_of(loaders[1], occupancy, classes=[1, 2], acceptance=[0.0], class_weights=[0.1, 0.9])
    whole: tuple[list[float], list[float]] = ([], [])
    finding: tuple[list[float], list[float]] = ([], [])
    for i in range(n_batches + 1):
        for loader, batch_s, place_s in zip(loaders, whole, finding, strict=True):
            random.seed(i)
            np.random.seed(i)
            spent = []
            plain = type(loader).get_bbox
            loader.get_bbox = timed(plain.__get__(loader), spent)
            began = time.perf_counter()
            next(loader)
            if i > 0:  # the first warms caches
                batch_s.append(time.perf_counter() - began)
                place_s.append(sum(spent))
    return whole[0], finding[0], whole[1], finding[1]


def timed(function: Callable, spent: list[float]) -> Callable:
    """`function`, each call of which adds its seconds to `spent`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = function(*args, **kwargs)
        spent.append(time.perf_counter() - began)
        return result

    return call


def report(
    n_cases: int,
    stock_s: list[float],
    stock_places_s: list[float],
    ours_s: list[float],
    places_s: list[float],
) -> None:
    batch_s = statistics.median(stock_s)
    more = [(ours - stock) / batch_s for ours, stock in zip(places_s, stock_places_s, strict=True)]
    print(
        f"  {n_cases:>5} cases: overhead {statistics.median(more):.2%} ({min(more):.2%} to {max(more):.2%} in {len(more)} "
        f"batches) of nnU-Net's {batch_s * 1e3:.1f} ms a batch; whole batches of ours take "
        f"{statistics.median(ours_s) * 1e3:.1f} ms"
    )


def loader_of(folder: Path, patch: tuple, batch_size: int) -> nnUNetDataLoader:
    """nnU-Net's training loader with its augmentation, as its trainer builds it for near-cubic patches."""
    flat = len(patch) == 2
    rotation = (-np.pi, np.pi) if flat else (-np.pi / 6, np.pi / 6)
    transforms = nnUNetTrainer.get_training_transforms(
        patch, rotation, None, tuple(range(len(patch))), False, use_mask_for_norm=[False]
    )
    drawn = get_patch_size(patch, rotation, rotation, rotation, (0.85, 1.25))
    labels = LabelManager({"background": 0, "thick": 1, "thin": 2}, None)
    return nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(folder)), batch_size, drawn, patch, labels, 0.33, transforms=transforms
    )


def written(folder: Path, n_cases: int, shape: tuple, patch: tuple) -> Path:
    """A preprocessed folder: one case of noise and two organs, and links to it."""
    folder.mkdir()
    labels = np.zeros((1, *shape), np.int16)
    labels[(0, *(slice(2 * n // 5, 3 * n // 5) for n in shape))] = 1
    labels[(0, slice(2 * shape[0] // 5, 3 * shape[0] // 5), *(n // 2 for n in shape[1:]))] = 2
    image = np.random.default_rng(0).normal(size=labels.shape).astype(np.float32)
    properties = {"class_locations": DefaultPreprocessor._sample_foreground_locations(labels, [1, 2])}
    blocks, chunks = comp_blosc2_params(labels.shape, patch, 4)
    nnUNetDatasetBlosc2.save_case(
        image, labels, properties, str(folder / "case_0"), chunks=chunks, blocks=blocks
    )
    for i in range(1, n_cases):
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            os.link(folder / f"case_0{ending}", folder / f"case_{i}{ending}")
    return folder


if __name__ == "__main__":
    main()

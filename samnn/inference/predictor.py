"""BatchedPredictor: nnU-Net's predictor, made to keep the hardware busy; same algorithm, sums in 32 bits."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from samnn import hardware
from samnn.errors import SamnnError
from samnn.nn import lora
from samnn.nn.coarse import Coarse

from . import cpu
from .canvas import Canvas, Slicer
from .model import read_model
from .precision import autocast, chosen, exact_products

VOXELS_AT_ONCE = 1 << 22  # of a batch on a GPU, mirror images counted: 16 pictures of 512 x 512
CANVAS_SHARE = 0.5  # of a GPU's free memory, for the sums
Mirrors = list[tuple[int, ...]]  # axes to flip, one entry a forward pass


class BatchedPredictor(nnUNetPredictor):
    """Predicts what nnU-Net's predictor does, from the same arguments and a few more.

    On a GPU tiles and their mirror images go through the network in batches; on a CPU, where a batch is slower than
    its parts, tiles are computed side by side, with a core each. Sums are kept in float32. LoRA is merged. A
    network that is `Coarse` is averaged over mirror images before its logits are enlarged.

    Args:
        precision: "fp32", "bf16", "fp16" or "auto" (samnn.inference.precision), or a type of autocast, None for none.
        trust: unpickle checkpoints that hold more than tensors and plain Python; that can run code.
        on_tiles: called with the number of tiles done and of all tiles of a volume.
    """

    def __init__(
        self,
        tile_step_size: float = 0.5,
        use_gaussian: bool = True,
        use_mirroring: bool = True,
        perform_everything_on_device: bool = True,
        device: torch.device = torch.device("cuda"),
        verbose: bool = False,
        verbose_preprocessing: bool = False,
        allow_tqdm: bool = True,
        *,
        precision: str | torch.dtype | None = "auto",
        trust: bool = False,
        on_tiles: Callable[[int, int], None] | None = None,
    ) -> None:
        with contextlib.redirect_stdout(None):  # on a CPU it would say what is known
            super().__init__(
                tile_step_size,
                use_gaussian,
                use_mirroring,
                perform_everything_on_device and device.type == "cuda",
                device,
                verbose,
                verbose_preprocessing,
                allow_tqdm,
            )
        self.dtype = chosen(precision, device) if isinstance(precision, str) else precision
        self.trust, self.on_tiles = trust, on_tiles
        self._loaded: dict[str, Any] | None = None
        self._bytes_per_tile: int | None = None

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str,
        use_folds: Sequence[int | str] | None,
        checkpoint_name: str = "checkpoint_final.pth",
    ) -> None:
        """nnU-Net's hook, which unpickles nothing unless `trust` says so.

        Raises:
            SamnnError: the folder is no model, a fold is not there or not whole, its trainer is not installed.
        """
        self.manual_initialization(
            **vars(read_model(model_training_output_dir, use_folds, checkpoint_name, trust=self.trust))
        )

    def manual_initialization(self, network: nn.Module, *args: Any, **kwargs: Any) -> None:
        """nnU-Net's hook; a compiled or distributed network is taken out of its wrapper."""
        super().manual_initialization(bare(network), *args, **kwargs)
        self._loaded = self._bytes_per_tile = None

    def predict_logits_from_preprocessed_data(self, data: Tensor) -> Tensor:
        """nnU-Net's hook: (channels, *shape) → logits (classes, *shape) on the CPU, the mean of all folds."""
        return self._predict(data, self.list_of_parameters)

    def predict_sliding_window_return_logits(self, input_image: Tensor) -> Tensor:
        """nnU-Net's hook: the same with the weights that are in the network."""
        return self._predict(input_image, [None])

    @torch.inference_mode()
    def _predict(self, image: Tensor, folds: Sequence[dict[str, Any] | None]) -> Tensor:
        patch = tuple(self.configuration_manager.patch_size)
        padded, unpadded = pad_nd_image(image.float(), patch, "constant", {"value": 0}, True, None)
        tiles = self._internal_get_sliding_window_slicers(padded.shape[1:])
        gaussian = None
        if self.use_gaussian:
            gaussian = compute_gaussian(
                patch,
                sigma_scale=1 / 8,
                value_scaling_factor=10,
                dtype=torch.float32,
                device=torch.device("cpu"),
            )
        shape, n_classes = padded.shape[1:], self.label_manager.num_segmentation_heads
        home = self._home(4 * (n_classes + 1) * math.prod(shape) + padded.nbytes)
        canvas = Canvas(n_classes, shape, tiles, gaussian, home, passes=len(folds))
        padded = padded.to(home)
        n_done = 0
        with exact_products(self.dtype, self.device):
            for weights in folds:
                self._load(weights)
                predictions = self._side_by_side if self.device.type == "cpu" else self._in_batches
                for logits in predictions(padded, tiles):
                    canvas.add(logits)
                    n_done += len(logits)
                    if self.on_tiles is not None:
                        self.on_tiles(n_done, len(tiles) * len(folds))
        logits = canvas.finished()
        if not bool(torch.isfinite(canvas.sums.sum(dtype=torch.float64))):
            used = "float32" if self.dtype is None else str(self.dtype).removeprefix("torch.")
            raise SamnnError(
                f"The network's logits are not finite in {used}. "
                + ("Is the image?" if self.dtype is None else "Use --precision fp32.")
            )
        return logits[(slice(None), *unpadded[1:])]

    def _load(self, weights: dict[str, Any] | None) -> None:
        """Make the network ready, with the weights of a fold unless it has them."""
        network = self.network = self.network.to(self.device).eval()
        if weights is not None and weights is not self._loaded:
            network.load_state_dict(weights)
        self._loaded = weights
        lora.merge(network)

    def _home(self, n_bytes: int) -> torch.device:
        """Where image and sums are kept: on the GPU if they fit."""
        fits = self.device.type == "cuda" and n_bytes < CANVAS_SHARE * hardware.free_memory_bytes(self.device)
        return self.device if self.perform_everything_on_device and fits else torch.device("cpu")

    def _mirrors(self) -> Mirrors:
        """The axes to flip of (B, C, *spatial), for each forward pass."""
        axes = [2 + axis for axis in (self.allowed_mirroring_axes or ())] if self.use_mirroring else []
        return [some for n in range(len(axes) + 1) for some in itertools.combinations(axes, n)]

    def _side_by_side(self, image: Tensor, tiles: Sequence[Slicer]) -> Iterator[Tensor]:
        """Logits of each tile, (1, classes, *patch)."""
        mirrors = self._mirrors()

        def one(tile: Slicer) -> Tensor:
            with torch.inference_mode(), autocast(self.dtype, self.device):
                return mirrored_mean(self.network, image[tile][None].to(self.device), mirrors)

        with hardware.kept_memory():
            tiles = list(tiles)
            if self._bytes_per_tile is None:
                with cpu.counted_activations(self.network) as counted:
                    yield one(tiles.pop(0))
                self._bytes_per_tile = counted() // len(mirrors)
            yield from cpu.side_by_side(one, tiles, cpu.workers(len(tiles), self._bytes_per_tile))

    def _in_batches(self, image: Tensor, tiles: Sequence[Slicer]) -> Iterator[Tensor]:
        """Logits of some tiles, (tiles, classes, *patch); fewer at a time where the GPU's memory does not last."""
        mirrors = self._mirrors()
        at_once = max(1, VOXELS_AT_ONCE // math.prod(image[tiles[0]].shape[1:]))  # forward passes
        start = 0
        while start < len(tiles):
            some = tiles[start : start + max(1, at_once // len(mirrors))]
            batch = torch.stack([image[tile] for tile in some]).to(self.device, non_blocking=True)
            try:
                with autocast(self.dtype, self.device):
                    logits = mirrored_mean(self.network, batch, mirrors, at_once=max(1, at_once // len(some)))
            except torch.cuda.OutOfMemoryError:
                if at_once == 1:
                    raise
                at_once //= 2
                torch.cuda.empty_cache()
                continue
            yield logits
            start += len(some)


def mirrored_mean(network: nn.Module, image: Tensor, mirrors: Mirrors, *, at_once: int = 1) -> Tensor:
    """(B, C, *patch) → logits (B, classes, *patch) in float32: the mean over mirror images, flipped back.

    mirrors: the axes to flip for each image; `at_once` of them in a forward pass.
    """
    forward, enlarge = network, None
    if isinstance(network, Coarse) and not network._forward_hooks:  # a hook (a CRF) wants the logits enlarged
        forward, enlarge = network.coarse_logits, partial(network.enlarge, size=tuple(image.shape[2:]))
        image = network.resize(image)
    total = None
    for start in range(0, len(mirrors), at_once):
        some = mirrors[start : start + at_once]
        images = torch.cat([image.flip(axes) if axes else image for axes in some])
        for axes, logits in zip(some, forward(images).float().split(len(image)), strict=True):
            logits = logits.flip(axes) if axes else logits
            total = logits if total is None else total.add_(logits)
    total /= len(mirrors)
    return total if enlarge is None else enlarge(total)


def bare(network: nn.Module) -> nn.Module:
    """The network inside DDP and torch.compile wrappers."""
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network

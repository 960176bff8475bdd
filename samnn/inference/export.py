"""From logits to files: label map and probabilities on the original grid, in memory that does not grow with the classes."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from samnn.atomic import whole_file

from .resampling import OriginalGrid, spatial


@torch.inference_mode()
def export_prediction_from_logits(
    predicted_array_or_file: np.ndarray | Tensor,
    properties_dict: dict[str, Any],
    configuration_manager: ConfigurationManager,
    plans_manager: PlansManager,
    dataset_json_dict_or_file: dict[str, Any] | str,
    output_file_truncated: str,
    save_probabilities: bool = False,
    num_threads_torch: int | None = None,
) -> None:
    """nnU-Net's function of this name: the same files, each whole or not at all, the label map last.

    predicted_array_or_file: logits, (classes or regions, *predicted shape).
    num_threads_torch: threads to compute with; None leaves them as they are.

    Raises:
        SamnnError: a file cannot be written.
    """
    dataset = dataset_json_dict_or_file
    if isinstance(dataset, str):
        dataset = json.loads(Path(dataset).read_text(encoding="utf-8"))
    with _threads(num_threads_torch):
        labels = plans_manager.get_label_manager(dataset)
        grid = OriginalGrid(predicted_array_or_file, plans_manager, configuration_manager, properties_dict)
        segmentation, log_sums = decide(grid, labels, properties_dict, with_sums=save_probabilities)
        back = plans_manager.transpose_backward
        target = Path(output_file_truncated)
        if save_probabilities:
            with whole_file(target.with_name(f"{target.name}.npz")) as part:
                _write_probabilities(part, grid, labels, properties_dict, log_sums, back)
            with whole_file(target.with_name(f"{target.name}.pkl")) as part, open(part, "wb") as file:
                pickle.dump(properties_dict, file)
    ending = dataset["file_ending"]
    with whole_file(target.with_name(f"{target.name}{ending}")) as part:
        writer = plans_manager.image_reader_writer_class()
        writer.write_seg(segmentation.transpose(back), str(part), properties_dict)
        beside = part.with_name(part.name.removesuffix(ending) + ".json")
        if beside.exists():  # of a TIFF, which has no place for its spacing
            beside.replace(target.with_name(f"{target.name}.json"))


def decide(
    grid: OriginalGrid, labels: LabelManager, properties: dict[str, Any], *, with_sums: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """The label map on the grid before cropping, in nnU-Net's order of axes: the best class, or nnU-Net's rule of regions.

    With `with_sums` also the logarithm of the sum of exponentials over classes, inside the crop; None for regions.
    """
    kind = np.uint8 if len(labels.foreground_labels) < 255 else np.uint16
    segmentation = np.zeros(tuple(properties["shape_before_cropping"]), dtype=kind)
    inside = segmentation[spatial(properties["bbox_used_for_cropping"])]
    sums = np.empty(grid.shape, np.float32) if with_sums and not labels.has_regions else None
    for slab in grid.slabs():
        if labels.has_regions:
            inside[slab] = _regions(grid, labels, slab)
            continue
        best = grid.planes(0, slab)
        chosen = torch.zeros(best.shape, dtype=torch.int16)
        total = torch.ones_like(best) if with_sums else None  # of exp(logit - best)
        for index in range(1, grid.n_classes):
            logits = grid.planes(index, slab)
            chosen.masked_fill_(logits > best, index)
            if total is not None:
                higher = torch.maximum(best, logits)
                total.mul_((best - higher).exp_()).add_((logits - higher).exp_())
                best = higher
            else:
                torch.maximum(best, logits, out=best)
        inside[slab] = chosen.numpy()
        if total is not None:
            sums[slab] = (best + total.log_()).numpy()
    return segmentation, sums


def _regions(grid: OriginalGrid, labels: LabelManager, slab: slice) -> np.ndarray:
    """Later regions paint over earlier ones."""
    painted = torch.zeros((slab.stop - slab.start, *grid.shape[1:]), dtype=torch.int32)
    for index, value in enumerate(labels.regions_class_order):
        painted.masked_fill_(grid.planes(index, slab).sigmoid() > 0.5, value)
    return painted.numpy()


def _write_probabilities(
    path: Path,
    grid: OriginalGrid,
    labels: LabelManager,
    properties: dict[str, Any],
    log_sums: np.ndarray | None,
    back: list[int],
) -> None:
    """What numpy.savez_compressed(path, probabilities=...) writes, a class at a time."""
    shape = tuple(int(n) for n in properties["shape_before_cropping"])
    crop = spatial(properties["bbox_used_for_cropping"])
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
        "fortran_order": False,
        "shape": (grid.n_classes, *(shape[axis] for axis in back)),
    }
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("probabilities.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for index in range(grid.n_classes):
            outside = 1 if index == 0 and not labels.has_regions else 0  # background
            whole = np.full(shape, outside, np.float32)
            inside = whole[crop]
            for slab in grid.slabs():
                logits = grid.planes(index, slab)
                if log_sums is None:
                    inside[slab] = logits.sigmoid_().numpy()
                else:
                    inside[slab] = (logits - torch.from_numpy(log_sums[slab])).exp_().numpy()
            turned = whole.transpose(back)
            for plane in turned:
                file.write(np.ascontiguousarray(plane).data)


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(min(n, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)

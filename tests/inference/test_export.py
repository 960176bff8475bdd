"""From logits to files: nnU-Net's numbers, in memory that does not grow with the number of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
)
from tiny_models import CLASSES, REGIONS, write_images, write_model

from samnn.inference import export as ours
from samnn.inference.export import decide, export_prediction_from_logits
from samnn.inference.model import read_model
from samnn.inference.resampling import OriginalGrid

MANY = {"background": 0} | {f"class {i}": i for i in range(1, 100)}
ANISOTROPIC = {
    "spacing": [5.0, 1.0, 1.0],
    "shape": (11, 30, 27),
}  # nnU-Net resamples such axes apart, to the nearest


def case(
    folder: Path, configuration: str = "3d_fullres", *, shape: tuple[int, ...] = (22, 26, 31),
    spacing: list[float] | None = None, predicted: tuple[int, ...] = (17, 30, 24), **model: Any,
) -> tuple[np.ndarray, dict[str, Any], Any]:  # fmt: skip
    """Random logits, nnU-Net's properties of a cropped image, and the model."""
    read = read_model(write_model(folder, configuration, **model), (0,), "checkpoint_final.pth")
    n_classes = read.plans_manager.get_label_manager(read.dataset_json).num_segmentation_heads
    logits = np.random.default_rng(0).normal(0, 3, (n_classes, *predicted)).astype(np.float32)
    properties = {
        "spacing": spacing or [0.8, 1.1, 0.8],
        "shape_before_cropping": tuple(n + 5 for n in shape),
        "bbox_used_for_cropping": [[2, 2 + n] for n in shape],
        "shape_after_cropping_and_before_resampling": shape,
    }
    return logits, properties, read


def stock(logits: np.ndarray, properties: dict, model: Any, probabilities: bool = False) -> Any:
    labels = model.plans_manager.get_label_manager(model.dataset_json)
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.copy(), model.plans_manager, model.configuration_manager, labels, properties, probabilities, 1
    )


def found(logits: np.ndarray, properties: dict, model: Any) -> np.ndarray:
    labels = model.plans_manager.get_label_manager(model.dataset_json)
    grid = OriginalGrid(logits, model.plans_manager, model.configuration_manager, properties)
    return decide(grid, labels, properties)[0].transpose(model.plans_manager.transpose_backward)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"labels": REGIONS},
        {"predicted": (22, 26, 31)},
        {"configuration": "2d", "predicted": (22, 31, 24)},
        {"spacing": ANISOTROPIC["spacing"], "shape": ANISOTROPIC["shape"], "predicted": (14, 21, 35)},
        {"spacing": ANISOTROPIC["spacing"], "shape": ANISOTROPIC["shape"], "predicted": (11, 21, 35)},
        {"predicted": (1, 40, 24), "shape": (1, 26, 31), "configuration": "2d"},
        {"resampling": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}, "predicted": (9, 12, 15)},
        {"labels": MANY, "predicted": (9, 12, 15)},
    ],
    ids=["3d", "regions", "same_grid", "2d", "coarse_axis", "coarse_axis_same", "picture", "cubic", "100_classes"],
)  # fmt: skip
def test_label_maps_are_those_of_nnunet(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samnn.inference.resampling.VOXELS_AT_ONCE", 3000)  # several slabs
    logits, properties, model = case(tmp_path / "model", **options)
    expected, result = stock(logits, properties, model), found(logits, properties, model)
    assert result.dtype == expected.dtype and result.shape == expected.shape
    assert len(np.unique(result)) > 2
    assert (result != expected).mean() < 1e-4  # float32 against float64 at ties


def test_axes_are_turned_back_as_by_nnunet(tmp_path: Path) -> None:
    logits, properties, model = case(tmp_path / "model", shape=(22, 26, 31))
    model.plans_manager.plans |= {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}
    expected = stock(logits, properties, model)
    assert expected.shape == (31, 36, 27)
    assert (found(logits, properties, model) != expected).mean() < 1e-4


def test_logits_are_left_as_they_are(tmp_path: Path) -> None:
    for predicted in [(22, 26, 31), (17, 30, 24)]:
        logits, properties, model = case(tmp_path / str(predicted[0]), predicted=predicted)
        before = logits.copy()
        found(logits, properties, model)
        assert np.array_equal(logits, before)


@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
def test_files_are_those_of_nnunet(labels: dict, tmp_path: Path) -> None:
    logits, properties, model = case(tmp_path / "model", labels=labels)
    images = write_images(tmp_path / "images")
    _, read = model.plans_manager.image_reader_writer_class().read_images(
        [str(images / "case_0_0000.nii.gz")]
    )
    properties |= read | {"spacing": properties["spacing"]}
    export_prediction_from_logits(
        torch.from_numpy(logits), properties, model.configuration_manager, model.plans_manager, model.dataset_json,
        str(tmp_path / "case_0"), True, 1,
    )  # fmt: skip
    expected, probabilities = stock(logits, properties, model, probabilities=True)
    saved = np.load(tmp_path / "case_0.npz")["probabilities"]
    assert saved.dtype == probabilities.dtype == np.float32
    assert np.abs(saved - probabilities).max() < 1e-5
    labels_written, _ = model.plans_manager.image_reader_writer_class().read_seg(
        str(tmp_path / "case_0.nii.gz")
    )
    assert (labels_written[0] != expected).mean() < 1e-4
    assert np.load(tmp_path / "case_0.pkl", allow_pickle=True)["bbox_used_for_cropping"][0] == [2, 24]
    assert not list(tmp_path.glob(".part-*"))


def test_the_label_map_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its being there says that a case is finished."""
    logits, properties, model = case(tmp_path / "model")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ours, "_write_probabilities", full)
    with pytest.raises(Exception, match="No space left"):
        export_prediction_from_logits(
            logits, properties, model.configuration_manager, model.plans_manager, model.dataset_json,
            str(tmp_path / "case_0"), True, 1,
        )  # fmt: skip
    assert not list(tmp_path.glob("*case_0*"))


def peak_mib(work: Any) -> float:
    """Memory that `work` adds at its peak to what the process holds (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    held = int(status["VmRSS"].split()[0])
    work()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return (int(status["VmHWM"].split()[0]) - held) / 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are reset by Linux")
def test_memory_of_export_does_not_grow_with_the_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    peaks = {}
    for n, names in [(3, CLASSES), (100, MANY)]:
        logits, properties, model = case(
            tmp_path / str(n), labels=names, predicted=(20, 64, 64), shape=(28, 96, 96)
        )
        found(logits, properties, model)  # what is only once
        peaks[n] = peak_mib(lambda args=(logits, properties, model): found(*args))
    theirs = peak_mib(lambda: stock(logits, properties, model))
    with capsys.disabled():
        print(
            f"\nexport adds {peaks[3]:.1f} MiB with 3 classes, {peaks[100]:.1f} with 100; nnU-Net's {theirs:.1f}"
        )
    assert peaks[100] < peaks[3] + 5
    assert peaks[100] < theirs / 4

"""`samnn predict`: nnU-Net's files from nnU-Net's arguments, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tiny_models import REGIONS, write_images, write_model
from typer.testing import CliRunner, Result

from samnn.cli import app
from samnn.io import Volume, read_grid, read_labels, read_volume, write_volume


def predict(*args: object, ok: bool = True) -> Result:
    done = CliRunner().invoke(app, ["predict", *map(str, args), "--disable_progress_bar", "-device", "cpu"])
    if ok and done.exit_code != 0:
        raise done.exception
    return done


def stock(
    model: Path, images: Path, out: Path, folds: tuple[int, ...] = (0,), **options: object
) -> dict[str, np.ndarray]:
    out.mkdir()
    theirs = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=False)
    theirs.initialize_from_trained_model_folder(str(model), folds)
    theirs.predict_from_files_sequential(str(images), str(out), **options)
    return labels_in(out)


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_labels(path).voxels for path in sorted(folder.glob("*.nii.gz"))}


def differing(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] != theirs[name]).mean()) for name in ours)


@pytest.mark.parametrize(
    ("kind", "folds"),
    [
        ({"configuration": "2d"}, (0, 1)),
        ({"configuration": "3d_fullres", "mirrored": (1,)}, (0,)),
        ({"configuration": "3d_fullres", "mirrored": (0,), "labels": REGIONS}, (0,)),
    ],
    ids=["2d_two_folds", "3d", "regions"],
)
def test_label_maps_are_those_of_the_stock_command(
    kind: dict, folds: tuple[int, ...], tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model", **kind, folds=folds)
    images = write_images(tmp_path / "images", 2)
    predict("-i", images, "-o", tmp_path / "ours", "-m", model, "-f", *folds, "--save_probabilities")
    theirs = stock(model, images, tmp_path / "theirs", folds, save_probabilities=True)
    assert differing(labels_in(tmp_path / "ours"), theirs) < 0.03  # fp16 sums of random, nearly equal logits
    for name in theirs:
        reference = read_grid(images / name.replace(".nii.gz", "_0000.nii.gz"))
        assert not read_grid(tmp_path / "ours" / name).differences(reference)
        ours, same = (
            np.load(tmp_path / folder / name.replace(".nii.gz", ".npz"))["probabilities"] for folder in ("ours", "theirs")
        )  # fmt: skip
        assert ours.shape == same.shape and np.abs(ours - same).mean() < 0.01
    assert {p.name for p in (tmp_path / "ours").iterdir()} == {
        p.name for p in (tmp_path / "theirs").iterdir()
    } - {"predict_from_raw_data_args.json"}


def test_a_cascade_asks_for_the_stage_before_and_takes_it(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "3d_fullres", previous_stage="3d_lowres", mirrored=(0,))
    images, previous = write_images(tmp_path / "images"), tmp_path / "previous"
    arguments = ("-i", images, "-o", tmp_path / "ours", "-m", model)
    assert "label maps of 3d_lowres" in str(predict(*arguments, ok=False).exception)
    previous.mkdir()
    image = images / "case_0_0000.nii.gz"
    volume = read_volume(image)
    write_volume(previous / "case_0.nii.gz", Volume((volume.voxels > 110).astype(np.uint8), volume.grid))
    predict(*arguments, "-prev_stage_predictions", previous)
    theirs = stock(model, images, tmp_path / "theirs", folder_with_segs_from_prev_stage=str(previous))
    assert differing(labels_in(tmp_path / "ours"), theirs) < 0.03


def test_continue_makes_what_is_missing_and_touches_nothing_else(tmp_path: Path) -> None:
    model, images, out = (
        write_model(tmp_path / "model"),
        write_images(tmp_path / "images", 3),
        tmp_path / "out",
    )
    predict("-i", images, "-o", out, "-m", model, "-num_parts", 2, "-part_id", 0)
    assert sorted(labels_in(out)) == ["case_0.nii.gz", "case_2.nii.gz"]
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    done = predict("-i", images, "-o", out, "-m", model, "--continue")
    assert "1 of 3 cases to predict" in done.stderr
    assert sorted(labels_in(out)) == ["case_0.nii.gz", "case_1.nii.gz", "case_2.nii.gz"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert "3 of 3 cases to predict" in predict(
        "-i", images, "-o", out, "-m", model, "--continue", "--save_probabilities", "--dry-run"
    ).stderr  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[:2000] + b"\0" * 500 + whole[2500:], lambda whole: whole[: len(whole) // 2]],
    ids=["damaged", "cut short"],  # the second is read by SimpleITK, filled up with zeros
)
def test_a_case_that_fails_is_named_with_its_cause_and_the_others_are_written(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    model, images, out = (
        write_model(tmp_path / "model"),
        write_images(tmp_path / "images", 3),
        tmp_path / "out",
    )
    damaged = images / "case_1_0000.nii.gz"
    damaged.write_bytes(damage(damaged.read_bytes()))
    done = predict("-i", images, "-o", out, "-m", model, ok=False)
    assert done.exit_code == 1
    assert "1 of 3 cases failed" in str(done.exception)
    assert "case_1: was not predicted: " in str(done.exception)
    assert sorted(labels_in(out)) == ["case_0.nii.gz", "case_2.nii.gz"]
    assert not list(out.glob(".part-*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: shutil.rmtree(images), "is no folder"),
        (
            lambda images: (images / "case_0_0000.nii.gz").rename(images / "case_0.nii.gz"),
            "no image named CASE_0000",
        ),
        (
            lambda images: (images / "case_0_0000.nii.gz").rename(images / "case_0_0001.nii.gz"),
            r"channels \[1\]",
        ),
    ],
    ids=["folder", "names", "channels"],
)
def test_images_that_do_not_fit_are_refused_before_anything_is_written(
    change, message: str, tmp_path: Path
) -> None:
    model, images = write_model(tmp_path / "model"), write_images(tmp_path / "images")
    change(images)
    done = predict("-i", images, "-o", tmp_path / "out", "-m", model, ok=False)
    with pytest.raises(Exception, match=message):
        raise done.exception
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_it_would_need_and_writes_nothing(tmp_path: Path) -> None:
    model, images = write_model(tmp_path / "model"), write_images(tmp_path / "images")
    done = predict("-i", images, "-o", tmp_path / "out", "-m", model, "--dry-run")
    assert "GiB of memory for the largest case, case_0" in done.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_the_model_may_be_named_as_for_nnunetv2_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    write_model(results / "Dataset501_Tiny" / "nnUNetTrainer__nnUNetPlans__2d")
    monkeypatch.setenv("nnUNet_results", str(results))
    images = write_images(tmp_path / "images")
    predict("-i", images, "-o", tmp_path / "out", "-d", 501, "-c", "2d", "-f", "0")
    assert labels_in(tmp_path / "out").keys() == {"case_0.nii.gz"}
    done = predict("-i", images, "-o", tmp_path / "out", "-d", 501, "-c", "3d_fullres", ok=False)
    assert "Models of this dataset: nnUNetTrainer__nnUNetPlans__2d" in str(done.exception)
    done = predict("-i", images, "-o", tmp_path / "out", "-d", 501, ok=False)
    assert done.exit_code == 2

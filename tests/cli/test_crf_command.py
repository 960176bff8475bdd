"""`samnn crf` refines saved probabilities: its numbers are the layer's, its files those other commands read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from samnn.apply_crf import Settings, apply_crf
from samnn.cli import app
from samnn.errors import SamnnError
from samnn.geometry import Grid
from samnn.io import Volume, read_labels, write_volume
from samnn.nn.crf import MeanFieldCRF

SPACING = (0.5, 1.0, 2.0)  # (x, y, z)
GRID = Grid((7, 6, 5), SPACING, (3.0, -2.0, 10.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
CLASSES = {"labels": {"background": 0, "heart": 1, "aorta": 2}}


def crf(*args: object) -> str:
    """The command in this process, which has torch already; → what it prints. Errors are raised."""
    return CliRunner().invoke(app, ["crf", *map(str, args)], catch_exceptions=False).stdout


def predictions(folder: Path, content: dict, *, n_cases: int = 1) -> dict[str, np.ndarray]:
    """What nnUNetv2_predict --save_probabilities leaves: .npz, label maps and dataset.json (and .pkl, not read)."""
    folder.mkdir()
    (folder / "dataset.json").write_text(
        json.dumps(content | {"file_ending": ".nii.gz", "channel_names": {"0": "CT"}})
    )
    rng, made = np.random.default_rng(0), {}
    for i in range(n_cases):
        logits = torch.from_numpy(rng.normal(size=(3 if content is CLASSES else 2, *GRID.shape[::-1])))
        p = logits.softmax(0) if content is CLASSES else logits.sigmoid()
        made[f"case_{i}"] = p.float().numpy()
        np.savez_compressed(folder / f"case_{i}.npz", probabilities=made[f"case_{i}"])
        (folder / f"case_{i}.pkl").write_bytes(b"not read")
        write_volume(folder / f"case_{i}.nii.gz", Volume(np.zeros(GRID.shape, np.uint8), GRID))
    return made


def test_classes_equal_the_layer_on_the_spacing_of_the_file(tmp_path: Path) -> None:
    p = predictions(tmp_path / "in", CLASSES)["case_0"]
    options = ("--weight", 2, "--bandwidth-mm", 1.5, "--kernel", "dense", "--save-probabilities")
    crf(tmp_path / "in", tmp_path / "out", *options)
    layer = MeanFieldCRF(3, smoothness_weight=2, smoothness_theta=1.5, kernel="dense", returns="proba")
    expected = layer(torch.from_numpy(p).log()[None], SPACING[::-1])[0].detach().numpy()
    with np.load(tmp_path / "out" / "case_0.npz") as stored:
        np.testing.assert_allclose(stored["probabilities"], expected, atol=1e-5)
    found = read_labels(tmp_path / "out" / "case_0.nii.gz")
    assert not found.grid.differences(GRID)
    np.testing.assert_array_equal(found.voxels, expected.argmax(0).transpose())
    assert (tmp_path / "out" / "dataset.json").read_bytes() == (tmp_path / "in" / "dataset.json").read_bytes()


def test_regions_images_and_a_grid_from_elsewhere(tmp_path: Path) -> None:
    p = predictions(tmp_path / "in", REGIONS)["case_0"]
    (tmp_path / "in" / "case_0.nii.gz").unlink()
    (tmp_path / "images").mkdir()
    image = np.random.default_rng(1).normal(0, 40, GRID.shape).astype(np.float32)
    write_volume(tmp_path / "images" / "case_0_0000.nii.gz", Volume(image, GRID))
    with pytest.raises(SamnnError, match=r"its grid is not known.*--like"):
        crf(tmp_path / "in", tmp_path / "out")
    options = ("--like", tmp_path / "images", "--images", tmp_path / "images", "--intensity", 50)
    crf(tmp_path / "in", tmp_path / "out", *options)
    layer = MeanFieldCRF(3, regions=True, appearance_weight=1.0, appearance_theta=3.0, intensity_theta=50.0)
    seen = torch.from_numpy(image.transpose().copy())[None, None]
    refined = layer(torch.logit(torch.from_numpy(p))[None], SPACING[::-1], seen)[0].detach().numpy()
    expected = np.where(refined[1] > 0, 2, np.where(refined[0] > 0, 1, 0))
    np.testing.assert_array_equal(
        read_labels(tmp_path / "out" / "case_0.nii.gz").voxels, expected.transpose()
    )


def test_a_dry_run_writes_nothing_and_a_second_run_goes_on(tmp_path: Path) -> None:
    predictions(tmp_path / "in", CLASSES, n_cases=2)
    out = tmp_path / "out"
    assert "2 of 2 cases to do" in crf(tmp_path / "in", out, "--dry-run") and not out.exists()
    crf(tmp_path / "in", out)
    (out / "case_1.nii.gz").unlink()
    first = (out / "case_0.nii.gz").stat().st_mtime_ns
    assert "1 cases were finished before" in crf(tmp_path / "in", out)
    assert (out / "case_1.nii.gz").is_file() and (out / "case_0.nii.gz").stat().st_mtime_ns == first
    with pytest.raises(SamnnError, match=r"other settings.*--overwrite"):
        crf(tmp_path / "in", out, "--weight", 3)
    crf(tmp_path / "in", out, "--weight", 3, "--overwrite")
    assert json.loads((out / "crf.json").read_text())["settings"]["smoothness_weight"] == 3


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "case_0.npz").unlink(), "holds no .npz"),
        (lambda folder: (folder / "dataset.json").unlink(), "has no dataset.json"),
        (lambda folder: (folder / "case_0.npz").write_bytes(b"PK"), "cannot be read"),
        (
            lambda folder: np.savez(folder / "case_0.npz", probabilities=np.zeros((3, 5, 6, 8), np.float32)),
            "has the shape (3, 5, 6, 8)",
        ),
        (
            lambda folder: np.savez(
                folder / "case_0.npz", probabilities=np.full((3, 5, 6, 7), 0.5, np.float32)
            ),
            "do not add up to 1",
        ),
    ],
    ids=["empty", "no-labels", "damaged", "shape", "sum"],
)
def test_bad_input_is_named(tmp_path: Path, break_it: object, message: str) -> None:
    folder = tmp_path / "deep" / "down" / "in"
    folder.parent.mkdir(parents=True)
    predictions(folder, CLASSES)
    break_it(folder)
    with pytest.raises(SamnnError) as error:
        apply_crf(folder, tmp_path / "out", Settings(), console=Console())
    assert message in str(error.value)
    assert not list(tmp_path.glob("out/*.nii.gz"))


def test_the_probabilities_own_folder_and_foreign_files_stay(tmp_path: Path) -> None:
    predictions(tmp_path / "in", CLASSES)
    with pytest.raises(SamnnError, match="holds the probabilities themselves"):
        crf(tmp_path / "in", tmp_path / "in")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("all of it")
    with pytest.raises(SamnnError, match="did not write"):
        crf(tmp_path / "in", tmp_path / "other", "--overwrite")

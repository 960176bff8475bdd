"""Bad input through the real command: one message naming the file, exit code 1, no traceback, nothing written."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

LABELS = {"background": 0, "heart": 1, "aorta": 2}


def cube(value: int = 1, size: int = 12) -> np.ndarray:
    voxels = np.zeros((size,) * 3, np.uint8)
    voxels[2:4, 2:4, 2:4] = value
    return voxels


def assert_refused(process, out=None) -> str:
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert process.stderr.count("error: ") == 1
    assert out is None or not out.exists()
    return process.stderr


@pytest.fixture(scope="module")
def headers(tmp_path_factory, write_labels, write_dataset_json, run_evaluate):
    """One folder with every fault that shows in names and headers; what the command says about it."""
    root = tmp_path_factory.mktemp("headers")
    reference, prediction = root / "labelsTs", root / "predictions of ours"
    write_dataset_json(root, LABELS)
    cases = ["fine", "not predicted", "shape", "spacing", "origin", "nan affine", "beside", "empty", "text"]
    for case in cases:
        write_labels(reference / f"{case}.nii.gz", cube())
    write_labels(prediction / "fine.nii.gz", cube())
    write_labels(prediction / "zu viel, Jörg.nii.gz", cube())
    write_labels(prediction / "shape.nii.gz", cube(size=13))
    write_labels(prediction / "spacing.nii.gz", cube(), spacing_mm=(1.5, 1.25, 3))
    write_labels(prediction / "origin.nii.gz", cube(), origin_mm=(0, 0, 7))
    whole = gzip.decompress(write_labels(prediction / "nan affine.nii.gz", cube()).read_bytes())
    sform = slice(280, 328)
    broken = whole[: sform.start] + struct.pack("<12f", *[float("nan")] * 12) + whole[sform.stop :]
    (prediction / "nan affine.nii.gz").write_bytes(gzip.compress(broken))
    write_labels(prediction / "beside.nii.gz", cube())
    write_labels(prediction / "beside.nii", cube(2))
    (prediction / "empty.nii.gz").write_bytes(b"")
    (prediction / "text.nii.gz").write_text("this is no image")
    out = root / "out"
    message = assert_refused(run_evaluate(reference, prediction, "-o", out), out)
    return message, reference, prediction


@pytest.mark.parametrize(
    ("file", "fault"),
    [
        ("labelsTs/not predicted.nii.gz", "has no prediction of that name"),
        ("predictions of ours/zu viel, Jörg.nii.gz", "has no reference of that name"),
        ("predictions of ours/shape.nii.gz", "shape (12, 12, 12) against (13, 13, 13)"),
        ("predictions of ours/spacing.nii.gz", "spacing (mm) (1.5, 1, 3) against (1.5, 1.25, 3)"),
        ("predictions of ours/origin.nii.gz", "origin (mm) (0, 0, 0) against (0, 0, 7)"),
        ("predictions of ours/nan affine.nii.gz", "NaN"),
        ("predictions of ours/beside.nii.gz", "beside.nii lies beside it"),
        ("predictions of ours/empty.nii.gz", "cannot be read"),
        ("predictions of ours/text.nii.gz", "cannot be read"),
    ],
)
def test_every_fault_of_names_and_headers_is_listed_at_once(headers, file, fault):
    message, reference, _ = headers
    line = [line for line in message.splitlines() if f"  - {reference.parent / file}: " in line]
    assert len(line) == 1
    assert fault in line[0]


def test_a_fine_case_is_not_among_the_faults(headers):
    message, reference, prediction = headers
    assert f"{prediction / 'fine.nii.gz'}" not in message
    assert f"{reference / 'fine.nii.gz'}" not in message


@pytest.fixture(scope="module")
def voxels(tmp_path_factory, write_labels, write_dataset_json, run_evaluate):
    """One folder with every fault that shows in the voxels only; what the command says about it."""
    root = tmp_path_factory.mktemp("voxels")
    reference, prediction = root / "labelsTs", root / "predictions"
    write_dataset_json(root, LABELS)
    noise = np.random.default_rng(1).integers(0, 3, (100, 100, 100)).astype(np.uint8)
    for case in ["fine", "short", "flipped", "predicted 7", "fraction", "nan"]:
        write_labels(reference / f"{case}.nii.gz", noise)
        write_labels(prediction / f"{case}.nii.gz", noise)
    write_labels(reference / "labelled 9.nii.gz", cube(9))
    write_labels(prediction / "labelled 9.nii.gz", cube(1))
    whole = (prediction / "short.nii.gz").read_bytes()
    (prediction / "short.nii.gz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) * 3 // 4] ^= 0xFF
    (prediction / "flipped.nii.gz").write_bytes(flipped)
    write_labels(prediction / "predicted 7.nii.gz", cube(7, 100))
    write_labels(prediction / "fraction.nii.gz", cube(1, 100).astype(np.float32) / 2)
    write_labels(prediction / "nan.nii.gz", np.where(cube(1, 100) == 1, np.nan, 0).astype(np.float32))
    out = root / "out"
    message = assert_refused(run_evaluate(reference, prediction, "-o", out))
    assert [path.name for path in out.iterdir()] == ["unfinished.jsonl"]  # the one case that is fine
    return message, root


@pytest.mark.parametrize(
    ("file", "fault"),
    [
        ("predictions/short.nii.gz", "cut short"),
        ("predictions/flipped.nii.gz", "damaged"),
        ("predictions/predicted 7.nii.gz", "holds the value 7, which is not in the label set (0, 1, 2)"),
        ("labelsTs/labelled 9.nii.gz", "holds the value 9, which is not in the label set (0, 1, 2)"),
        ("predictions/fraction.nii.gz", "fractional"),
        ("predictions/nan.nii.gz", "NaN"),
    ],
)
def test_every_fault_of_the_voxels_is_listed_at_once(voxels, file, fault):
    message, root = voxels
    line = [line for line in message.splitlines() if line.startswith(f"  - {root / file}: ")]
    assert len(line) == 1
    assert fault in line[0]
    assert message.count("  - ") == 6
    assert "1 of 7 cases are finished and kept" in message


def test_a_results_folder_without_validation_is_refused(tmp_path, run_evaluate):
    fold = tmp_path / "Dataset001_X" / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    fold.mkdir(parents=True)
    message = assert_refused(run_evaluate(fold.parent, "-o", tmp_path / "out"), tmp_path / "out")
    assert f"{fold / 'validation'}: no such folder" in message


@pytest.mark.parametrize("missing", ["reference", "prediction"])
def test_a_folder_that_is_not_there_is_named(tmp_path, run_evaluate, missing):
    folders = [tmp_path / "reference", tmp_path / "prediction"]
    for folder in folders:
        folder.mkdir()
    (tmp_path / missing).rmdir()
    assert f"{tmp_path / missing}: no such folder" in assert_refused(run_evaluate(*folders))


def test_no_folder_at_all_is_a_usage_error(run_evaluate):
    process = run_evaluate()
    assert process.returncode == 2
    assert "Traceback" not in process.stderr


@pytest.fixture
def good(tmp_path, write_labels, write_dataset_json):
    write_dataset_json(tmp_path, LABELS)
    for folder in ("reference", "prediction"):
        write_labels(tmp_path / folder / "a.nii.gz", cube())
    return tmp_path / "reference", tmp_path / "prediction"


def test_a_damaged_dataset_json_is_named(good, run_evaluate):
    (good[0].parent / "dataset.json").write_text('{"labels": {"heart": ')
    assert f"{good[0].parent / 'dataset.json'}: not valid JSON" in assert_refused(run_evaluate(*good))


def test_the_summary_of_nnunet_in_a_validation_folder_is_never_replaced(good, run_evaluate):
    theirs = good[1] / "summary.json"
    theirs.write_text('{"foreground_mean": {"Dice": 0.9}}')
    message = assert_refused(run_evaluate(*good, "-o", good[1]))
    assert f"{theirs}: exists and is not from samnn" in message
    assert json.loads(theirs.read_text()) == {"foreground_mean": {"Dice": 0.9}}
    assert not (good[1] / "metrics.csv").exists()


def test_an_output_that_is_a_file_is_refused_before_the_work(good, tmp_path, run_evaluate):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert f"{taken}: is a file" in assert_refused(run_evaluate(*good, "-o", taken / "below"))
    assert taken.read_text() == "mine"


def test_an_output_folder_that_holds_label_maps_is_refused(good, run_evaluate):
    """nnU-Net would take our summary.json for its own, and labelsTr is no place for results."""
    for folder in good:
        message = assert_refused(run_evaluate(*good, "-o", folder))
        assert f"{folder}: holds images, label maps or probabilities (a.nii.gz)" in message
        assert sorted(path.name for path in folder.iterdir()) == ["a.nii.gz"]


@pytest.mark.parametrize("name", ["metrics.csv", "summary.json"])
def test_a_folder_or_a_device_in_place_of_an_output_is_left_alone(good, tmp_path, run_evaluate, name):
    for number, make in enumerate([Path.mkdir, lambda path: path.symlink_to("/dev/zero")]):
        taken = tmp_path / f"out{number}" / name
        taken.parent.mkdir()
        make(taken)
        message = assert_refused(run_evaluate(*good, "-o", taken.parent))
        assert f"{taken}: exists and is not from samnn" in message


def test_a_folder_against_itself_is_refused(good, run_evaluate):
    link = good[0].parent / "link"
    link.symlink_to(good[0])
    assert "are the same folder" in assert_refused(run_evaluate(good[0], link))


def test_a_name_that_is_too_long_is_named(good, run_evaluate):
    assert f"File name too long: {'x' * 300}" in assert_refused(run_evaluate(*good, "-o", "x" * 300))


@pytest.mark.parametrize("empty", [["-o", ""], ["--out="], ["--labels", ""], [""]])
def test_an_empty_argument_is_a_usage_error_and_not_the_current_folder(good, run_evaluate, empty):
    process = run_evaluate(*good, *empty, cwd=good[0])
    assert process.returncode == 2
    assert "argument is empty" in process.stderr
    assert sorted(path.name for path in good[0].iterdir()) == ["a.nii.gz"]


def test_a_disk_that_fills_up_leaves_the_earlier_results_as_they_were(good, tmp_path, run_evaluate):
    """A limit on the size of files stands for the full disk."""
    out = tmp_path / "out"
    assert run_evaluate(*good, "-o", out).returncode == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    script = f"""
import resource, sys
from samnn.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
sys.argv = ["samnn", "evaluate", {str(good[0])!r}, {str(good[1])!r}, "-o", {str(out)!r}]
main()
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "File too large" in assert_refused(process)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_senseless_tolerance_is_refused(good, run_evaluate):
    assert "tolerance is -1.0 mm" in assert_refused(run_evaluate(*good, "--tolerance-mm", "-1"))


def test_empty_maps_have_a_defined_outcome(tmp_path, write_labels, write_dataset_json, run_evaluate):
    """Both empty: undefined, and the command says so. Only the prediction empty: every organ is missed."""
    write_dataset_json(tmp_path, LABELS)
    none = np.zeros((12,) * 3, np.uint8)
    for case, voxels in [("none", none), ("heart", cube(1))]:
        write_labels(tmp_path / "reference" / f"{case}.nii.gz", voxels)
        write_labels(tmp_path / "prediction" / f"{case}.nii.gz", none)
    process = run_evaluate(tmp_path / "reference", tmp_path / "prediction", "-o", tmp_path / "out")
    assert process.returncode == 0, process.stderr
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["classes"]
    assert (found["heart"]["missed"], found["heart"]["absent"]) == (["heart"], ["none"])
    assert found["heart"]["metrics"]["dice"]["mean"] == 0
    assert found["aorta"]["absent"] == ["heart", "none"]
    assert found["aorta"]["metrics"]["dice"]["mean"] is None
    assert "heart: missed in 1 case (heart)" in process.stdout


def test_empty_references_without_names_of_classes_are_refused(tmp_path, write_labels, run_evaluate):
    for folder in ("reference", "prediction"):
        write_labels(tmp_path / folder / "a.nii.gz", np.zeros((4,) * 3, np.uint8))
    message = assert_refused(run_evaluate(tmp_path / "reference", tmp_path / "prediction"))
    assert "every voxel of every reference is 0" in message

"""Converters of public sets beside their usual ways: odd types, changed files, broken folds, full disks, strange XML."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import typer
from set_samples import cvat, decathlon, png, slices

from samnn.dataset_conversion import _cases, _conversion
from samnn.dataset_conversion import medsam_npz as medsam
from samnn.dataset_conversion._label_names import names_for
from samnn.dataset_conversion._layout import RawDataset
from samnn.dataset_conversion._pixels import read_picture
from samnn.dataset_conversion.cvat import convert as convert_cvat
from samnn.dataset_conversion.decathlon import convert as convert_decathlon
from samnn.dataset_conversion.png_pairs import convert as convert_png
from samnn.dataset_conversion.slices import convert as convert_slices
from samnn.errors import Problems, SamnnError
from samnn.io import read_volume

CONVERT = Path(sys.executable).with_name("samnn")


def write_npz(folder: Path, name: str, **arrays: object) -> Path:
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.npz"


# ---- types and spacing


@pytest.mark.parametrize("dtype", [">u2", "float16", "bool"])
def test_pictures_of_odd_types_keep_their_values(tmp_path, dtype):
    colours = np.arange(6 * 7 * 3).reshape(6, 7, 3).astype(dtype)
    write_npz(tmp_path / "npz", "p", imgs=colours, gts=np.eye(6, 7, dtype=np.uint8))
    medsam.convert(tmp_path / "npz", 6, output=tmp_path / "raw")
    for channel in range(3):
        written = read_volume(tmp_path / f"raw/Dataset006_MedSAM/imagesTr/p_000{channel}.nii.gz")
        np.testing.assert_array_equal(written.voxels, colours[..., channel].T)


def test_numbers_that_no_image_format_holds_are_refused(tmp_path):
    voxels = np.zeros((3, 4, 5), np.longdouble)
    write_npz(tmp_path / "npz", "v", imgs=voxels, gts=np.ones((3, 4, 5), np.uint8), spacing=np.ones(3))
    with pytest.raises(Problems, match=r"v\.npz: 'imgs' has shape .* type float128"):
        medsam.convert(tmp_path / "npz", 6, output=tmp_path / "raw")
    tifffile.imwrite(
        tmp_path / "two.tif", np.zeros((5, 6, 2), np.float32), planarconfig="contig", photometric="minisblack"
    )
    with pytest.raises(SamnnError, match=r"two\.tif: holds 2 channels of fractional numbers"):
        read_picture(tmp_path / "two.tif")


@pytest.mark.parametrize("step", [1e-300, 1e300, 0.0, -1.0])
def test_spacing_that_nifti_cannot_say_is_refused(tmp_path, step):
    arrays = {"imgs": np.zeros((3, 4, 5), np.uint8), "gts": np.ones((3, 4, 5), np.uint8)}
    write_npz(tmp_path / "npz", "v", **arrays, spacing=np.array([1, 1, step]))
    with pytest.raises(Problems, match=r"v\.npz, spacing: is not 3 positive numbers in mm"):
        medsam.convert(tmp_path / "npz", 6, output=tmp_path / "raw")
    (tmp_path / "s/train/img").mkdir(parents=True)
    (tmp_path / "s/train/gt").mkdir()
    for kind, value in (("img", 9), ("gt", 255)):
        png(tmp_path / f"s/train/{kind}/P_0000.png", np.full((4, 4), value, np.uint8))
    with pytest.raises(SamnnError, match="is not 3 positive numbers in mm"):
        convert_slices(tmp_path / "s", 7, "S", spacing=f"1,1,{step}", output=tmp_path / "raw")


# ---- MedSAM and back


def test_medsams_labels_with_gaps_and_empty_boxes_come_back(tmp_path):
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[1], labels[2, 0] = 6, 200
    arrays = {"imgs": labels, "gts": labels, "spacing": np.array([0.7, 0.7, 2.5]), "boxes": np.zeros((0, 6))}
    before = write_npz(tmp_path / "npz", "v", **arrays)
    medsam.convert(tmp_path / "npz", 6, output=tmp_path / "raw")
    assert set(np.unique(read_volume(tmp_path / "raw/Dataset006_MedSAM/labelsTr/v.nii.gz").voxels)) == {
        0,
        1,
        2,
    }
    medsam.convert(tmp_path / "raw/Dataset006_MedSAM", reverse=tmp_path / "again")
    with np.load(before) as given, np.load(tmp_path / "again/v.npz") as again:
        for key in ("imgs", "gts", "spacing"):
            np.testing.assert_array_equal(given[key], again[key])
        assert again["boxes"].size == 0


@pytest.mark.parametrize("boxes", ["[null]", '{"a": 1}', "[100000000000000000000000000]", "[" * 100_000])
def test_no_npz_is_written_of_boxes_that_are_no_numbers(tmp_path, boxes):
    arrays = {"imgs": np.ones((3, 4, 5), np.uint8), "gts": np.ones((3, 4, 5), np.uint8)}
    write_npz(tmp_path / "npz", "v", **arrays, spacing=np.ones(3), boxes=np.ones((1, 6)))
    medsam.convert(tmp_path / "npz", 6, output=tmp_path / "raw")
    dataset = tmp_path / "raw/Dataset006_MedSAM"
    (dataset / "sidecars/v.json").write_text('{"boxes": ' + boxes + "}")
    with pytest.raises(Problems, match=r"sidecars/v\.json: is not"):
        medsam.convert(dataset, reverse=tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_dry_run_reads_the_boxes_too(tmp_path, capsys):
    arrays = {"imgs": np.ones((3, 4, 5), np.uint8), "gts": np.ones((3, 4, 5), np.uint8)}
    write_npz(tmp_path / "npz", "v", **arrays, spacing=np.ones(3))
    write_npz(tmp_path / "npz", "w", **arrays, spacing=np.ones(3), boxes=np.array([np.nan]))
    with pytest.raises(typer.Exit):
        medsam.convert(tmp_path / "npz", 6, output=tmp_path / "raw", dry_run=True)
    assert "'boxes' holds NaN" in " ".join(capsys.readouterr().out.replace("│", " ").split())


# ---- between check and write, and while writing


@pytest.mark.parametrize("change", [lambda path: os.utime(path, ns=(1, 1)), Path.unlink])
def test_a_file_that_changes_after_the_check_is_refused(tmp_path, change):
    arrays = {"imgs": np.ones((3, 4, 5), np.uint8), "gts": np.ones((3, 4, 5), np.uint8)}
    path = write_npz(tmp_path / "npz", "v", **arrays, spacing=np.ones(3))
    (case,), _ = medsam._find(tmp_path / "npz", None)
    plan = _cases.inspect(case, 1, False)
    change(path)
    (tmp_path / "raw").mkdir()
    with pytest.raises(SamnnError, match=r"v\.npz: has changed since it was checked"):
        plan.write(RawDataset(tmp_path / "raw"), names_for({1}), n_channels=1, link=False)
    assert not list((tmp_path / "raw").iterdir())


def test_a_full_disk_costs_no_case_with_skip_refused(tmp_path):
    """A limit on file sizes stands for the full disk, for the second case alone."""
    small = np.ones((3, 4, 5), np.uint8)
    large = np.random.default_rng(0).integers(0, 255, (40, 40, 40)).astype(np.uint8)
    for name, image in (("a", small), ("b", large)):
        write_npz(tmp_path / "npz", name, imgs=image, gts=np.ones(image.shape, np.uint8), spacing=np.ones(3))
    command = [
        CONVERT,
        "convert",
        "medsam_npz",
        tmp_path / "npz",
        "-d",
        6,
        "-o",
        tmp_path / "raw",
        "--skip-refused",
    ]
    done = subprocess.run(
        [*map(str, command)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "free space" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "raw/Dataset006_MedSAM").exists()


def test_a_fold_without_validation_is_not_written(tmp_path, shared):
    slices(tmp_path / "s", shared)
    val = next((tmp_path / "s/val/img").iterdir())
    val.write_bytes(val.read_bytes()[:-20])
    with pytest.raises(SamnnError, match="Fold 0 has no case left for val"):
        convert_slices(tmp_path / "s", 7, "S", spacing="1,1,1", output=tmp_path / "raw", skip_refused=True)
    assert not (tmp_path / "raw/Dataset007_S").exists()


# ---- patients, labels, names


def test_cases_of_which_some_have_a_patient_are_refused():
    plan = partial(SimpleNamespace, is_test=False)
    plans = [plan(name="a", patient="1"), plan(name="b", patient=None), plan(name="c", patient="2")]
    with pytest.raises(Problems, match=r"these do not:\n  - b$"):
        _conversion._folds_of_patients(plans)


def test_values_without_names_are_told_with_their_cases(tmp_path, shared):
    slices(tmp_path / "s", shared)
    mask = next((tmp_path / "s/train/gt").iterdir())
    png(mask, np.full(read_picture(mask)[0].voxels.T.shape, 7, np.uint8))
    with pytest.raises(Problems, match=rf"holds? the values(.|\n)*7 is in {mask.stem.rsplit('_', 1)[0]}"):
        convert_slices(tmp_path / "s", 7, "S", spacing="1,1,1", output=tmp_path / "raw")


def test_gaps_that_nnunets_code_would_keep_are_refused(tmp_path, shared):
    task = tmp_path / "Task04_Hippocampus"
    decathlon(tmp_path, shared)
    content = json.loads((task / "dataset.json").read_text())
    content["labels"] = {"0": "background", "1": "Anterior", "3": "Posterior"}
    (task / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(SamnnError, match=r"dataset\.json: has labels .* with gaps"):
        convert_decathlon(task, 4, output=tmp_path / "raw")


def test_one_folder_is_not_both_images_and_masks(tmp_path):
    png(tmp_path / "a.png", np.ones((4, 4), np.uint8))
    with pytest.raises(typer.BadParameter, match="the same folder"):
        convert_png(dataset_id=6, name="P", images=tmp_path, masks=tmp_path / ".", output=tmp_path / "raw")


@pytest.mark.parametrize(
    ("encode", "said"),
    [
        (
            lambda xml: xml.replace(
                "<annotations>", '<?xml version="1.0" encoding="foo-99"?><annotations>', 1
            ).encode(),
            "cannot be read as XML",
        ),
        (
            lambda xml: ('<!DOCTYPE annotations [<!ENTITY a "x">]>' + xml).encode("utf-16"),
            "declares a document type",
        ),
        (lambda xml: ('<!DOCTYPE annotations [<!ENTITY a "x">]>' + xml).encode(), "declares a document type"),
    ],
    ids=["unknown encoding", "entity in UTF-16", "entity"],
)
def test_strange_xml_is_refused(tmp_path, shared, encode, said):
    cvat(tmp_path / "c", shared)
    path = tmp_path / "c/annotations.xml"
    path.write_bytes(encode(path.read_text()))
    with pytest.raises(SamnnError, match=rf"annotations\.xml: {said}"):
        convert_cvat(tmp_path / "c", 8, "W", output=tmp_path / "raw")

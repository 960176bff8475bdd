"""Sets kept as arrays or slices: nothing is ever unpickled, slices find their places, and MedSAM's files come back."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import sys
import zipfile
from functools import partial
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import typer
from set_samples import both, copy, medsam_npz, png, real_cases, slices, synapse, write_nifti_like

from samnn.dataset_conversion import _arrays, _two_circles
from samnn.dataset_conversion._arrays import npz_headers, read_h5, read_npz
from samnn.dataset_conversion._pixels import read_mask, read_picture
from samnn.dataset_conversion.lung_ct import convert as convert_lungs
from samnn.dataset_conversion.medsam_npz import convert as convert_medsam
from samnn.dataset_conversion.slices import convert as convert_slices
from samnn.dataset_conversion.synapse import ORGANS
from samnn.dataset_conversion.synapse import convert as convert_synapse
from samnn.errors import Problems, SamnnError
from samnn.geometry import Grid
from samnn.io import Volume, read_labels, read_volume, write_volume


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


# ---- MedSAM


def test_medsam_volumes_go_to_nifti_and_back_with_spacing_and_boxes(tmp_path, shared):
    medsam_npz(tmp_path / "npz", shared)
    convert_medsam(tmp_path / "npz", 6, output=tmp_path / "raw")
    dataset = tmp_path / "raw/Dataset006_MedSAM"
    boxes = json.loads((dataset / "sidecars/CT_001.json").read_text())
    assert boxes == {"boxes": [[3, 4, 5, 20, 21, 22]]}
    convert_medsam(dataset, reverse=tmp_path / "again")
    paths = sorted((tmp_path / "npz").iterdir())
    assert [path.name for path in paths] == sorted(path.name for path in (tmp_path / "again").iterdir())
    for path in paths:
        with np.load(path) as before, np.load(tmp_path / "again" / path.name) as after:
            assert sorted(before) == sorted(after)
            for key in before:
                np.testing.assert_array_equal(before[key], after[key])


@pytest.mark.parametrize("dtype", [">i2", "<i2", "uint8", "int64", "float32"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_medsam_volumes_of_any_type_and_order_keep_their_values(tmp_path, dtype, order, save, monkeypatch):
    """Also where blocks, of 299 bytes here, end within a voxel."""
    monkeypatch.setattr(_arrays, "_BLOCK_BYTES", 299)
    voxels = np.arange(5 * 7 * 9, dtype=dtype).reshape((5, 7, 9)) % 251
    labels = (voxels % 3 * 10).astype(np.uint8)
    (tmp_path / "npz").mkdir()
    arrays = {"imgs": np.array(voxels, dtype, order=order), "gts": np.array(labels, order=order)}
    save(tmp_path / "npz/CT_1.npz", **arrays, spacing=np.array([1.0, 2.0, 3.0]))
    convert_medsam(tmp_path / "npz", 6, labels="a=10,b=20", output=tmp_path / "raw")
    dataset = tmp_path / "raw/Dataset006_MedSAM"
    image, mask = (
        nibabel.load(dataset / name) for name in ("imagesTr/CT_1_0000.nii.gz", "labelsTr/CT_1.nii.gz")
    )
    assert image.get_data_dtype() == np.dtype(dtype).newbyteorder("<") and mask.get_data_dtype() == np.uint8
    assert image.header.get_zooms() == (1.0, 2.0, 3.0)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj).T, voxels)
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj).T, labels // 10)


@pytest.mark.parametrize("key", ["imgs", "gts"])
def test_medsam_arrays_with_a_wrong_checksum_are_refused_and_leave_nothing(tmp_path, shared, key, capsys):
    medsam_npz(tmp_path / "npz", shared)
    path = tmp_path / "npz/CT_001.npz"
    with zipfile.ZipFile(path) as archive:
        checksum = struct.pack("<I", archive.getinfo(f"{key}.npy").CRC)
    path.write_bytes(path.read_bytes().replace(checksum, bytes(4)))
    with pytest.raises(typer.Exit):
        convert_medsam(tmp_path / "npz", 6, output=tmp_path / "raw", dry_run=True)
    assert f"checksum of {key}" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    with pytest.raises(SamnnError, match=rf"CT_001\.npz: .*checksum of {key}"):
        convert_medsam(tmp_path / "npz", 6, output=tmp_path / "raw")
    assert not (tmp_path / "raw/Dataset006_MedSAM").exists()


def test_medsam_pictures_become_flat_nifti_of_three_channels_and_come_back(tmp_path):
    (tmp_path / "npz").mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    classes = np.zeros((6, 8), np.uint8)
    classes[1:3, 2:7] = 1
    np.savez(tmp_path / "npz/a.npz", imgs=colours, gts=classes)
    np.savez(tmp_path / "npz/t.npz", imgs=colours[::-1])
    convert_medsam(tmp_path / "npz", 6, output=tmp_path / "raw")
    dataset = tmp_path / "raw/Dataset006_MedSAM"
    green = read_volume(dataset / "imagesTr/a_0001.nii.gz")
    assert green.grid.spacing_mm == (1, 1)
    np.testing.assert_array_equal(green.voxels, colours[..., 1].T)
    convert_medsam(dataset, reverse=tmp_path / "again")
    with np.load(tmp_path / "again/a.npz") as after:
        np.testing.assert_array_equal(after["imgs"], colours)
        np.testing.assert_array_equal(after["gts"], classes)
    with np.load(tmp_path / "again/test/t.npz") as after:
        assert list(after) == ["imgs"]


def test_pickled_boxes_are_left_out_by_name_and_never_opened(tmp_path, shared, capsys):
    medsam_npz(tmp_path / "npz", shared)
    with np.load(tmp_path / "npz/CT_001.npz") as content:
        arrays = dict(content)
    arrays["boxes"] = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "npz/CT_001.npz", **arrays)
    convert_medsam(tmp_path / "npz", 6, output=tmp_path / "raw")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "raw/Dataset006_MedSAM/sidecars/CT_001.json").exists()
    assert "boxes are pickled" in " ".join(capsys.readouterr().out.split())


def test_pickled_images_are_refused_and_never_opened(tmp_path):
    (tmp_path / "npz").mkdir()
    trap = np.empty((2, 2, 3), dtype=object)
    trap[:] = Trap(tmp_path / "sprung")
    np.savez(tmp_path / "npz/a.npz", imgs=trap, gts=np.ones((2, 2), np.uint8))
    with pytest.raises(Problems, match=r"a\.npz: .*pickle"):
        convert_medsam(tmp_path / "npz", 6, output=tmp_path / "raw")
    assert not (tmp_path / "sprung").exists()


def test_pictures_among_volumes_are_refused_by_name(tmp_path, shared):
    medsam_npz(tmp_path / "npz", shared)
    np.savez(tmp_path / "npz/picture.npz", imgs=np.ones((4, 4, 3), np.uint8), gts=np.ones((4, 4), np.uint8))
    with pytest.raises(Problems, match=r"holds 2D and 3D files.*2D are picture\.npz"):
        convert_medsam(tmp_path / "npz", 6, output=tmp_path / "raw")


# ---- slices


def test_train_and_val_become_the_one_fold_and_spacing_pkl_is_never_opened(tmp_path, shared):
    slices(tmp_path / "s", shared)
    (tmp_path / "s/spacing.pkl").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    spacing = {f"Patient_{name}": [0.5, 0.75, float(name)] for name in ("001", "004", "006", "007")}
    (tmp_path / "spacing.json").write_text(json.dumps(spacing))
    convert_slices(tmp_path / "s", 8, "S", spacing=str(tmp_path / "spacing.json"), output=tmp_path / "raw")
    dataset = tmp_path / "raw/Dataset008_S"
    assert json.loads((dataset / "splits_final.json").read_text()) == [
        {"train": ["Patient_001", "Patient_004"], "val": ["Patient_006"]}
    ]
    assert read_volume(dataset / "imagesTr/Patient_004_0000.nii.gz").grid.spacing_mm == (0.5, 0.75, 4)
    labels = json.loads((dataset / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "esophagus": 1, "heart": 2, "trachea": 3, "aorta": 4}
    assert not (tmp_path / "sprung").exists()


def test_slices_without_spacing_or_with_one_missing_are_refused(tmp_path, shared):
    slices(tmp_path / "s", shared)
    with pytest.raises(SamnnError, match="do not tell their spacing"):
        convert_slices(tmp_path / "s", 8, "S", output=tmp_path / "raw")
    for kind in ("img", "gt"):
        (tmp_path / f"s/val/{kind}/Patient_006_0007.png").unlink()
    with pytest.raises(Problems, match=r"Patient_006 lacks slice\(s\) 7"):
        convert_slices(tmp_path / "s", 8, "S", spacing="1,1,1", output=tmp_path / "raw")
    with pytest.raises(SamnnError, match="is not 3 positive numbers in mm"):
        convert_slices(tmp_path / "s", 8, "S", spacing="1,1", output=tmp_path / "raw")


def test_values_that_the_course_does_not_write_need_names(tmp_path):
    png(tmp_path / "s/train/img/00000.png", np.eye(9, dtype=np.uint8))
    png(tmp_path / "s/train/gt/00000.png", np.eye(9, dtype=np.uint8) * 7)
    with pytest.raises(SamnnError, match=r"hold the values \[0, 7\]"):
        convert_slices(tmp_path / "s", 8, "S", output=tmp_path / "raw")
    convert_slices(tmp_path / "s", 8, "S", labels="line=7", output=tmp_path / "raw")
    labels = json.loads((tmp_path / "raw/Dataset008_S/dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "line": 1}


def test_two_circles_are_generated_as_defined_and_always_the_same(tmp_path):
    convert_slices(tmp_path / "toy", 8, "Toy", generate=11, output=tmp_path / "raw")
    dataset = tmp_path / "raw/Dataset008_Toy"
    assert len(list((dataset / "imagesTr").iterdir())) == 12
    split = json.loads((dataset / "splits_final.json").read_text())
    assert [len(fold[part]) for fold in split for part in ("train", "val")] == [11, 1]
    image, mask = _two_circles.draw(np.random.default_rng(0))
    np.testing.assert_array_equal(image, _two_circles.draw(np.random.default_rng(0))[0])
    assert image.shape == (256, 256) and set(np.unique(mask)) == {0, 255}
    assert (mask == 255).sum() == 1961  # whole points in a circle of radius 25 (Gauss)
    with pytest.raises(SamnnError, match="exists already"):
        convert_slices(tmp_path / "toy", 9, "Toy", generate=11, output=tmp_path / "raw")


# ---- lungs


def test_lung_slices_in_nifti_keep_their_spacing(tmp_path):
    grid = Grid((7, 6, 1), (0.75, 0.5, 3.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    image = np.arange(42, dtype=np.int16).reshape(7, 6, 1) - 1000
    for number in range(2):
        for kind, voxels in (("images", image + number), ("masks", (image > -990).astype(np.uint8) * 255)):
            path = tmp_path / f"k/2d_{kind}/ID_{number:04d}_Z_0100.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(path, Volume(voxels, grid))
    convert_lungs(tmp_path / "k", 9, output=tmp_path / "raw")
    found = read_volume(tmp_path / "raw/Dataset009_LungCT/imagesTr/ID_0001_Z_0100_0000.nii.gz")
    assert found.grid.spacing_mm == (0.75, 0.5)
    np.testing.assert_array_equal(found.voxels, image[..., 0] + 1)


def test_lung_volumes_of_two_labels_are_refused_and_of_one_converted(tmp_path, shared):
    for number, (_, image, labels) in enumerate(real_cases(shared, 2)):
        copy(image, tmp_path / f"k/3d_images/IMG_{number:04d}.nii.gz")
        copy(labels, tmp_path / f"k/3d_images/MASK_{number:04d}.nii.gz")
    with pytest.raises(SamnnError, match=r"hold the values \[0, 1, 2\]; expected 0 and one more"):
        convert_lungs(tmp_path / "k", 9, volumes=True, output=tmp_path / "raw")
    for number, (_, image, labels) in enumerate(real_cases(shared, 2)):
        mask = np.where(both(image, labels)[1] > 0, 255, 0).astype(np.uint8)
        write_nifti_like(tmp_path / f"k/3d_images/MASK_{number:04d}.nii.gz", mask, labels)
    convert_lungs(tmp_path / "k", 9, volumes=True, output=tmp_path / "raw")
    written = read_labels(tmp_path / "raw/Dataset009_LungCT/labelsTr/lung_0001.nii.gz")
    np.testing.assert_array_equal(written.voxels, mask // 255)


# ---- Synapse


def test_synapse_as_downloaded_has_thirteen_organs_and_test_images(tmp_path, shared):
    for number, (_, image, labels) in enumerate(real_cases(shared, 3), 1):
        part = "Training" if number < 3 else "Testing"
        copy(image, tmp_path / f"RawData/{part}/img/img{number:04d}.nii.gz")
        if number < 3:
            copy(labels, tmp_path / f"RawData/{part}/label/label{number:04d}.nii.gz")
    convert_synapse(tmp_path, 5, "BTCV", output=tmp_path.with_name("raw_btcv"))
    dataset = tmp_path.with_name("raw_btcv") / "Dataset005_BTCV"
    assert [path.name for path in (dataset / "imagesTs").iterdir()] == ["btcv_0003_0000.nii.gz"]
    labels = json.loads((dataset / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0} | {organ: value for value, organ in enumerate(ORGANS, 1)}
    assert (labels["liver"], labels["aorta"], labels["pancreas"]) == (6, 8, 11)


def test_without_h5py_the_message_says_how_to_get_it(tmp_path, shared, monkeypatch):
    synapse(tmp_path / "s", shared)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(Problems, match=r"case0008\.npy\.h5: reading HDF5 needs h5py.*samnn\[synapse\]"):
        convert_synapse(tmp_path / "s", 5, spacing="1,1,1", output=tmp_path / "raw")


def test_options_of_the_other_form_are_refused(tmp_path, shared):
    synapse(tmp_path / "s", shared)
    with pytest.raises(SamnnError, match="does not tell its spacing"):
        convert_synapse(tmp_path / "s", 5, output=tmp_path / "raw")
    (tmp_path / "b/Training/img").mkdir(parents=True)
    with pytest.raises(typer.BadParameter, match="NIfTI tells its own"):
        convert_synapse(tmp_path / "b", 5, spacing="1,1,1", output=tmp_path / "raw")


# ---- damaged files


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, taken out, or the rest cut off; mostly near the start, where headers are."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(min(len(changed), rng.choice([60, 200, len(changed)])) or 1)
        how = rng.random()
        if how < 0.6 and changed:
            changed[at] = rng.randrange(256)
        elif how < 0.8:
            del changed[at : at + rng.randint(1, 40)]
        else:
            del changed[at + 1 :]
    return bytes(changed)


def test_a_negative_length_in_an_array_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", imgs=np.zeros((3, 4), np.uint8))
    content = (tmp_path / "a.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr(
            "imgs.npy", zipfile.ZipFile(io.BytesIO(content)).read("imgs.npy").replace(b"(3, 4)", b"(-1,4)")
        )
    for read in (npz_headers, partial(read_npz, key="imgs")):
        with pytest.raises(SamnnError, match=r"b\.npz: .*negative"):
            read(tmp_path / "b.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(2, 3, 4),
        np.asfortranarray(np.arange(24, dtype=">i2").reshape(2, 3, 4)),
        np.array(7),
        np.zeros((3, 0)),
        np.zeros((9, 0), np.uint8).T,
    ],
)
def test_arrays_are_read_as_numpy_reads_them(tmp_path, save, array):
    save(tmp_path / "a.npz", other=np.ones(5), imgs=array)
    if array.size == 0:
        with pytest.raises(SamnnError, match="has shape"):
            read_npz(tmp_path / "a.npz", "imgs")
        return
    read = read_npz(tmp_path / "a.npz", "imgs")
    assert read.dtype == array.dtype.newbyteorder("=") and read.shape == array.shape and (read == array).all()


@pytest.mark.parametrize("name", ["a.png", "p.png", "a.jpg", "a.bmp", "a.tif", "a.npz", "a.h5"])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_read_or_refused_by_name_and_nothing_else(tmp_path, name):
    pixels = (np.arange(1920).reshape(48, 40) % 251).astype(np.uint8)
    path = tmp_path / name
    if name.endswith(".npz"):
        np.savez_compressed(path, imgs=pixels)
        readers = [npz_headers, partial(read_npz, key="imgs")]
    elif name.endswith(".h5"):
        with h5py.File(path, "w") as file:
            file["image"] = pixels
        readers = [partial(read_h5, key="image")]
    else:
        png(path, pixels, "P" if name == "p.png" else None)
        readers = [read_picture] if name.endswith(".jpg") else [read_picture, read_mask]
    content, rng = path.read_bytes(), random.Random(name)
    for _ in range(30):
        path.write_bytes(damaged(content, rng))
        for read in readers:
            try:
                read(path)
            except MemoryError:
                pass
            except SamnnError as problem:
                assert str(path) in str(problem)

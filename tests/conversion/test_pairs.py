"""Own data, whatever its clothes, comes out as the same voxels in the same place."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pair_sources import GRID, convert, image, mask, pair, ras, save, save_itk, save_nifti, save_series
from small_thorax import files

from samnn.errors import SamnnError
from samnn.io import Volume, read_labels, read_volume

TURNED = [(axes, flips) for axes in permutations(range(3)) for flips in ("", "x", "yz", "xyz")]


def assert_same(path: Path, expected: Volume) -> None:
    found = read_volume(path)
    assert expected.grid.differences(found.grid, tolerance_mm=1e-4) == []
    assert found.voxels.dtype == expected.voxels.dtype
    np.testing.assert_array_equal(found.voxels, expected.voxels)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".nhdr"])
def test_every_format_gives_the_same_voxels_in_the_same_place(tmp_path, ending):
    save_itk(tmp_path / "images" / f"a{ending}", image())
    save_itk(tmp_path / "masks" / f"a{ending}", mask())
    dataset = convert(tmp_path, tmp_path / "raw")
    assert_same(dataset / "imagesTr/a_0000.nii.gz", image())
    assert_same(dataset / "labelsTr/a.nii.gz", mask())


def test_a_dicom_series_gives_the_same_voxels_in_the_same_place(tmp_path):
    save_series(tmp_path / "images/a/study/series", image())
    save(tmp_path / "masks/a.nii.gz", mask())
    dataset = convert(tmp_path, tmp_path / "raw")
    assert_same(dataset / "imagesTr/a_0000.nii.gz", image())
    assert_same(dataset / "labelsTr/a.nii.gz", mask())


@pytest.mark.parametrize(("axes", "flips"), TURNED)
def test_a_mask_stored_with_other_axes_is_turned_exactly(tmp_path, axes, flips):
    save(tmp_path / "images/a.nii.gz", image())
    save_itk(tmp_path / "masks/a.nrrd", mask(), axes, flips)
    dataset = convert(tmp_path, tmp_path / "raw")
    assert_same(dataset / "labelsTr/a.nii.gz", mask())


@pytest.mark.parametrize(
    "case", ["Dataset901_OpenKBPHN/{}Tr/okbp_100", "Dataset904_Hippocampus/{}Tr/hippocampus_001"]
)
@pytest.mark.parametrize("clothes", ["nrrd", "mha", "dicom"])
def test_real_cases_come_back_from_other_clothes(tmp_path, shared, case, clothes):
    real = read_volume(shared / "data" / (case.format("images") + "_0000.nii.gz"))
    labels = read_labels(shared / "data" / (case.format("labels") + ".nii.gz"))
    if clothes == "dicom":
        save_series(tmp_path / "images/a", Volume(real.voxels.astype(np.int16), real.grid), intercept=0)
    else:
        save_itk(tmp_path / f"images/a.{clothes}", real)
    save_itk(tmp_path / "masks/a.nrrd", labels, (1, 2, 0), "xz")
    dataset = convert(tmp_path, tmp_path / "raw")
    for path, expected in [("imagesTr/a_0000.nii.gz", real), ("labelsTr/a.nii.gz", labels)]:
        found = read_volume(dataset / path)
        assert expected.grid.differences(found.grid, tolerance_mm=1e-3) == []
        np.testing.assert_array_equal(found.voxels, expected.voxels)


def test_what_fits_is_copied_byte_by_byte_and_the_source_stays(tmp_path):
    picture, labels = pair(tmp_path / "source")
    before = files(tmp_path / "source")
    dataset = convert(tmp_path / "source", tmp_path / "raw")
    assert (dataset / "imagesTr/a_0000.nii.gz").read_bytes() == picture.read_bytes()
    assert (dataset / "labelsTr/a.nii.gz").read_bytes() == labels.read_bytes()
    assert not (dataset / "labelsTr/a.nii.gz").samefile(labels)
    assert files(tmp_path / "source") == before


def test_link_makes_hard_links_of_what_fits(tmp_path):
    picture, labels = pair(tmp_path)
    dataset = convert(tmp_path, tmp_path / "raw", link=True)
    assert (dataset / "imagesTr/a_0000.nii.gz").samefile(picture)
    assert (dataset / "labelsTr/a.nii.gz").samefile(labels)


def test_a_link_out_of_the_source_is_followed_and_its_content_copied(tmp_path):
    outside, _ = pair(tmp_path / "elsewhere")
    pair(tmp_path / "source")
    (tmp_path / "source/images/a.nii.gz").unlink()
    (tmp_path / "source/images/a.nii.gz").symlink_to(outside)
    for link in (False, True):
        dataset = convert(tmp_path / "source", tmp_path / f"raw{link}", link=link)
        written = dataset / "imagesTr/a_0000.nii.gz"
        assert not written.is_symlink() and written.read_bytes() == outside.read_bytes()


def test_dataset_json_names_channels_labels_and_counts(tmp_path):
    pair(tmp_path)
    dataset = convert(tmp_path, tmp_path / "raw", channels="CT", labels="tumour=2,liver=1")
    description = json.loads((dataset / "dataset.json").read_text())
    assert description == {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }


def test_gaps_between_values_are_closed_and_names_kept(tmp_path):
    save(tmp_path / "images/a.nii.gz", image())
    sparse = mask().voxels.astype(np.int16) * 300  # 300 and 600
    sparse[0, 0, 0] = 7000
    save(tmp_path / "masks/a.nii.gz", Volume(sparse, GRID))
    dataset = convert(tmp_path, tmp_path / "raw", labels="b=600,a=300,ignore=7000")
    expected = mask().voxels.copy()
    expected[0, 0, 0] = 3
    assert_same(dataset / "labelsTr/a.nii.gz", Volume(expected, GRID))
    labels = json.loads((dataset / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "a": 1, "b": 2, "ignore": 3}
    assert json.loads((dataset / "conversion.json").read_text())["values_renumbered"] == {
        "300": 1,
        "600": 2,
        "7000": 3,
    }


def test_without_names_the_values_that_occur_get_some(tmp_path):
    pair(tmp_path)
    save(tmp_path / "images/b.nii.gz", image())
    save(tmp_path / "masks/b.nii.gz", Volume(mask().voxels * np.uint8(2), GRID))  # 2 and 4
    dataset = convert(tmp_path, tmp_path / "raw")
    labels = json.loads((dataset / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "label_1": 1, "label_2": 2, "label_4": 3}
    assert set(np.unique(read_labels(dataset / "labelsTr/b.nii.gz").voxels)) == {0, 2, 3}


def test_whole_numbers_stored_as_floats_become_integers(tmp_path):
    save(tmp_path / "images/a.nii.gz", image())
    save(tmp_path / "masks/a.nii.gz", Volume(mask().voxels.astype(np.float32), GRID))
    assert_same(convert(tmp_path, tmp_path / "raw") / "labelsTr/a.nii.gz", mask())


def test_slope_and_intercept_are_honoured(tmp_path):
    save(tmp_path / "masks/a.nii.gz", mask())
    stored = nibabel.Nifti1Image(image().voxels, ras(GRID))
    stored.header.set_slope_inter(0.5, -3)
    (tmp_path / "images").mkdir()
    raw = stored.header.copy()
    with open(tmp_path / "images/a.nii", "wb") as file:
        raw["vox_offset"] = 352
        file.write(raw.binaryblock + bytes(4) + image().voxels.tobytes(order="F"))
    dataset = convert(tmp_path, tmp_path / "raw")
    expected = image().voxels.astype(np.float32) * np.float32(0.5) - 3
    assert_same(dataset / "imagesTr/a_0000.nii.gz", Volume(expected, GRID))


@pytest.mark.parametrize("kind", ["big-endian", "NIfTI-2"])
def test_rare_kinds_of_nifti_are_read(tmp_path, kind):
    save(tmp_path / "masks/a.nii.gz", mask())
    (tmp_path / "images").mkdir()
    if kind == "NIfTI-2":
        save_nifti(tmp_path / "images/a.nii.gz", image().voxels, ras(GRID), nibabel.Nifti2Image)
    else:
        header = nibabel.Nifti1Header(endianness=">")
        header.set_data_dtype(np.int16)
        nibabel.save(nibabel.Nifti1Image(image().voxels, ras(GRID), header), tmp_path / "images/a.nii")
    assert_same(convert(tmp_path, tmp_path / "raw") / "imagesTr/a_0000.nii.gz", image())


def test_a_volume_of_one_slice_is_a_volume(tmp_path):
    one = replace(GRID, shape=(7, 6, 1))
    save(tmp_path / "images/a.nii.gz", image(one))
    save(tmp_path / "masks/a.nrrd", Volume(mask().voxels[:, :, 2:3], one))
    dataset = convert(tmp_path, tmp_path / "raw")
    assert_same(dataset / "imagesTr/a_0000.nii.gz", image(one))
    assert_same(dataset / "labelsTr/a.nii.gz", Volume(mask().voxels[:, :, 2:3], one))


def test_channels_come_by_suffix(tmp_path):
    for channel in range(2):
        save(tmp_path / f"images/a_{channel:04d}.nii.gz", image(seed=channel))
    save(tmp_path / "masks/a.nii.gz", mask())
    dataset = convert(tmp_path, tmp_path / "raw", channels="T1,T2")
    for channel in range(2):
        assert_same(dataset / f"imagesTr/a_{channel:04d}.nii.gz", image(seed=channel))
    assert json.loads((dataset / "dataset.json").read_text())["channel_names"] == {"0": "T1", "1": "T2"}


def test_four_digits_that_are_the_number_of_a_patient_are_no_channel(tmp_path):
    for name in ("case_0000", "case_0001"):
        pair(tmp_path, name)
    dataset = convert(tmp_path, tmp_path / "raw")
    assert sorted(path.name for path in (dataset / "imagesTr").iterdir()) == [
        "case_0000_0000.nii.gz",
        "case_0001_0000.nii.gz",
    ]


def test_a_4d_image_becomes_channels_where_as_many_are_named(tmp_path):
    both = np.stack([image(seed=0).voxels, image(seed=1).voxels], axis=-1)
    save_nifti(tmp_path / "images/a.nii.gz", both, ras(GRID))
    save(tmp_path / "masks/a.nii.gz", mask())
    dataset = convert(tmp_path, tmp_path / "raw", channels="T1,T2")
    for channel in range(2):
        assert_same(dataset / f"imagesTr/a_{channel:04d}.nii.gz", image(seed=channel))


def test_a_mask_on_another_grid_is_resampled_on_request_and_it_is_reported(tmp_path, capsys):
    save(tmp_path / "images/a.nii.gz", image())
    fine = replace(GRID, shape=(14, 12, 10), spacing_mm=(0.4, 0.625, 1.25))
    centre_shift = np.reshape(GRID.direction, (3, 3)) @ (-np.array(GRID.spacing_mm) / 4)
    fine = replace(fine, origin_mm=tuple(np.array(GRID.origin_mm) + centre_shift))
    doubled = mask().voxels.repeat(2, 0).repeat(2, 1).repeat(2, 2)  # every voxel in eight
    save(tmp_path / "masks/a.nii.gz", Volume(doubled, fine))
    dataset = convert(tmp_path, tmp_path / "raw", resample=True)
    assert_same(dataset / "labelsTr/a.nii.gz", mask())
    assert "resampled" in capsys.readouterr().out
    changes = json.loads((dataset / "conversion.json").read_text())["cases"]["a"]["changes"]
    assert "shape (7, 6, 5) against (14, 12, 10)" in changes[0]


def moved_mask(layers: int) -> Volume:
    """The mask some layers higher: label 1 fills layers 1 and 2 of five, label 2 fills layer 3."""
    upward_mm = np.reshape(GRID.direction, (3, 3))[:, 2] * GRID.spacing_mm[2]
    moved = replace(GRID, origin_mm=tuple(np.array(GRID.origin_mm) + layers * upward_mm))
    return Volume(mask().voxels, moved)


def test_labels_that_resampling_loses_are_named(tmp_path):
    save(tmp_path / "images/a.nii.gz", image())
    save(tmp_path / "masks/a.nii.gz", moved_mask(2))
    dataset = convert(tmp_path, tmp_path / "raw", resample=True)
    assert set(np.unique(read_labels(dataset / "labelsTr/a.nii.gz").voxels)) == {0, 1}
    changes = json.loads((dataset / "conversion.json").read_text())["cases"]["a"]["changes"]
    assert changes[-1] == "lost by resampling: value(s) 2"


def test_a_mask_of_which_resampling_leaves_nothing_is_refused(tmp_path):
    save(tmp_path / "images/a.nii.gz", image())
    save(tmp_path / "masks/a.nii.gz", moved_mask(20))
    with pytest.raises(SamnnError, match=r"masks/a\.nii\.gz: no label lies on a\.nii\.gz"):
        convert(tmp_path, tmp_path / "raw", resample=True)


def test_a_segmentation_of_slicer_belongs_to_the_image_of_its_name(tmp_path):
    save(tmp_path / "images/a.nii.gz", image())
    save_itk(tmp_path / "masks/a.seg.nrrd", mask())
    assert_same(convert(tmp_path, tmp_path / "raw") / "labelsTr/a.nii.gz", mask())


def test_header_noise_of_a_mask_is_replaced_by_the_header_of_the_image(tmp_path):
    save(tmp_path / "images/a.nii.gz", image())
    noisy = replace(GRID, origin_mm=tuple(value + 0.003 for value in GRID.origin_mm))
    save(tmp_path / "masks/a.nii.gz", Volume(mask().voxels, noisy))
    dataset = convert(tmp_path, tmp_path / "raw")
    written = [
        nibabel.load(dataset / path).affine for path in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    ]
    np.testing.assert_array_equal(*written)


def test_odd_names_are_cleaned_and_the_report_says_so(tmp_path, capsys):
    for name in ("Jürgen (links) 1", "b;c", "-d"):
        pair(tmp_path, name)
    dataset = convert(tmp_path, tmp_path / "raw")
    assert sorted(path.name for path in (dataset / "labelsTr").iterdir()) == [
        "Jürgen_links_1.nii.gz",
        "b_c.nii.gz",
        "d.nii.gz",
    ]
    assert "was '-d'" in capsys.readouterr().out


def test_images_without_a_mask_become_test_cases_on_request(tmp_path):
    pair(tmp_path)
    save(tmp_path / "images/b.nii.gz", image())
    dataset = convert(tmp_path, tmp_path / "raw", unlabelled=True)
    assert [path.name for path in (dataset / "imagesTs").iterdir()] == ["b_0000.nii.gz"]
    assert json.loads((dataset / "dataset.json").read_text())["numTraining"] == 1


def test_a_table_names_cases_channels_masks_and_patients(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    for name in "abc":
        pair(tmp_path, name)
    rows = [
        "case,image,mask,patient",
        *(f"{c}1,images/{c}.nii.gz,masks/{c}.nii.gz,{p}" for c, p in zip("abc", "112", strict=True)),
    ]
    rows.append("t,images/a.nii.gz,,")
    (tmp_path / "cases.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    dataset = convert(tmp_path, tmp_path / "raw", table=tmp_path / "cases.csv")
    assert sorted(path.name for path in (dataset / "labelsTr").iterdir()) == [f"{c}1.nii.gz" for c in "abc"]
    assert [path.name for path in (dataset / "imagesTs").iterdir()] == ["t_0000.nii.gz"]
    folds = json.loads((dataset / "splits_final.json").read_text())
    assert sorted(fold["val"] for fold in folds) == [["a1", "b1"], ["c1"]]


def test_other_files_in_the_folders_are_left_out_and_named(tmp_path, capsys):
    pair(tmp_path)
    (tmp_path / "images/notes.txt").write_text("hello")
    shutil.copy(tmp_path / "images/a.nii.gz", tmp_path / "images/._a.nii.gz")
    dataset = convert(tmp_path, tmp_path / "raw")
    assert len(list((dataset / "imagesTr").iterdir())) == 1
    said = capsys.readouterr().out
    assert "notes.txt" in said and "._a.nii.gz" in said


def test_a_dry_run_reports_and_writes_nothing(tmp_path, capsys):
    pair(tmp_path, ending=".nrrd")
    convert(tmp_path, tmp_path / "raw", dry_run=True)
    assert "to convert" in capsys.readouterr().out
    assert not (tmp_path / "raw").exists()


def test_two_workers_write_the_same_bytes_as_one(tmp_path):
    for number in range(3):
        pair(tmp_path, f"c{number}", ending=".nrrd", seed=number)
    one = files(convert(tmp_path, tmp_path / "one", workers=1))
    assert files(convert(tmp_path, tmp_path / "two", workers=2)) == one

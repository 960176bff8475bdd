"""Volumes come back as they were written, and files that SimpleITK misreads in silence are refused."""

from __future__ import annotations

import gzip
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from samnn.errors import SamnnError
from samnn.geometry import Grid
from samnn.io import Volume, read_grid, read_labels, read_volume, stores_integers, write_like, write_volume

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)
AFFINE = np.array([[1.5, 0, 0, -50], [0, 1.5, 0, -60], [0, 0, 3, 10], [0, 0, 0, 1.0]])
GRID = Grid((6, 7, 8), (1.5, 1.5, 3), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
SROW_X, QOFFSET_X, PIXDIM_X = 280, 268, 80  # byte offsets in the NIfTI-1 header


@pytest.fixture
def ct(tmp_path):
    path = tmp_path / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(VOXELS, AFFINE), path)
    return path


def rewrite(path, change):
    """Apply `change` to the bytes inside a gzip file."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(bytes(change(content) or content)))


def test_voxels_come_in_x_y_z_order_and_the_grid_in_lps_millimetres(ct):
    """NIfTI's world axes point to the right and front where ITK's point to the left and back: x and y flip."""
    volume = read_volume(ct)
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    assert volume.grid == Grid((6, 7, 8), (1.5, 1.5, 3), (50, 60, 10), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert read_grid(ct) == volume.grid


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha"])
def test_what_is_written_is_read_back(tmp_path, name):
    grid = Grid((6, 7, 8), (1.5, 0.7, 3), (5, -6, 7), (0, 1, 0, -1, 0, 0, 0, 0, 1))
    write_volume(tmp_path / name, Volume(VOXELS, grid))
    again = read_volume(tmp_path / name)
    np.testing.assert_array_equal(again.voxels, VOXELS)
    assert grid.differences(again.grid, tolerance_mm=1e-5) == []


def test_every_shared_volume_passes_the_checks(shared):
    for path in sorted((shared / "data").glob("Dataset90[17]*/*/*.nii.gz")):
        assert read_volume(path).grid == read_grid(path)


@pytest.mark.parametrize("lost_bytes", [1, 8, 100, 300])
@pytest.mark.parametrize("read", [read_volume, read_labels])
def test_a_gzip_file_cut_short_is_refused(ct, lost_bytes, read):
    ct.write_bytes(ct.read_bytes()[:-lost_bytes])
    with pytest.raises(SamnnError, match=r"ct\.nii\.gz.*cut short"):
        read(ct)


@pytest.mark.parametrize("read", [read_volume, read_labels])
def test_a_flipped_bit_fails_the_checksum(ct, read):
    content = bytearray(ct.read_bytes())
    content[-6] ^= 1
    ct.write_bytes(content)
    with pytest.raises(SamnnError, match=r"CRC|cannot be read as an image"):
        read(ct)


@pytest.mark.parametrize("lost_bytes", [1, 300])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("read", [read_volume, read_labels])
def test_missing_voxels_are_counted(ct, lost_bytes, ending, read):
    rewrite(ct, lambda content: content[:-lost_bytes])
    path = ct.with_name("cut" + ending)
    path.write_bytes(gzip.decompress(ct.read_bytes()) if ending == ".nii" else ct.read_bytes())
    with pytest.raises(SamnnError, match=f"{lost_bytes} bytes of voxels are missing"):
        read(path)


@pytest.mark.parametrize("offset", [SROW_X, PIXDIM_X], ids=["sform", "pixdim"])
@pytest.mark.parametrize("read", [read_grid, read_volume, read_labels])
def test_geometry_that_is_not_finite_is_refused(ct, offset, read):
    def spoil(content):
        content[offset : offset + 4] = np.float32(np.nan).tobytes()

    rewrite(ct, spoil)
    with pytest.raises(SamnnError, match=r"ct\.nii\.gz.*NaN"):
        read(ct)


def test_a_nan_in_the_qform_is_refused_where_it_is_in_use(tmp_path):
    path = tmp_path / "q.nii.gz"
    image = nibabel.Nifti1Image(VOXELS, AFFINE)
    image.set_sform(AFFINE, 0)
    image.set_qform(AFFINE, 1)
    nibabel.save(image, path)
    read_grid(path)

    def spoil(content):
        content[QOFFSET_X : QOFFSET_X + 4] = np.float32(np.nan).tobytes()

    rewrite(path, spoil)
    with pytest.raises(SamnnError, match="NaN"):
        read_grid(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", gzip.compress(b""), gzip.compress(b"no image" * 99)],
    ids=["empty", "no image", "compressed nothing", "compressed no image"],
)
@pytest.mark.parametrize("read", [read_grid, read_volume])
def test_files_that_are_no_images_are_refused_by_name(tmp_path, content, read):
    path = tmp_path / "x.nii.gz"
    path.write_bytes(content)
    with pytest.raises(SamnnError, match=r"x\.nii\.gz"):
        read(path)


def test_a_nii_file_beside_a_nii_gz_of_the_same_name_is_refused(ct):
    """Without the refusal SimpleITK returns the voxels of ct.nii, here zeros."""
    nibabel.save(nibabel.Nifti1Image(np.zeros_like(VOXELS), AFFINE), ct.with_suffix(""))
    assert not SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(ct))).any()
    for read in (read_grid, read_volume):
        with pytest.raises(SamnnError, match="lies beside it"):
            read(ct)
    assert not read_volume(ct.with_suffix("")).voxels.any()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SamnnError, match=r"none\.nii\.gz: no such file"):
        read_volume(tmp_path / "none.nii.gz")


def test_several_values_per_voxel_are_refused(tmp_path):
    image = SimpleITK.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(image, str(tmp_path / "rgb.nii.gz"))
    with pytest.raises(SamnnError, match="3 values per voxel"):
        read_volume(tmp_path / "rgb.nii.gz")


def test_whole_numbers_stored_as_floats_are_labels_and_others_are_not(tmp_path):
    for name, value in [("whole", 2.0), ("half", 2.5), ("nan", np.nan), ("huge", 1e30)]:
        voxels = np.full((3, 4, 5), value, np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), tmp_path / f"{name}.nii.gz")
    labels = read_labels(tmp_path / "whole.nii.gz").voxels
    assert np.issubdtype(labels.dtype, np.integer) and (labels == 2).all()
    with pytest.raises(SamnnError, match="fractional"):
        read_labels(tmp_path / "half.nii.gz")
    for read in (read_labels, read_volume):
        with pytest.raises(SamnnError, match="NaN"):
            read(tmp_path / "nan.nii.gz")
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(SamnnError, match=r"1e\+30. Is it a label map"),
    ):
        read_labels(tmp_path / "huge.nii.gz")


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<u4", "<i8", "<f4", ">f8"])
@pytest.mark.parametrize("shape", [(6, 7, 8), (6, 7), (6, 7, 1), (6, 7, 8, 1)])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_labels_are_the_voxels_and_the_grid_of_the_volume(tmp_path, dtype, shape, ending):
    """Whether a label map is decoded by us or by SimpleITK: any type, byte order and number of axes."""
    voxels = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    path = tmp_path / f"labels{ending}"
    image = nibabel.Nifti1Image(
        voxels, AFFINE, nibabel.Nifti1Header(endianness=dtype[0] if dtype[0] in "<>" else "<")
    )
    image.set_data_dtype(dtype)
    nibabel.save(image, path)
    volume, labels = read_volume(path), read_labels(path)
    np.testing.assert_array_equal(labels.voxels, volume.voxels)
    assert labels.grid == volume.grid


def test_labels_with_a_slope_are_scaled(ct):
    def scale(content):
        content[112:120] = np.array([2, 1], np.float32).tobytes()  # scl_slope, scl_inter

    rewrite(ct, scale)
    np.testing.assert_array_equal(read_labels(ct).voxels, VOXELS * 2 + 1)


def test_bytes_after_the_voxels_are_no_part_of_the_labels(ct):
    rewrite(ct, lambda content: content + b"more")
    np.testing.assert_array_equal(read_labels(ct).voxels, VOXELS)


@pytest.mark.parametrize("read", [read_volume, read_labels])
def test_a_header_that_claims_more_than_any_memory_is_refused(ct, read):
    def claim(content):
        content[42:48] = np.array([32000] * 3, np.int16).tobytes()  # the shape

    rewrite(ct, claim)
    with pytest.raises(SamnnError, match="bytes of voxels are missing"):
        read(ct)


def test_complex_voxels_are_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.complex64), AFFINE), tmp_path / "c.nii.gz")
    with pytest.raises(SamnnError, match="complex"):
        read_volume(tmp_path / "c.nii.gz")


def test_an_uncompressed_file_named_gz_is_called_that(ct):
    ct.write_bytes(gzip.decompress(ct.read_bytes()))
    for read in (read_grid, read_volume):
        with pytest.raises(SamnnError, match=r"is not compressed.*rename it to ct\.nii\."):
            read(ct)


@pytest.mark.parametrize("n_dimensions", ["4294967296", "11", "0", "-3", "nan"])
def test_a_metaimage_of_many_dimensions_is_refused_before_itk_crashes(ct, n_dimensions):
    path = ct.with_name("ct.mha")
    write_volume(path, read_volume(ct))
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", b"NDims = " + n_dimensions.encode(), 1))
    with pytest.raises(SamnnError, match=rf"ct\.mha: says that it has '{n_dimensions}' dimensions"):
        read_volume(path)


def test_words_of_dimensions_elsewhere_in_a_metaimage_do_no_harm(ct):
    path = ct.with_name("ct.mha")
    write_volume(path, read_volume(ct))
    content = path.read_bytes().replace(b"NDims", b"Comment = NDims of this one are three\nNDims", 1)
    path.write_bytes(content + b"\nNDims = 99\n")
    assert (read_volume(path).voxels == read_volume(ct).voxels).all()


def test_a_name_that_is_not_utf8_is_refused_before_simpleitk_aborts(ct):
    odd = Path(os.fsdecode(bytes(ct.parent) + b"/Pat\xff.nii.gz"))
    ct.rename(odd)
    for touch in (read_grid, read_volume, lambda path: write_volume(path, Volume(VOXELS, GRID))):
        with pytest.raises(SamnnError, match=r"Pat\\xff\.nii\.gz: its name is not UTF-8"):
            touch(odd)


def test_a_name_too_long_for_the_system_is_an_error_of_its_own(tmp_path):
    with pytest.raises(SamnnError, match="too long"):
        read_volume(tmp_path / f"{'x' * 300}.nii.gz")


def test_an_axis_of_one_voxel_at_the_end_of_a_header_stays(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VOXELS[..., None], AFFINE), tmp_path / "a.nii.gz")
    write_like(tmp_path / "b.nii.gz", read_volume(tmp_path / "a.nii.gz").voxels, like=tmp_path / "a.nii.gz")
    again = np.asarray(nibabel.load(tmp_path / "b.nii.gz").dataobj)
    np.testing.assert_array_equal(again, VOXELS[..., None])


def test_a_slope_is_applied_and_makes_integers_numbers_of_another_kind(ct):
    assert stores_integers(ct)
    content = bytearray(gzip.decompress(ct.read_bytes()))
    content[112:120] = np.array([0.5, 1], np.float32).tobytes()  # scl_slope, scl_inter
    ct.write_bytes(gzip.compress(bytes(content)))
    assert not stores_integers(ct)
    np.testing.assert_allclose(read_volume(ct).voxels, VOXELS * 0.5 + 1)


def test_new_voxels_under_an_old_header_keep_its_geometry_to_the_bit(ct, tmp_path):
    def make_awkward(content):  # a qform that disagrees with the sform in the last digits, odd codes, a slope
        content[QOFFSET_X : QOFFSET_X + 4] = np.float32(-50.000004).tobytes()
        content[252:256] = np.array([2, 4], np.int16).tobytes()
        content[112:116] = np.float32(2).tobytes()

    rewrite(ct, make_awkward)
    write_like(tmp_path / "new.nii.gz", np.ones((6, 7, 8), np.uint8), like=ct)
    old, new = (nibabel.load(path).header for path in (ct, tmp_path / "new.nii.gz"))
    assert {name for name in old if old[name].tobytes() != new[name].tobytes()} <= {"datatype", "bitpix"}
    assert (read_labels(tmp_path / "new.nii.gz").voxels == 1).all()


def test_new_voxels_of_another_shape_are_refused(ct, tmp_path):
    with pytest.raises(SamnnError, match="does not fit"):
        write_like(tmp_path / "new.nii.gz", np.ones((6, 7, 9), np.uint8), like=ct)


@pytest.mark.parametrize("more", [1, 100])
@pytest.mark.parametrize("name", ["even.nrrd", "even.mha"])
def test_voxels_that_pack_so_well_that_their_last_bytes_wait_inside_the_decoder_are_read(
    tmp_path, name, more
):
    """A block of a MiB is full just before the end, when no packed byte is left to be given to the decoder."""
    image = SimpleITK.GetImageFromArray(np.zeros((1, 1, (1 << 20) + more), np.uint8))
    SimpleITK.WriteImage(image, tmp_path / name, True)
    assert read_volume(tmp_path / name).voxels.shape == ((1 << 20) + more, 1, 1)


@pytest.mark.parametrize("name", ["big.nii.gz", "big.nrrd", "big.mha"])
def test_a_full_disk_is_noticed_and_leaves_nothing(tmp_path, name):
    """SimpleITK writes half a NIfTI file without a word. A limit on file sizes stands for the full disk."""
    code = (
        "import sys, numpy as np; from pathlib import Path;"
        "from samnn.geometry import Grid; from samnn.io import Volume, write_volume;"
        "voxels = np.random.default_rng(0).integers(0, 255, (64, 64, 64)).astype(np.uint8);"
        "grid = Grid((64, 64, 64), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1));"
        "write_volume(Path(sys.argv[1]), Volume(voxels, grid))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "SamnnError" in done.stderr and name in done.stderr
    assert list(Path(tmp_path).iterdir()) == []

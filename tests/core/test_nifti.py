"""Voxels read without SimpleITK are SimpleITK's voxels; what it gets wrong is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from samnn.blocks import label_values
from samnn.errors import SamnnError
from samnn.geometry import Grid
from samnn.io import Volume, read_header, read_volume, write_volume

SHAPE = (5, 4, 3)
TYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"]


def numbers(dtype: str) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=SHAPE) * 30 + 60).astype(dtype)


def save(path: Path, voxels: np.ndarray, *, slope: float = 1, intercept: float = 0, order: str = "<") -> Path:
    """Stored as they are, under a header with this slope, by hand: nibabel would divide by it."""
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_sform(np.diag([2.0, 3, 4, 1]), 1)
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["vox_offset"] = 352
    stored = voxels.astype(voxels.dtype.newbyteorder(order)).tobytes(order="F")
    path.write_bytes(header.binaryblock + bytes(4) + stored)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.1, -7), (2, 0), (1, -7), (0, 0)])
@pytest.mark.parametrize("dtype", TYPES)
def test_voxels_and_their_type_are_those_of_simpleitk(tmp_path, dtype, slope, intercept, order):
    path = save(tmp_path / "x.nii", numbers(dtype), slope=slope, intercept=intercept, order=order)
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).transpose()
    found = read_volume(path).voxels
    assert found.dtype == expected.dtype == read_header(path).dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_written_is_the_same_to_simpleitk(tmp_path, dtype):
    turn = (0.96, -0.28, 0.0, 0.2688, 0.9216, -0.28, 0.0784, 0.2688, 0.96)
    volume = Volume(numbers(dtype), Grid(SHAPE, (0.8, 1.25, 2.5), (-41.0, 17.5, -230.25), turn))
    write_volume(tmp_path / "x.nii.gz", volume)
    image = SimpleITK.ReadImage(str(tmp_path / "x.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).transpose(), volume.voxels)
    found = Grid(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    assert volume.grid.differences(found, tolerance_mm=1e-4) == []


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_packed_and_plain_voxels_of_other_formats_are_those_of_simpleitk(tmp_path, dtype, packed, ending):
    path = str(tmp_path / f"x{ending}")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(numbers(dtype).T.copy()), path, packed)
    found = read_volume(Path(path)).voxels
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, numbers(dtype))


@pytest.mark.parametrize("lost_bytes", [1, 8, 40])
def test_a_packed_nrrd_file_cut_short_is_refused(tmp_path, lost_bytes):
    path = tmp_path / "x.nrrd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(numbers("i2").T.copy()), str(path), True)
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    with pytest.raises(SamnnError, match=r"x\.nrrd"):
        read_volume(path)


def test_a_header_that_claims_petabytes_is_refused_before_memory_is_asked_for(tmp_path):
    path = save(tmp_path / "x.nii", numbers("i2"))
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([30000, 30000, 30000], np.int16).tobytes()
    path.write_bytes(content)
    with pytest.raises(SamnnError, match="is cut short"):
        read_volume(path)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "f4"])
def test_the_values_of_a_label_map_are_found_wherever_they_are(tmp_path, dtype):
    """In the last voxels, too, which fill no word of eight bytes; and with or without a zero."""
    labels = np.zeros((7, 5, 3), dtype)
    labels[0, 0, 0], labels[3, 2, 1], labels[-1, -1, -1] = 3, 7, 9
    for name, offset, expected in (("x.nii", 0, {0, 3, 7, 9}), ("y.nii", 1, {1, 4, 8, 10})):
        path = save(tmp_path / name, labels + np.array(offset, dtype))
        assert label_values(path, read_header(path)) == expected

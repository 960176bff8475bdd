"""Integers rewritten as NIfTI a block at a time, or still packed, are the integers that were there."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from samnn.blocks import rewrite
from samnn.errors import SamnnError
from samnn.io import read_volume
from samnn.stored import find_stored

SHAPE = (7, 5, 3)


def numbers(dtype: str = "i2") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, SHAPE).astype(dtype)


def itk_file(path: Path, voxels: np.ndarray, packed: bool) -> Path:
    image = SimpleITK.GetImageFromArray(voxels.T.copy())
    image.SetSpacing((0.5, 2.0, 3.25))
    image.SetOrigin((-4.0, 50.0, 7.5))
    SimpleITK.WriteImage(image, str(path), packed)
    return path


def nrrd(path: Path, packed: bytes, *fields: str) -> Path:
    """An NRRD file written by hand."""
    header = [
        "NRRD0004",
        "type: int16",
        "dimension: 3",
        f"sizes: {' '.join(map(str, SHAPE))}",
        "space: left-posterior-superior",
        "space directions: (1,0,0) (0,1,0) (0,0,1)",
        "space origin: (0,0,0)",
        *(fields or ["encoding: gzip", "endian: little"]),
    ]
    path.write_bytes("\n".join(header).encode() + b"\n\n" + packed)
    return path


def gzip_file(content: bytes, flags: int, fields: bytes) -> bytes:
    """RFC 1952 by hand: a header with optional fields, a deflate stream, checksum and length."""
    deflate = zlib.compressobj(wbits=-15)
    packed = deflate.compress(content) + deflate.flush()
    trailer = zlib.crc32(content).to_bytes(4, "little") + len(content).to_bytes(4, "little")
    header = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6) + fields
    if flags & 2:
        header += zlib.crc32(header).to_bytes(4, "little")[:2]
    return header + packed + trailer


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize(
    ("ending", "packed"),
    [(".nrrd", True), (".nrrd", False), (".mha", True), (".mha", False), (".nii", False)],
)
def test_a_rewritten_file_holds_the_same_voxels_in_the_same_place(tmp_path, ending, packed, dtype):
    source = itk_file(tmp_path / f"a{ending}", numbers(dtype), packed)
    rewrite(source, tmp_path / "b.nii.gz")
    expected = SimpleITK.ReadImage(str(source))
    found = SimpleITK.ReadImage(str(tmp_path / "b.nii.gz"))
    assert found.GetPixelID() == expected.GetPixelID()
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(found).T, numbers(dtype))
    for of in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(found, of)() == pytest.approx(getattr(expected, of)())
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "b.nii.gz").dataobj), numbers(dtype))


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        (0, b""),
        (8, b"name\0"),
        (16, b"comment\0"),
        (4, b"\x03\0abc"),
        (2, b""),
        (30, b"\x01\0xname\0words\0"),
    ],
)
def test_voxels_packed_by_gzip_stay_packed_and_their_checksum_holds(tmp_path, flags, fields):
    packed = gzip_file(numbers().tobytes("F"), flags, fields)
    rewrite(nrrd(tmp_path / "a.nrrd", packed), tmp_path / "b.nii.gz")
    written = (tmp_path / "b.nii.gz").read_bytes()
    assert packed[10 + len(fields) + (flags & 2) : -8] in written
    assert gzip.decompress(written)[352:] == numbers().tobytes("F")  # it checks checksum and length


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_damage_in_packed_voxels_is_refused(tmp_path, ending):
    noise = np.random.default_rng(0).integers(-9999, 9999, SHAPE, np.int16)
    source = itk_file(tmp_path / f"a{ending}", noise, True)
    content = bytearray(source.read_bytes())
    content[-100] ^= 1
    source.write_bytes(content)
    with pytest.raises(SamnnError, match=rf"a{ending}: its voxels cannot be decompressed"):
        rewrite(source, tmp_path / "b.nii.gz")
    assert not (tmp_path / "b.nii.gz").exists()


def test_packed_voxels_of_a_metaimage_file_stay_packed_and_get_their_checksum(tmp_path):
    source = itk_file(tmp_path / "a.mha", numbers(), True).read_bytes()
    rewrite(tmp_path / "a.mha", tmp_path / "b.nii.gz")
    written = (tmp_path / "b.nii.gz").read_bytes()
    assert source[source.index(b"LOCAL\n") + 8 : -4] in written
    assert gzip.decompress(written)[352:] == numbers().tobytes("F")


def test_bytes_after_the_packed_voxels_do_not_come_along(tmp_path):
    for ending in (".mha", ".nrrd"):
        source = itk_file(tmp_path / f"a{ending}", numbers(), True)
        source.write_bytes(source.read_bytes() + bytes(4))
        rewrite(source, tmp_path / "b.nii.gz")
        assert gzip.decompress((tmp_path / "b.nii.gz").read_bytes())[352:] == numbers().tobytes("F")


@pytest.mark.parametrize(
    "shape", [(1, 40000, 1), (40000, 1, 1)]
)  # nibabel writes the second in a way of its own
def test_a_grid_too_large_for_nifti_is_refused(tmp_path, shape):
    source = itk_file(tmp_path / "a.mha", np.zeros(shape, np.uint8), True)
    with pytest.raises(SamnnError, match="no more than 32767 along an axis"):
        rewrite(source, tmp_path / "b.nii.gz")


def test_gzip_of_several_members_is_unpacked(tmp_path):
    content = numbers().tobytes("F")
    rewrite(
        nrrd(tmp_path / "a.nrrd", gzip.compress(content[:70]) + gzip.compress(content[70:])),
        tmp_path / "b.nii.gz",
    )
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz").voxels, numbers())


@pytest.mark.parametrize("lost_bytes", [1, 8, 40])
@pytest.mark.parametrize(
    ("ending", "packed"), [(".nrrd", True), (".mha", True), (".mha", False), (".nrrd", False)]
)
def test_a_file_cut_short_is_refused_and_nothing_is_written(tmp_path, ending, packed, lost_bytes):
    source = itk_file(tmp_path / f"a{ending}", numbers(), packed)
    source.write_bytes(source.read_bytes()[:-lost_bytes])
    with pytest.raises(SamnnError, match="a" + ending):
        rewrite(source, tmp_path / "b.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_metaimage_file_with_a_wrong_checksum_is_refused(tmp_path):
    source = itk_file(tmp_path / "a.mha", numbers(), True)
    source.write_bytes(source.read_bytes()[:-1] + bytes([source.read_bytes()[-1] ^ 1]))
    with pytest.raises(SamnnError, match=r"a\.mha: its voxels cannot be decompressed"):
        rewrite(source, tmp_path / "b.nii.gz")


def test_a_metaimage_file_packed_by_gzip_is_read(tmp_path):
    plain = itk_file(tmp_path / "a.mha", numbers(), False).read_bytes()
    start = plain.index(b"ElementDataFile = LOCAL\n") + 24
    header = plain[:start].replace(b"CompressedData = False", b"CompressedData = True")
    (tmp_path / "a.mha").write_bytes(header + gzip.compress(plain[start:]))
    rewrite(tmp_path / "a.mha", tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz").voxels, numbers())


def test_what_only_itk_can_read_is_left_to_it(tmp_path):
    """Big-endian voxels, and voxels in a file of their own."""
    swapped = numbers().astype(">i2").tobytes("F")
    big = nrrd(tmp_path / "a.nrrd", swapped, "encoding: raw", "endian: big")
    assert find_stored(big, SHAPE, np.dtype("i2")) is None
    (tmp_path / "c.raw").write_bytes(numbers().tobytes("F"))
    apart = nrrd(tmp_path / "c.nrrd", b"", "encoding: raw", "endian: little", "data file: c.raw")
    for source in (big, apart):
        rewrite(source, tmp_path / "b.nii.gz")
        np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz").voxels, numbers())


@pytest.mark.parametrize("kind", ["big-endian", "with a fourth axis of one"])
def test_under_the_header_of_another_file_the_voxels_are_right_whatever_its_kind(tmp_path, kind):
    header = nibabel.Nifti1Header(endianness=">" if kind == "big-endian" else "<")
    shape = SHAPE if kind == "big-endian" else (*SHAPE, 1)
    header.set_data_dtype(np.float32)
    nibabel.save(
        nibabel.Nifti1Image(np.zeros(shape, "f4"), np.diag([2, 3, 4, 1]), header), tmp_path / "like.nii.gz"
    )
    for source in (
        itk_file(tmp_path / "a.nrrd", numbers(), True),
        itk_file(tmp_path / "a.nii", numbers(), False),
    ):
        rewrite(source, tmp_path / "b.nii.gz", like=tmp_path / "like.nii.gz")
        written = nibabel.load(tmp_path / "b.nii.gz")
        assert written.shape == shape and np.array_equal(written.affine, np.diag([2, 3, 4, 1]))
        np.testing.assert_array_equal(np.asarray(written.dataobj).reshape(SHAPE), numbers())


def test_another_shape_than_that_of_the_header_to_use_is_refused(tmp_path):
    itk_file(tmp_path / "like.nii.gz", numbers()[:, :, :2], True)
    with pytest.raises(SamnnError, match="does not fit the header"):
        rewrite(
            itk_file(tmp_path / "a.mha", numbers(), True),
            tmp_path / "b.nii.gz",
            like=tmp_path / "like.nii.gz",
        )

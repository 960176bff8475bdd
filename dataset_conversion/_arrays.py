"""Arrays in .npz and HDF5 files, read without ever unpickling, and stacked into volumes."""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
from isal import isal_zlib

from samnn.blocks import Blocks
from samnn.errors import SamnnError
from samnn.geometry import Grid
from samnn.io import Volume
from samnn.nifti import MOST_INFLATION

_TYPES = "biuf"
_NPY = ".npy"
_COLUMNS = 64  # that are transposed at once: so few stay in the cache until all rows are done
_BLOCK_BYTES = 1 << 20


def npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """The shape and type of every array in a .npz file; nothing but headers is read.

    Raises:
        SamnnError: it is no such file.
    """
    headers = {}
    with _named(path), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith(_NPY):
                with archive.open(member) as file:
                    shape, _, dtype = _read_header(file)
                headers[member.removesuffix(_NPY)] = (shape, dtype)
    return headers


def read_npz(path: Path, key: str) -> np.ndarray:
    """One array of real numbers in a .npz file.

    Raises:
        SamnnError: there is none, it is damaged, pickled, not finite, or not of real numbers.
    """
    with _named(path):
        content = b"".join(_unpacked(path, key + _NPY))
        array = _array(content) if content else None
    return _checked(path, key, array)


def npz_blocks(path: Path, key: str, spacing_mm: tuple[float, ...]) -> Blocks | None:
    """An array of integers in (z, y, x) order, upright; None where `read_npz` has to read it: no such array.

    Raises:
        SamnnError: it is damaged; from the blocks, too.
    """
    with _named(path):
        packed = _unpacked(path, key + _NPY)
        start = io.BytesIO(next(packed, b""))
        shape, is_fortran, dtype = _read_header(start) if start.getbuffer() else ((), False, np.dtype(object))
    if dtype.kind not in "iu" or is_fortran or len(shape) != 3 or 0 in shape:
        packed.close()
        return None

    def blocks() -> Iterator[np.ndarray]:
        left, rest = math.prod(shape) * dtype.itemsize, b""
        with _named(path):
            for block in chain([start.read()], packed):
                block = rest + block if rest else block
                whole = min(len(block) // dtype.itemsize * dtype.itemsize, left)
                if whole:
                    yield np.frombuffer(block[:whole], dtype).astype(dtype.newbyteorder("<"), copy=False)
                left, rest = left - whole, block[whole:] if left > whole else b""
            if left:
                raise ValueError(f"{left} bytes of {key} are missing")

    return Blocks(blocks(), dtype.newbyteorder("<"), _upright(shape[::-1], spacing_mm))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say of whatever zipfile, igzip and numpy raise on a damaged file, a dozen kinds, which file it is."""
    try:
        yield
    except (MemoryError, SamnnError):  # the first is said by whoever runs the case
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _unpacked(path: Path, member: str) -> Iterator[bytes]:
    """A member of a zip file, a block at a time, checked at its end; nothing if there is none.

    What is deflated igzip unpacks, faster than zipfile.
    """
    with zipfile.ZipFile(path) as archive:
        if member not in archive.namelist():
            return
        info = archive.getinfo(member)
        is_plausible = info.compress_size <= path.stat().st_size
        is_plausible = is_plausible and info.file_size <= MOST_INFLATION * info.compress_size
        with archive.open(info) as file:  # refuses what is encrypted, or called otherwise in its own header
            if info.compress_type != zipfile.ZIP_DEFLATED or not is_plausible:
                while block := file.read(_BLOCK_BYTES):
                    yield block
                return
    inflate, left, n_bytes, checksum = isal_zlib.decompressobj(-15), info.compress_size, 0, 0
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)  # past its name and further fields
        while not inflate.eof and n_bytes <= info.file_size:
            if not (data := inflate.unconsumed_tail):
                data = file.read(min(left, _BLOCK_BYTES))
                left -= len(data)
            block = inflate.decompress(data, _BLOCK_BYTES)
            if not (data or block):
                break
            n_bytes, checksum = n_bytes + len(block), isal_zlib.crc32(block, checksum)
            yield block
    if n_bytes != info.file_size or checksum != info.CRC:
        raise zipfile.BadZipFile(f"wrong length or checksum of {member}")


def _array(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    shape, is_fortran, dtype = _read_header(file)
    if dtype.hasobject:
        raise ValueError("pickled objects, which could run code")
    if 0 in shape:
        return np.empty(shape, dtype)
    flat = np.frombuffer(content, dtype, math.prod(shape), file.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran's order, and type of the array in a .npy file."""
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    header = read(file)
    if min(header[0], default=0) < 0:
        raise ValueError("the length of an axis is negative")
    return header


def read_h5(path: Path, key: str) -> np.ndarray:
    """One array of real numbers in an HDF5 file; needs the package h5py.

    Raises:
        SamnnError: h5py is not installed, or as `read_npz`.
    """
    try:
        import h5py
    except ImportError as error:
        raise SamnnError(
            f"{path}: reading HDF5 needs h5py. Install it: pip install 'samnn[synapse]'"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            array = np.asarray(file[key][()]) if isinstance(file.get(key), h5py.Dataset) else None
    except MemoryError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    return _checked(path, key, array)


def plain(array: np.ndarray) -> np.ndarray:
    """The same numbers in a type that NIfTI and ITK have, in this machine's byte order."""
    wider = {np.dtype(bool): np.uint8, np.dtype(np.float16): np.float32}
    native = array.dtype.newbyteorder("=")
    return array.astype(wider.get(native, native), copy=False)


def whole_numbers(path: Path, array: np.ndarray) -> np.ndarray:
    """Labels as integers, which some sets store as floats.

    Raises:
        SamnnError: a value is fractional.
    """
    if array.dtype.kind in "iu":
        return array
    whole = array.astype(np.int32)
    if not np.array_equal(whole, array):
        raise SamnnError(f"{path}: holds fractional values; a mask needs whole numbers. Was it interpolated?")
    return whole


def stack(slices: Sequence[np.ndarray], files: Sequence[Path], spacing_mm: tuple[float, ...]) -> Volume:
    """Slices in (x, y) order, the lowest first, as a volume that lies in the patient as ITK assumes by default.

    Raises:
        SamnnError: their shapes differ.
    """
    for path, one in zip(files, slices, strict=True):
        if one.ndim != 2 or one.shape != slices[0].shape:
            raise SamnnError(
                f"{path}: has shape {one.shape}, {files[0].name} {slices[0].shape}. Are they of one scan?"
            )
    width, height = slices[0].shape
    voxels = np.empty((len(slices), height, width), np.result_type(*slices))  # as files have them: x fastest
    for plane, one in zip(voxels, slices, strict=True):
        for x in range(0, width, _COLUMNS):
            plane[:, x : x + _COLUMNS] = one.T[:, x : x + _COLUMNS]
    return upright(voxels.T, spacing_mm)


def upright(voxels: np.ndarray, spacing_mm: tuple[float, ...]) -> Volume:
    """Voxels in (x, y) or (x, y, z) order on a grid that is neither shifted nor turned."""
    return Volume(voxels, _upright(voxels.shape, spacing_mm))


def _upright(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> Grid:
    n = len(shape)
    return Grid(shape, tuple(spacing_mm), (0.0,) * n, tuple(np.eye(n).ravel().tolist()))


def missing(numbers: Sequence[int]) -> list[int]:
    """Which numbers a row of slices lacks, from 0 or 1 to the last."""
    return sorted(set(range(min(1, min(numbers)), max(numbers) + 1)) - set(numbers))


def _checked(path: Path, key: str, array: np.ndarray | None) -> np.ndarray:
    if array is None:
        raise SamnnError(f"{path}: has no array {key!r}. Is it of this layout?")
    if array.dtype.kind not in _TYPES or array.dtype.itemsize > 8 or array.size == 0:
        raise SamnnError(f"{path}: {key!r} has shape {array.shape} and type {array.dtype}; expected numbers.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise SamnnError(f"{path}: {key!r} holds NaN or infinity. Export it again, or give them a value.")
    return plain(array)


def _unreadable(path: Path, error: Exception) -> SamnnError:
    return SamnnError(f"{path}: cannot be read as arrays of numbers ({error}). Is it damaged or cut short?")

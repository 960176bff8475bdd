"""Stored arrays, block after block: nnU-Net's .npz and 4-D NIfTI files that would not fit into memory whole."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.lib import format as npy

from samnn.errors import SamnnError

BLOCK = 1 << 20  # numbers held at a time
KEY = "probabilities"  # under which nnU-Net saves them


@dataclass(frozen=True)
class Header:
    """What a file says of its array; the last axis of `shape` runs fastest: (classes, z, y, x)."""

    shape: tuple[int, ...]
    stored: np.dtype
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.intercept) != (1, 0)

    @property
    def dtype(self) -> np.dtype:
        """The floating type that the numbers are handed out in."""
        return np.result_type(self.stored, np.float64 if self.is_scaled else np.float32)


def read_header(path: Path) -> Header:
    """Read shape and type only.

    Raises:
        SamnnError: the file is missing, damaged, holds no array of real numbers, or one that needs unpickling.
    """
    with _opened(path) as (header, _):
        return header


def read_blocks(path: Path) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (index on the first axis, start within it, numbers): flat blocks, in the order of the file.

    Raises:
        SamnnError: as `read_header`, or the file ends early, fails its checksum, or holds NaN or infinity.
    """
    with _opened(path) as (header, file):
        size = math.prod(header.shape[1:])
        for first in range(header.shape[0]):
            for start in range(0, size, BLOCK):
                n = min(BLOCK, size - start)
                content = file.read(n * header.stored.itemsize)
                if len(content) < n * header.stored.itemsize:
                    raise EOFError("it ends early")
                block = np.frombuffer(content, header.stored).astype(header.dtype, copy=False)
                if not np.isfinite(block).all():
                    raise SamnnError(
                        f"{path}: holds NaN or infinity, first in channel {first}. Export it again."
                    )
                if header.is_scaled:
                    block = block * header.slope + header.intercept
                yield first, start, block
        while file.read(BLOCK):  # the checksum is compared at the end
            pass


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Header, IO[bytes]]]:
    """The header, and the file where the numbers begin."""
    try:
        if path.name.endswith(".npz"):
            with zipfile.ZipFile(path) as archive, _member(path, archive) as file:
                yield _npy_header(path, file), file
        else:
            stored = nibabel.load(path)
            dtype = _real(path, stored.dataobj.dtype)
            header = Header(tuple(stored.shape[::-1]), dtype, stored.dataobj.slope, stored.dataobj.inter)
            with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
                file.seek(stored.dataobj.offset)
                yield header, file
    except _DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise SamnnError(f"{path}: cannot be read ({reason}). Is it damaged or cut short?") from error


_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    ImageFileError,
    HeaderDataError,
)


def _member(path: Path, archive: zipfile.ZipFile) -> IO[bytes]:
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    if KEY not in names:
        raise SamnnError(
            f"{path}: has no array {KEY!r}, only {', '.join(names) or 'nothing'}. nnU-Net saves it with "
            "nnUNetv2_predict --save_probabilities, or nnUNetv2_train … --val --npz."
        )
    return archive.open(f"{KEY}.npy")


def _npy_header(path: Path, file: IO[bytes]) -> Header:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if is_fortran:
        raise SamnnError(f"{path}: is stored in Fortran order. Save np.ascontiguousarray(probabilities).")
    return Header(shape, _real(path, dtype))


def _real(path: Path, dtype: np.dtype) -> np.dtype:
    if dtype.hasobject:
        raise SamnnError(f"{path}: holds pickled objects, which are never read. Save an array of float32.")
    if dtype.kind not in "fiu":
        raise SamnnError(f"{path}: holds {dtype}; probabilities are real numbers. Save an array of float32.")
    return dtype

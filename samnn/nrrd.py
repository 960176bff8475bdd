"""The voxels of gzip-encoded NRRD files, as 3D Slicer writes them, decompressed by igzip: four times as fast as ITK."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
from isal import igzip, isal_zlib

from samnn.errors import SamnnError

_MOST_LINES, _LONGEST_LINE = 10_000, 1 << 16
_MOST_INFLATION = 1100  # deflate makes at most 1032 bytes out of one
_BLOCK_BYTES = 1 << 20


def read_gzip_voxels(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """The voxels in (x, y, z) order; None where the file is of another kind, and ITK has to read it.

    Raises:
        SamnnError: the file ends early or fails its checksum.
    """
    with open(path, "rb") as file:
        fields = {}
        for _ in range(_MOST_LINES):
            line = file.readline(_LONGEST_LINE)
            if not line.strip(b"\r\n"):
                break
            name, _, value = line.decode("latin-1").partition(":")
            fields[name.strip().lower()] = value.strip().lower()
        is_plain = not fields.keys() & {
            "data file",
            "datafile",
            "line skip",
            "lineskip",
            "byte skip",
            "byteskip",
        }
        is_little = fields.get("endian", "") == "little" or dtype.itemsize == 1
        if fields.get("encoding") not in ("gzip", "gz") or not is_plain or not is_little:
            return None
        missing_bytes = math.prod(shape) * dtype.itemsize
        if missing_bytes > path.stat().st_size * _MOST_INFLATION:
            raise SamnnError(f"{path}: is too short for the voxels that its header names. Copy it again.")
        voxels = np.empty(math.prod(shape), dtype)
        rest = memoryview(voxels).cast("B")
        try:
            with igzip.open(file) as content:
                while rest and (size := content.readinto(rest[:_BLOCK_BYTES])):
                    rest = rest[size:]
                while content.read(_BLOCK_BYTES):  # to its end, where the checksum is
                    pass
        except (OSError, EOFError, zlib.error, isal_zlib.error) as error:
            raise SamnnError(
                f"{path}: its voxels cannot be decompressed ({error}). Copy it again."
            ) from error
    if rest:
        raise SamnnError(f"{path}: is cut short, {len(rest)} bytes of voxels are missing. Copy it again.")
    return voxels.reshape(shape, order="F")

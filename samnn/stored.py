"""Where the voxels of an NRRD or MetaImage file lie and how they are packed, for igzip to unpack: faster than ITK."""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import igzip, isal_zlib

from samnn.errors import SamnnError

_MOST_LINES, _LONGEST_LINE = 10_000, 1 << 16
_MOST_INFLATION = 1100  # deflate makes at most 1032 bytes out of one
_BLOCK_BYTES = 1 << 20
_MOST_BYTES = 8  # of a voxel
_META_TYPES = {
    "met_char": "int8",
    "met_uchar": "uint8",
    "met_short": "int16",
    "met_ushort": "uint16",
    "met_int": "int32",
    "met_uint": "uint32",
    "met_float": "float32",
    "met_double": "float64",
}


@dataclass(frozen=True)
class Stored:
    """Voxels in (x, y, z) order, little-endian, to the end of a file."""

    path: Path
    offset: int  # of their first byte
    packing: str  # "raw", "gzip" or "zlib"
    n_bytes: int  # unpacked


def find_stored(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Stored | None:
    """Where the voxels are; None where the file is of another kind, and ITK has to read it."""
    if path.suffix not in (".nrrd", ".mha"):
        return None
    with open(path, "rb") as file:
        fields = _fields(file, b":" if path.suffix == ".nrrd" else b"=", last=b"elementdatafile")
        offset = file.tell()
        packing = (_nrrd_packing if path.suffix == ".nrrd" else _meta_packing)(fields, dtype)
        if packing == "zlib" and file.read(2) == b"\x1f\x8b":
            packing = "gzip"
    return packing and Stored(path, offset, packing, math.prod(shape) * dtype.itemsize)


def read_stored(stored: Stored, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The voxels in (x, y, z) order.

    Raises:
        SamnnError: as `stored_blocks`.
    """
    start, voxels = 0, np.empty(0, np.uint8)
    for block in stored_blocks(stored):
        if start == 0:  # by now the size is known to be plausible
            voxels = np.empty(stored.n_bytes, np.uint8)
        voxels[start : start + len(block)] = np.frombuffer(block, np.uint8)
        start += len(block)
    return voxels.view(dtype).reshape(shape, order="F")


def stored_blocks(stored: Stored) -> Iterator[bytes]:
    """The unpacked bytes in order, a block of whole voxels at a time.

    Raises:
        SamnnError: the file ends early or fails its checksum.
    """
    path, left = stored.path, stored.n_bytes
    most = (path.stat().st_size - stored.offset) * (1 if stored.packing == "raw" else _MOST_INFLATION)
    if left > most:  # found before memory is asked for: a damaged header may claim petabytes
        raise SamnnError(f"{path}: is too short for the voxels that its header names. Copy it again.")
    try:
        with open(path, "rb") as file:
            file.seek(stored.offset)
            for block in _unpacked(file, stored.packing):  # to its end, where the checksum is
                if left:
                    yield block[:left]
                    left -= min(left, len(block))
                elif stored.packing == "raw":
                    break
    except (OSError, EOFError, zlib.error, isal_zlib.error) as error:
        raise SamnnError(f"{path}: its voxels cannot be decompressed ({error}). Copy it again.") from error
    if left:
        raise SamnnError(f"{path}: is cut short, {left} bytes of voxels are missing. Copy it again.")


def splice(stored: Stored, start: bytes, target: Path) -> bool:
    """Write `start` and the voxels into the empty file `target` as gzip; the compressed voxels are those of the source.

    A block of deflate refers to nothing before its own stream, and may follow any block that ends with a whole byte,
    as one that is not compressed does (RFC 1951, 3.2); the checksum of both parts follows from theirs (RFC 1952).
    False, and nothing is written: the voxels are not compressed, or not as one stream to the end of the file.

    Raises:
        SamnnError: as `stored_blocks`: they are unpacked to see that they can be.
    """
    if stored.packing == "raw" or len(start) > 0xFFFF:
        return False
    checksum, adler = 0, 1
    for block in stored_blocks(stored):
        checksum = isal_zlib.crc32(block, checksum)
        adler = isal_zlib.adler32(block, adler)
    is_gzip = stored.packing == "gzip"
    trailer = struct.pack("<II", checksum, stored.n_bytes % 2**32) if is_gzip else struct.pack(">I", adler)
    with open(stored.path, "rb") as source:
        source.seek(-len(trailer), os.SEEK_END)
        left = source.tell()
        if source.read() != trailer:
            return False
        source.seek(stored.offset)
        _skip_gzip_header(source) if is_gzip else source.seek(2, os.SEEK_CUR)
        left -= source.tell()
        with open(target, "r+b") as file:
            file.write(b"\x1f\x8b\x08" + bytes(6) + b"\xff")  # no name, no time, unknown system
            file.write(struct.pack("<BHH", 0, len(start), len(start) ^ 0xFFFF) + start)
            while left and (block := source.read(min(_BLOCK_BYTES, left))):
                file.write(block)
                left -= len(block)
            checksum = isal_zlib.crc32_combine(isal_zlib.crc32(start), checksum, stored.n_bytes)
            file.write(struct.pack("<II", checksum, (len(start) + stored.n_bytes) % 2**32))
    return True


def _fields(file: BinaryIO, separator: bytes, *, last: bytes) -> dict[str, str]:
    """The names and values of a text header, in small letters; it ends at an empty line or with the field `last`."""
    fields: dict[str, str] = {}
    for _ in range(_MOST_LINES):
        line = file.readline(_LONGEST_LINE)
        name, _, value = (part.strip().lower().decode("latin-1") for part in line.partition(separator))
        if not line.strip(b"\r\n"):
            break
        fields[name] = value
        if name == last.decode():
            break
    return fields


def _nrrd_packing(fields: dict[str, str], dtype: np.dtype) -> str | None:
    is_elsewhere = fields.keys() & {"data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip"}
    is_little = fields.get("endian", "") == "little" or dtype.itemsize == 1
    packing = {"gzip": "gzip", "gz": "gzip", "raw": "raw"}.get(fields.get("encoding", ""))
    return packing if is_little and not is_elsewhere else None


def _meta_packing(fields: dict[str, str], dtype: np.dtype) -> str | None:
    is_big = "true" in (fields.get("binarydatabyteordermsb"), fields.get("elementbyteordermsb"))
    is_here = fields.get("elementdatafile") == "local" and fields.get("headersize", "0") == "0"
    is_known = _META_TYPES.get(fields.get("elementtype", "")) == dtype.name
    if fields.get("binarydata") != "true" or is_big or not is_here or not is_known:
        return None
    return "zlib" if fields.get("compresseddata") == "true" else "raw"


def _unpacked(file: BinaryIO, packing: str) -> Iterator[bytes]:
    if packing == "zlib":
        inflate, block = isal_zlib.decompressobj(), b""
        while not inflate.eof:
            data = inflate.unconsumed_tail or file.read(_BLOCK_BYTES)
            fresh = inflate.decompress(data, _BLOCK_BYTES)  # may hold back some when all data went in
            if not (data or fresh):
                raise EOFError("it ends before its checksum")
            block += fresh
            whole = len(block) // _MOST_BYTES * _MOST_BYTES
            yield block[:whole]
            block = block[whole:]
        yield block
        return
    content = igzip.open(file) if packing == "gzip" else file
    while block := content.read(_BLOCK_BYTES):
        yield block


def _skip_gzip_header(source: BinaryIO) -> None:
    """Go to where the compressed bytes begin (RFC 1952, 2.3)."""
    flags = source.read(10)[3]
    has_checksum, has_more, has_name, has_comment = (flags & bit for bit in (2, 4, 8, 16))
    if has_more:
        source.seek(int.from_bytes(source.read(2), "little"), os.SEEK_CUR)
    for _ in range(bool(has_name) + bool(has_comment)):
        while source.read(1) not in (b"\0", b""):
            pass
    if has_checksum:
        source.seek(2, os.SEEK_CUR)

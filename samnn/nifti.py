"""NIfTI files to the bit: what nibabel and SimpleITK pass over in silence is refused, and igzip is quick."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import nibabel
import numpy as np
from isal import igzip, isal_zlib
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Pair
from nibabel.spatialimages import HeaderDataError

from samnn.atomic import whole_file
from samnn.errors import SamnnError
from samnn.geometry import Grid

_BLOCK_BYTES = 1 << 20
_GZIP = 31  # zlib's window bits of 15, and 16 for gzip
MOST_INFLATION = 1100  # deflate makes at most 1032 bytes out of one
MOST_SHEAR = 5e-4  # cosine of two axes: 0.03 degrees, 0.15 mm over 300 mm


def is_nifti(path: Path) -> bool:
    return path.name.endswith((".nii", ".nii.gz"))


def load_nifti(path: Path) -> Nifti1Pair:
    """The header, and where the voxels lie in the file; they are not read."""
    try:
        return nibabel.load(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError) as error:
        raise unreadable(path, error) from error


def load_checked(path: Path) -> Nifti1Pair:
    """As `load_nifti`, but refuse a header that other programs would read otherwise than it says, without a word.

    Raises:
        SamnnError: it is not compressed though named so, its geometry is not finite, its sform is sheared.
    """
    if path.name.endswith(".gz") and _is_bare_nifti(path):
        raise SamnnError(f"{path}: is not compressed. Compress it with gzip, or rename it to {path.stem}.")
    image = load_nifti(path)
    header = image.header
    geometry = [*header["pixdim"][1 : 1 + len(header.get_data_shape())]]
    if header["sform_code"] > 0:
        geometry += [*header["srow_x"], *header["srow_y"], *header["srow_z"]]
    if header["qform_code"] > 0:
        geometry += [header[f"quatern_{part}"] for part in "bcd"]
        geometry += [header[f"qoffset_{axis}"] for axis in "xyz"]
    if not np.isfinite(geometry).all():
        raise SamnnError(
            f"{path}: its affine or spacing holds NaN or infinity. Its header is damaged; export it again."
        )
    if header["sform_code"] > 0:  # SimpleITK takes the qform then, if there is one: straightened
        refuse_shear(path, header.get_sform()[:3, :3])
    return image


def nifti2_grid_and_type(path: Path, image: nibabel.Nifti2Image) -> tuple[Grid, np.dtype]:
    """The grid of a NIfTI-2 file, which SimpleITK does not read, and the type of its voxels once read."""
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    affine = np.diag([-1.0, -1, 1, 1]) @ image.affine  # NIfTI's world axes are RAS
    refuse_shear(path, affine[:3, :3])
    if len(shape) != 3:
        raise SamnnError(f"{path}: is NIfTI-2 with {len(shape)} dimensions; expected 3.")
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / spacing_mm
    dtype = image.get_data_dtype().newbyteorder("=")
    if dtype.kind in "iu" and (image.dataobj.slope != 1 or image.dataobj.inter != 0):
        dtype = np.dtype(np.float32)
    return Grid(shape, tuple(spacing_mm), tuple(affine[:3, 3]), tuple(direction.ravel())), dtype


def read_voxels(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The voxels of a NIfTI file in (x, y, z) order; scaled in float64, as SimpleITK does.

    Raises:
        SamnnError: the file ends early or fails its checksum.
    """
    stored = load_nifti(path).dataobj
    flat, start = None, 0
    for block in voxel_blocks(path, stored):
        if flat is None:  # by now the size is known to be plausible
            flat = np.empty(math.prod(stored.shape), stored.dtype)
        flat[start : start + len(block) // flat.itemsize] = np.frombuffer(block, flat.dtype)
        start += len(block) // flat.itemsize
    if stored.slope != 1 or stored.inter != 0:
        flat = flat * np.float64(stored.slope) + np.float64(stored.inter)
    return flat.astype(dtype, copy=False).reshape(shape, order="F")


def voxel_blocks(path: Path, voxels: ArrayProxy) -> Iterator[bytes]:
    """The stored bytes of the voxels of a NIfTI file, in order, a few whole voxels at a time.

    `voxels` says where they are: `load_nifti(path).dataobj`.

    Raises:
        SamnnError: the file ends early or fails its checksum.
    """
    end = voxels.offset + math.prod(voxels.shape) * voxels.dtype.itemsize
    is_gzip = path.name.endswith(".gz")
    if voxels.offset < 0:
        raise SamnnError(f"{path}: its voxels start at byte {voxels.offset}. Its header is damaged.")
    try:
        at_most = path.stat().st_size * (MOST_INFLATION if is_gzip else 1)
        if end > at_most:  # found before memory is asked for: a damaged header may claim petabytes
            raise _cut_short(path, f"at least {end - at_most}" if is_gzip else str(end - at_most))
        with igzip.open(path) if is_gzip else open(path, "rb") as file:
            position = len(file.read(voxels.offset))
            while position < end and (block := file.read(min(_BLOCK_BYTES, end - position))):
                position += len(block)
                if len(block) % voxels.dtype.itemsize == 0:
                    yield block
            while file.read(_BLOCK_BYTES):  # to the end of the file, where the checksum is
                pass
    except (OSError, EOFError, zlib.error, isal_zlib.error) as error:
        raise unreadable(path, error) from error
    if position < end:
        raise _cut_short(path, str(end - position))


def ends_as_expected(path: Path) -> bool:
    """Whether the last bytes of a .nii.gz file give the length that its header asks for, without decompressing it.

    A file cut short fails this; so does a whole one of several gzip members, or with bytes after its voxels.
    """
    voxels = load_nifti(path).dataobj
    end = voxels.offset + math.prod(voxels.shape) * voxels.dtype.itemsize
    with open(path, "rb") as file:
        file.seek(-min(4, path.stat().st_size), os.SEEK_END)
        return int.from_bytes(file.read(), "little") == end % 2**32


def refuse_incomplete(path: Path) -> None:
    """Refuse a NIfTI file that ends early or fails its checksum."""
    if is_nifti(path):
        for _ in voxel_blocks(path, load_nifti(path).dataobj):
            pass


def write_nifti(path: Path, voxels: np.ndarray, header: nibabel.Nifti1Header) -> None:
    """Write voxels under a header that has their shape and place."""
    start = first_bytes(path, header, voxels.dtype)
    ordered = np.asarray(voxels, header.get_data_dtype()).reshape(-1, order="F")
    ordered = np.ascontiguousarray(ordered)  # of a volume turned around completely it is a view
    blocks = (ordered[at : at + _BLOCK_BYTES] for at in range(0, len(ordered), _BLOCK_BYTES))
    with whole_file(path) as part:
        write_blocks(part, start, blocks)


def header_for(path: Path, grid: Grid) -> nibabel.Nifti1Header:
    """A header that says where the voxels of a file, `path`, lie, in its sform and its qform.

    Raises:
        SamnnError: the grid is larger than NIfTI-1 can say.
    """
    affine = np.diag([-1.0, -1, 1, 1]) @ grid.affine  # NIfTI's world axes are RAS
    header = nibabel.Nifti1Header()
    if max(grid.shape) > 32767:
        raise SamnnError(f"{path}: has {grid.shape} voxels; NIfTI-1 has no more than 32767 along an axis.")
    header.set_data_shape(grid.shape)
    header.set_xyzt_units("mm")
    header.set_qform(affine, code="scanner")
    header.set_sform(affine, code="scanner")
    return header


def first_bytes(path: Path, header: nibabel.Nifti1Header, dtype: np.dtype) -> bytes:
    """All that comes before the voxels in a file, `path`, of unscaled voxels of a type; the header takes it in."""
    try:
        header.set_data_dtype(dtype)
    except HeaderDataError as error:
        raise SamnnError(f"{path}: NIfTI has no voxels of type {dtype}.") from error
    header.set_slope_inter(1, 0)
    header["vox_offset"] = header.single_vox_offset
    no_extensions = bytes(4)
    return header.binaryblock + no_extensions


def write_blocks(part: Path, start: bytes, blocks: Iterable[bytes | np.ndarray]) -> None:
    """Write one after the other into an empty file, packed where its name says so; packing is what costs the time."""
    packer = isal_zlib.compressobj(1, wbits=_GZIP) if part.name.endswith(".gz") else None
    with open(part, "r+b") as file:  # ext4 sends a file that was truncated to the disk when it is closed
        for block in chain([start], blocks):
            file.write(packer.compress(block) if packer else block)
        if packer:
            file.write(packer.flush())


def _is_bare_nifti(path: Path) -> bool:
    """Whether a file starts with the header of NIfTI-1 or -2, uncompressed."""
    with open(path, "rb") as file:
        start = file.read(348)
    return start[344:347] == b"n+1" or start[4:7] == b"n+2"


def refuse_shear(path: Path, matrix: np.ndarray) -> None:
    """Refuse axes (the columns) that are not at right angles: ITK and nnU-Net know no other grids."""
    lengths = np.linalg.norm(matrix, axis=0)
    if not (lengths > 0).all():
        raise SamnnError(
            f"{path}: its affine has an axis of length 0. Its header is damaged; export it again."
        )
    cosines = (matrix / lengths).T @ (matrix / lengths) - np.eye(len(lengths))
    if np.abs(cosines).max() > MOST_SHEAR:
        degrees = np.degrees(np.arcsin(min(1, np.abs(cosines).max())))
        raise SamnnError(
            f"{path}: its axes are sheared, {degrees:.3g} degrees off a right angle (a tilted gantry?). "
            "Resample it onto an upright grid."
        )


def _cut_short(path: Path, missing_bytes: str) -> SamnnError:
    return SamnnError(f"{path}: is cut short, {missing_bytes} bytes of voxels are missing. Copy it again.")


def unreadable(path: Path, error: Exception) -> SamnnError:
    return SamnnError(f"{path}: cannot be read as an image ({last_line(error)}). Is it damaged or cut short?")


def last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()

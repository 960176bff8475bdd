"""Reading and writing volumes: the one file that knows SimpleITK."""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Pair
from nibabel.spatialimages import HeaderDataError

from samnn.atomic import whole_file
from samnn.errors import SamnnError
from samnn.geometry import Grid


@dataclass(frozen=True)
class Volume:
    """Voxels in (x, y, z) index order, a view of ITK's memory where possible, and the grid they lie on."""

    voxels: np.ndarray
    grid: Grid


def read_grid(path: Path) -> Grid:
    """Read the header only.

    Raises:
        SamnnError: the file is missing, unreadable, ambiguous, or its geometry is not finite.
    """
    _refuse_misleading(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return _grid(path, reader)


def read_volume(path: Path) -> Volume:
    """Read a scalar volume with its voxels as stored (slope and intercept applied).

    Raises:
        SamnnError: as `read_grid`, or the voxel data is truncated, corrupt, not scalar, complex, NaN or infinite.
    """
    _refuse_misleading(path)
    _refuse_incomplete(path)
    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    if path.suffix.lower() == ".bmp":
        image = _grey(image)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise SamnnError(
            f"{path}: has {image.GetNumberOfComponentsPerPixel()} values per voxel; expected one."
        )
    voxels = SimpleITK.GetArrayFromImage(image).transpose()
    if np.iscomplexobj(voxels):
        raise SamnnError(
            f"{path}: holds complex numbers; expected real ones. Export its magnitude or real part."
        )
    if np.issubdtype(voxels.dtype, np.floating):
        # SimpleITK reads the NaN voxels of a NIfTI file as zeros in silence
        _refuse_not_finite(path, np.asarray(_nifti(path).dataobj) if _is_nifti(path) else voxels)
    return Volume(voxels, _grid(path, image))


def read_labels(path: Path) -> Volume:
    """Read a label map; whole numbers stored as floats become integers.

    Raises:
        SamnnError: as `read_volume`, or a voxel is not a whole number of at most 32 bits.
    """
    volume = _read_unscaled(path) or read_volume(path)
    voxels = volume.voxels
    if np.issubdtype(voxels.dtype, np.integer):
        return volume
    if (largest := max(voxels.max(), -voxels.min())) >= 2**31:
        raise SamnnError(f"{path}: holds a value of {largest:g}. Is it a label map?")
    whole = voxels.astype(np.int32)
    if not np.array_equal(whole, voxels):
        raise SamnnError(
            f"{path}: holds fractional values; a label map needs whole numbers. Was it interpolated?"
        )
    return Volume(whole, volume.grid)


def _read_unscaled(path: Path) -> Volume | None:
    """Read a NIfTI file whose voxels are plain numbers, inflating it once; None: SimpleITK must interpret it.

    SimpleITK does not notice a damaged file, so that `read_volume` has to inflate it a second time.
    """
    _refuse_misleading(path)
    if not _is_nifti(path):
        return None
    proxy = _nifti(path).dataobj
    if proxy.dtype.kind not in "iuf" or (proxy.slope, proxy.inter) != (1, 0):
        return None
    try:
        content = np.empty(proxy.offset + math.prod(proxy.shape) * proxy.dtype.itemsize, np.uint8)
    except (MemoryError, ValueError):  # most likely the shape is wrong, which `read_volume` says
        return None
    size = 0
    try:
        with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
            while block := file.read(1 << 20):  # to the end: that compares the checksum
                content[size : size + len(block)] = np.frombuffer(block, np.uint8)[: len(content) - size]
                size = min(size + len(block), len(content))
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    _refuse_missing(path, len(content) - size)
    grid = read_grid(path)
    if grid.shape != proxy.shape:  # axes of one voxel, which SimpleITK leaves out
        return None
    voxels = content[proxy.offset :].view(proxy.dtype).reshape(proxy.shape, order="F")
    if voxels.dtype.kind == "f":
        _refuse_not_finite(path, voxels)
    return Volume(voxels, grid)


def write_volume(path: Path, volume: Volume) -> None:
    """Write `volume`, whole or not at all; the format follows the ending of `path`.

    Raises:
        SamnnError: the target cannot be written.
    """
    _refuse_other_bytes(path)
    image = _image(volume)
    with whole_file(path) as part:
        try:
            SimpleITK.WriteImage(image, str(part), useCompression=True)
        except RuntimeError as error:
            raise OSError(_last_line(error)) from error
        _refuse_incomplete(part)  # on a full disk SimpleITK writes half a NIfTI file without a word


def resample_labels(volume: Volume, grid: Grid) -> Volume:
    """Bring a label map onto `grid`, of as many axes: each voxel takes the value of the nearest one, 0 outside."""
    identity = SimpleITK.Transform(grid.n_dims, SimpleITK.sitkIdentity)
    image = SimpleITK.Resample(
        _image(volume),
        grid.shape,
        identity,
        SimpleITK.sitkNearestNeighbor,
        grid.origin_mm,
        grid.spacing_mm,
        grid.direction,
    )
    return Volume(SimpleITK.GetArrayFromImage(image).transpose(), grid)


def write_like(path: Path, voxels: np.ndarray, *, like: Path) -> None:
    """Write `voxels` under the NIfTI header of `like`: its sform, qform and units stay to the bit.

    Axes of one voxel at the end of the header's shape, which SimpleITK leaves out, stay too.

    Raises:
        SamnnError: the target cannot be written, or the shapes differ.
    """
    template = _nifti(like)
    ones = (1,) * (len(template.shape) - voxels.ndim)
    if voxels.shape + ones != template.shape:
        raise SamnnError(f"{path}: shape {voxels.shape} does not fit the header of {like}, {template.shape}.")
    header = template.header.copy()
    header.set_data_dtype(voxels.dtype)
    with whole_file(path) as part:
        nibabel.save(type(template)(voxels.reshape(template.shape), template.affine, header), part)


def stores_integers(path: Path) -> bool:
    """Whether the voxels of a file are whole numbers by their type, with no slope that makes them others."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return reader.GetPixelID() in _INTEGER_TYPES


_INTEGER_TYPES = {
    getattr(SimpleITK, f"sitk{sign}Int{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)
}


def _refuse_misleading(path: Path) -> None:
    """Refuse what SimpleITK would misread: x.nii.gz with x.nii beside it, NIfTI geometry that is not finite.

    It returns x.nii for x.nii.gz, and reads a NaN spacing as 1 and a NaN offset as 0, all without a word.
    """
    _refuse_other_bytes(path)
    try:
        is_file = path.is_file()
    except OSError as error:  # a name too long, a folder without permission
        raise SamnnError(f"{path}: cannot be looked up ({error.strerror}).") from error
    if not is_file:
        raise SamnnError(f"{path}: no such file.")
    if path.name.endswith(".nii.gz") and path.with_suffix("").exists():
        raise SamnnError(
            f"{path}: {path.with_suffix('').name} lies beside it and would be read in its place. "
            "Move one of the two away."
        )
    if not _is_nifti(path):
        return
    if path.name.endswith(".gz") and _is_bare_nifti(path):
        raise SamnnError(f"{path}: is not compressed. Compress it with gzip, or rename it to {path.stem}.")
    header = _nifti(path).header
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


def _refuse_other_bytes(path: Path) -> None:
    """Refuse a name that is not UTF-8: SimpleITK aborts the whole process on it."""
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError as error:
        name = os.fsencode(path).decode(errors="backslashreplace")
        raise SamnnError(f"{name}: its name is not UTF-8. Rename it.") from error


def _refuse_incomplete(path: Path) -> None:
    """Refuse a NIfTI file that ends early or fails its checksum: SimpleITK fills it up with zeros in silence."""
    if not _is_nifti(path):
        return
    voxels = _nifti(path).dataobj
    try:
        stored_bytes = _inflated_size(path) if path.name.endswith(".gz") else path.stat().st_size
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    _refuse_missing(path, voxels.offset + math.prod(voxels.shape) * voxels.dtype.itemsize - stored_bytes)


def _refuse_missing(path: Path, missing_bytes: int) -> None:
    if missing_bytes > 0:
        raise SamnnError(f"{path}: is cut short, {missing_bytes} bytes of voxels are missing. Copy it again.")


def _refuse_not_finite(path: Path, voxels: np.ndarray) -> None:
    if not np.isfinite(voxels).all():
        raise SamnnError(f"{path}: holds NaN or infinite voxels. Export it again, or give them a value.")


def _is_nifti(path: Path) -> bool:
    return path.name.endswith((".nii", ".nii.gz"))


def _is_bare_nifti(path: Path) -> bool:
    """Whether a file starts with the header of NIfTI-1 or -2, uncompressed."""
    with open(path, "rb") as file:
        start = file.read(348)
    return start[344:347] == b"n+1" or start[4:7] == b"n+2"


def _nifti(path: Path) -> Nifti1Pair:
    """The header, and where the voxels lie in the file; they are not read."""
    try:
        return nibabel.load(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError) as error:
        raise _unreadable(path, error) from error


def _inflated_size(path: Path) -> int:
    """Size of the content of a gzip file; reading it to its end also compares the checksum."""
    size = 0
    with gzip.open(path) as content:
        while block := content.read(1 << 22):
            size += len(block)
    return size


def _grey(image: SimpleITK.Image) -> SimpleITK.Image:
    """Undo that ITK reads every BMP in colour: one channel, where red, green and blue are the same."""
    if image.GetNumberOfComponentsPerPixel() == 1:
        return image
    red, *others = [
        SimpleITK.VectorIndexSelectionCast(image, c) for c in range(image.GetNumberOfComponentsPerPixel())
    ]
    same = all(SimpleITK.Hash(red) == SimpleITK.Hash(other) for other in others)
    return red if same else image


def _image(volume: Volume) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.voxels.transpose()))
    image.SetSpacing(volume.grid.spacing_mm)
    image.SetOrigin(volume.grid.origin_mm)
    image.SetDirection(volume.grid.direction)
    return image


def _grid(path: Path, header: SimpleITK.Image | SimpleITK.ImageFileReader) -> Grid:
    spacing, origin, direction = header.GetSpacing(), header.GetOrigin(), header.GetDirection()
    if path.suffix.lower() in (".tif", ".tiff") and header.GetDimension() == 3:
        spacing = _spacing_beside(path) or spacing
    if not np.isfinite([*spacing, *origin, *direction]).all() or min(spacing) <= 0:
        raise SamnnError(
            f"{path}: spacing {spacing}, origin {origin} or direction is not finite and positive. "
            "Its header is damaged; export it again from the source."
        )
    return Grid(header.GetSize(), spacing, origin, direction)


def _spacing_beside(path: Path) -> tuple[float, ...] | None:
    """The spacing of a 3-D TIFF, which nnU-Net keeps in a .json of the same name, there in (z, y, x) order."""
    beside = path.with_suffix(".json")
    try:
        z_mm, y_mm, x_mm = map(float, json.loads(beside.read_text(encoding="utf-8"))["spacing"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SamnnError(
            f'{beside}: cannot be read as the spacing of {path.name} ({error}). nnU-Net writes {{"spacing": [z, y, x]}}.'
        ) from error
    return x_mm, y_mm, z_mm


def _unreadable(path: Path, error: Exception) -> SamnnError:
    return SamnnError(
        f"{path}: cannot be read as an image ({_last_line(error)}). Is it damaged or cut short?"
    )


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()

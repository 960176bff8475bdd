"""Reading and writing volumes: the one file that knows SimpleITK."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK

from samnn.atomic import whole_file
from samnn.errors import SamnnError
from samnn.geometry import Grid
from samnn.nifti import (
    header_for,
    is_nifti,
    last_line,
    load_checked,
    load_nifti,
    nifti2_grid_and_type,
    read_voxels,
    refuse_incomplete,
    refuse_shear,
    unreadable,
    write_nifti,
)
from samnn.stored import find_stored, read_stored


@dataclass(frozen=True)
class Volume:
    """Voxels in (x, y, z) index order, a view of ITK's memory where possible, and the grid they lie on."""

    voxels: np.ndarray
    grid: Grid


@dataclass(frozen=True)
class Header:
    """What a file says before its voxels are read: the grid, and their type once read (slope applied)."""

    grid: Grid
    dtype: np.dtype
    is_nifti2: bool = False


def read_header(path: Path) -> Header:
    """Read the header only.

    Raises:
        SamnnError: the file is missing, unreadable, ambiguous, its geometry is not finite or sheared, or its voxels
            are not single real numbers.
    """
    _refuse_misleading(path)
    nifti = load_checked(path) if is_nifti(path) else None
    if isinstance(nifti, nibabel.Nifti2Image):
        grid, dtype = nifti2_grid_and_type(path, nifti)
        if dtype not in _NUMPY_TYPES.values():
            raise _not_scalar(path, str(dtype))
        return Header(grid, dtype, is_nifti2=True)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    if nifti is not None:
        reader.SetImageIO("NiftiImageIO")  # which it would find by asking all others first
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, error) from error
    is_bmp = path.suffix.lower() == ".bmp"  # 8 bits; ITK says colours even where it is grey
    return Header(_grid(path, reader), np.dtype(np.uint8) if is_bmp else _scalar_type(path, reader))


def read_grid(path: Path) -> Grid:
    """The grid of `read_header`."""
    return read_header(path).grid


def read_volume(path: Path) -> Volume:
    """Read a scalar volume with its voxels as stored (slope and intercept applied).

    NIfTI voxels are read here, decompressed once: SimpleITK fills a shortened file up with zeros, and reads NaN as
    zeros, without a word.

    Raises:
        SamnnError: as `read_header`, or the voxel data is truncated, corrupt, NaN or infinite.
    """
    header = read_header(path)
    if is_nifti(path):
        voxels = read_voxels(path, header.grid.shape, header.dtype)
    elif stored := find_stored(path, header.grid.shape, header.dtype):
        voxels = read_stored(stored, header.grid.shape, header.dtype)
    else:
        try:
            image = SimpleITK.ReadImage(str(path))
        except RuntimeError as error:
            raise unreadable(path, error) from error
        if path.suffix.lower() == ".bmp":
            image = _grey(image)
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise _not_scalar(path, f"{image.GetNumberOfComponentsPerPixel()} values per voxel")
        voxels = SimpleITK.GetArrayFromImage(image).transpose()
    if np.issubdtype(voxels.dtype, np.floating) and not np.isfinite(voxels).all():
        raise SamnnError(f"{path}: holds NaN or infinite voxels. Export it again, or give them a value.")
    return Volume(voxels, header.grid)


def read_slice(path: Path) -> np.ndarray:
    """The voxels of a single DICOM slice as (columns, rows), rescale slope and intercept applied.

    Raises:
        SamnnError: it cannot be read, or is not one slice of real numbers.
    """
    _refuse_other_bytes(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("GDCMImageIO")
    try:
        reader.ReadImageInformation()
        _scalar_type(path, reader)
        voxels = SimpleITK.GetArrayFromImage(reader.Execute()).transpose()
    except RuntimeError as error:
        raise unreadable(path, error) from error
    if voxels.ndim != 3 or voxels.shape[2] != 1:
        raise SamnnError(f"{path}: holds {voxels.shape} voxels; expected one slice.")
    if not np.isfinite(voxels).all():
        raise SamnnError(f"{path}: holds NaN or infinite voxels after its rescale slope. Export it again.")
    return voxels[:, :, 0]


def read_labels(path: Path) -> Volume:
    """Read a label map; whole numbers stored as floats become integers.

    Raises:
        SamnnError: as `read_volume`, or a voxel is not a whole number of at most 32 bits.
    """
    volume = read_volume(path)
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


def write_volume(path: Path, volume: Volume) -> None:
    """Write `volume`, whole or not at all; the format follows the ending of `path`.

    Raises:
        SamnnError: the target cannot be written, or its format has no such voxels.
    """
    _refuse_other_bytes(path)
    grid = volume.grid
    if is_nifti(path) and grid.n_dims == 3:
        write_nifti(path, volume.voxels, header_for(path, grid))
        return
    image = _image(volume)
    with whole_file(path) as part:
        try:
            SimpleITK.WriteImage(image, str(part), useCompression=True)
        except RuntimeError as error:
            raise OSError(last_line(error)) from error
        refuse_incomplete(part)  # on a full disk SimpleITK writes half a NIfTI file without a word


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
    template = load_nifti(like)
    ones = (1,) * (len(template.shape) - voxels.ndim)
    if voxels.shape + ones != template.shape:
        raise SamnnError(f"{path}: shape {voxels.shape} does not fit the header of {like}, {template.shape}.")
    write_nifti(path, voxels, template.header.copy())


def stores_integers(path: Path) -> bool:
    """Whether the voxels of a file are whole numbers by their type, with no slope that makes them others."""
    return np.issubdtype(read_header(path).dtype, np.integer)


_NUMPY_TYPES = {
    getattr(SimpleITK, f"sitk{name}"): np.dtype(name.lower())
    for name in (
        *(f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)),
        "Float32",
        "Float64",
    )
}


_NOT_NOTICED = "ITK does not notice when a file of this format is cut short"
_NO_SIDES = "is Analyze or a NIfTI pair, in which left and right are not sure"
_LONGEST_METAIMAGE_HEADER = 1 << 16  # bytes
_FEW_DIMENSIONS = (b"1", b"2", b"3", b"4")
UNSAFE_ENDINGS = {".vtk": _NOT_NOTICED, ".gipl": _NOT_NOTICED, ".hdr": _NO_SIDES, ".img": _NO_SIDES}


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
        raise SamnnError(f"{path}: {'is not a regular file' if path.exists() else 'no such file'}.")
    if path.name.endswith(".nii.gz") and path.with_suffix("").exists():
        raise SamnnError(
            f"{path}: {path.with_suffix('').name} lies beside it and would be read in its place. "
            "Move one of the two away."
        )
    if path.suffix in UNSAFE_ENDINGS:
        raise SamnnError(
            f"{path}: {UNSAFE_ENDINGS[path.suffix]}. Convert it to .nii.gz or .nrrd and look at it."
        )
    if path.suffix.lower() in (".mha", ".mhd"):
        _refuse_many_dimensions(path)


def _refuse_many_dimensions(path: Path) -> None:
    """Refuse a MetaImage of more than 4 dimensions: ITK believes any number, and writes beyond its arrays."""
    try:
        with open(path, "rb") as file:
            header, _, _ = file.read(_LONGEST_METAIMAGE_HEADER).partition(b"ElementDataFile")
    except OSError as error:
        raise unreadable(path, error) from error
    for found in re.findall(rb"(?m)^[ \t]*NDims[ \t]*[=:]?[ \t]*([^\s]*)", header):
        if found not in _FEW_DIMENSIONS:
            said = found[:20].decode("latin-1")
            raise SamnnError(f"{path}: says that it has {said!r} dimensions (NDims). Its header is damaged.")


def _refuse_other_bytes(path: Path) -> None:
    """Refuse a name that is not UTF-8: SimpleITK aborts the whole process on it."""
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError as error:
        name = os.fsencode(path).decode(errors="backslashreplace")
        raise SamnnError(f"{name}: its name is not UTF-8. Rename it.") from error


def _scalar_type(path: Path, reader: SimpleITK.ImageFileReader) -> np.dtype:
    """The type of the voxels, refused where a voxel is not one real number."""
    if reader.GetNumberOfComponents() != 1:
        raise _not_scalar(path, f"{reader.GetNumberOfComponents()} values per voxel")
    if reader.GetPixelID() not in _NUMPY_TYPES:
        raise _not_scalar(path, SimpleITK.GetPixelIDValueAsString(reader.GetPixelID()))
    return _NUMPY_TYPES[reader.GetPixelID()]


def _not_scalar(path: Path, found: str) -> SamnnError:
    return SamnnError(
        f"{path}: has {found}; expected one real number per voxel. Export one channel of a colour image, "
        "the magnitude or real part of complex numbers."
    )


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
    refuse_shear(path, np.reshape(direction, (len(spacing), len(spacing))))
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

"""Reading and writing volumes: the one file that knows SimpleITK."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK

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
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(_checked(path)))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    n = reader.GetDimension()
    return _grid(path, reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection(), n)


def read_volume(path: Path) -> Volume:
    """Read a scalar volume with its voxels as stored (slope and intercept applied).

    Raises:
        SamnnError: as `read_grid`, or the voxel data is truncated or not scalar.
    """
    try:
        image = SimpleITK.ReadImage(str(_checked(path)))
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise SamnnError(
            f"{path}: has {image.GetNumberOfComponentsPerPixel()} values per voxel; expected one."
        )
    if image.HasMetaDataKey("vox_offset"):  # NIfTI
        voxel_bytes = image.GetNumberOfPixels() * int(image.GetMetaData("bitpix")) // 8
        _check_whole(path, int(float(image.GetMetaData("vox_offset"))) + voxel_bytes)
    grid = _grid(
        path,
        image.GetSize(),
        image.GetSpacing(),
        image.GetOrigin(),
        image.GetDirection(),
        image.GetDimension(),
    )
    return Volume(SimpleITK.GetArrayFromImage(image).transpose(), grid)


def read_labels(path: Path) -> Volume:
    """Read a label map; whole numbers stored as floats become integers.

    Raises:
        SamnnError: as `read_volume`, or a voxel is NaN or not a whole number.
    """
    volume = read_volume(path)
    voxels = volume.voxels
    if np.issubdtype(voxels.dtype, np.integer):
        return volume
    if not np.isfinite(voxels).all():
        raise SamnnError(f"{path}: holds NaN or infinite voxels; a label map needs whole numbers.")
    whole = voxels.astype(np.int64)
    if not np.array_equal(whole, voxels):
        raise SamnnError(
            f"{path}: holds fractional values; a label map needs whole numbers. Was it interpolated?"
        )
    return Volume(whole, volume.grid)


def write_volume(path: Path, volume: Volume) -> None:
    """Write `volume`, whole or not at all; the format follows the ending of `path`.

    Raises:
        SamnnError: the target cannot be written.
    """
    grid = volume.grid
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.voxels.transpose()))
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction)
    with whole_file(path) as part:
        try:
            SimpleITK.WriteImage(image, str(part), useCompression=True)
        except RuntimeError as error:
            raise OSError(_last_line(error)) from error


def _checked(path: Path) -> Path:
    """Refuse what SimpleITK would misread in silence: with x.nii beside x.nii.gz it reads the wrong one."""
    path = Path(path)
    if not path.is_file():
        raise SamnnError(f"{path}: no such file.")
    if path.name.endswith(".nii.gz") and path.with_suffix("").exists():
        raise SamnnError(
            f"{path}: {path.with_suffix('').name} lies beside it and would be read in its place. "
            "Move one of the two away."
        )
    return path


def _check_whole(path: Path, n_bytes: int) -> None:
    """Refuse a NIfTI file that is damaged or shorter than `n_bytes`: ITK invents the missing voxels in silence."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    found = 0
    try:
        with gzip.open(path) if zipped else open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                found += len(block)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SamnnError(f"{path}: is damaged or cut short ({error}). Copy or export it again.") from error
    if found < n_bytes:
        raise SamnnError(
            f"{path}: is cut short, {found} of {n_bytes} bytes are there. Copy or export it again."
        )


def _grid(path: Path, shape: tuple, spacing: tuple, origin: tuple, direction: tuple, n: int) -> Grid:
    if not np.isfinite([*spacing, *origin, *direction]).all() or min(spacing) <= 0:
        raise SamnnError(
            f"{path}: spacing {spacing}, origin {origin} or direction is not finite and positive. "
            "Its header is damaged; export it again from the source."
        )
    return Grid(tuple(shape), tuple(spacing), tuple(origin), tuple(direction))


def _unreadable(path: Path, error: RuntimeError) -> SamnnError:
    return SamnnError(
        f"{path}: cannot be read as an image ({_last_line(error)}). Is it damaged or cut short?"
    )


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].strip()

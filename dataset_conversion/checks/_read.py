"""Reading one file as nnU-Net's reader does, each voxel decoded once: NIfTI, NRRD, MHA, GIPL, PNG, BMP and TIFF."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from samnn.errors import SamnnError
from samnn.geometry import Grid
from samnn.io import read_grid, read_volume
from samnn.nifti import load_nifti, read_voxels


@dataclass(frozen=True)
class Picture:
    """Voxels in (x, y[, z][, channel]) order and the grid of their spatial axes."""

    voxels: np.ndarray
    grid: Grid


def read_with_itk(path: Path) -> Picture:
    """As SimpleITKIO: 2D, 3D, or with the channels on a fourth axis.

    Raises:
        SamnnError: it cannot be read to its last byte, is complex or coloured, or has more axes.
    """
    grid = read_grid(path)
    if path.name.endswith((".nii", ".nii.gz")):
        voxels = nifti_voxels(path).reshape(grid.shape, order="F")
    else:
        voxels = read_volume(path).voxels
    if grid.n_dims == 4:
        grid = grid.first_axes(3)
    if grid.n_dims not in (2, 3):
        raise SamnnError(f"{path}: has {grid.n_dims} axes; nnU-Net takes 2 or 3.")
    return Picture(voxels, grid)


def read_with_nibabel(path: Path) -> Picture:
    """As NibabelIO: 3D only, the grid from the affine, which may be sheared.

    Raises:
        SamnnError: it cannot be read to its last byte, is complex or coloured, or is not 3D.
    """
    image = nibabel.load(path)
    if len(image.shape) != 3:
        raise SamnnError(f"{path}: has {len(image.shape)} axes; nnU-Net's NibabelIO takes 3.")
    affine = np.diag([-1, -1, 1, 1]) @ image.affine  # RAS to LPS
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (spacing_mm > 0).all():
        raise SamnnError(f"{path}: its affine is not finite, or has an axis of length 0. Export it again.")
    direction = affine[:3, :3] / spacing_mm
    grid = Grid(
        image.shape, *(tuple(part.ravel().tolist()) for part in (spacing_mm, affine[:3, 3], direction))
    )
    return Picture(nifti_voxels(path), grid)


def read_natural_image(path: Path) -> Picture:
    """As NaturalImage2DIO: 2D, grey or with 3 or 4 colours as channels; without a size in mm.

    Raises:
        SamnnError: it is not such an image.
    """
    from skimage.io import imread

    pixels = np.asarray(imread(path))
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise SamnnError(f"{path}: has shape {pixels.shape}; expected 2D, grey or of 3 or 4 colours.")
    return Picture(pixels.swapaxes(0, 1), _grid_without_place(pixels.shape[1::-1], (1.0, 1.0)))


def read_tiff_stack(path: Path) -> Picture:
    """As Tiff3DIO: 3D, the spacing from a file CASE.json beside it, or 1 mm.

    Raises:
        SamnnError: it is not 3D, or that file is not as it should be.
    """
    import tifffile

    stack = np.asarray(tifffile.imread(path))
    if stack.ndim != 3:
        raise SamnnError(f"{path}: has {stack.ndim} axes; expected 3.")
    stem = path.name.removesuffix(path.suffix)
    beside = path.with_name(f"{stem[:-5] if path.parent.name.startswith('images') else stem}.json")
    spacing_mm = (1.0, 1.0, 1.0)
    if os.path.isfile(beside):
        spacing_mm = tuple(float(step) for step in reversed(json.loads(beside.read_text())["spacing"]))
        if len(spacing_mm) != 3 or not all(0 < step < math.inf for step in spacing_mm):
            raise SamnnError(f"{beside}: expected three positive numbers as spacing; found {spacing_mm}.")
    return Picture(stack.transpose(), _grid_without_place(stack.shape[::-1], spacing_mm))


Reader = Callable[[Path], Picture]
ENDINGS: dict[str, tuple[Reader, ...]] = {  # in the order in which nnU-Net tries them
    ".nii.gz": (read_with_itk, read_with_nibabel),
    ".nrrd": (read_with_itk,),
    ".mha": (read_with_itk,),
    ".gipl": (read_with_itk,),
    ".png": (read_natural_image,),
    ".bmp": (read_natural_image,),
    ".tif": (read_natural_image, read_tiff_stack),
    ".tiff": (read_tiff_stack,),
    ".nii": (read_with_nibabel,),
}
NAMED: dict[str, Reader] = {  # what overwrite_image_reader_writer in dataset.json may say
    "SimpleITKIO": read_with_itk,
    "SimpleITKIOWithReorient": read_with_itk,
    "NibabelIO": read_with_nibabel,
    "NibabelIOWithReorient": read_with_nibabel,
    "NaturalImage2DIO": read_natural_image,
    "Tiff3DIO": read_tiff_stack,
}


def choose_reader(file_ending: str, named: object, example: Path | None) -> Reader | None:
    """The reader nnU-Net would choose: the one `named`, else the first for the ending that can read `example`.

    If none can read it, the first: its messages say what is wrong. None: nnU-Net knows no such ending.
    """
    if named in list(NAMED):
        return NAMED[named]
    readers = ENDINGS.get(file_ending.lower(), ())
    if len(readers) > 1 and example is not None:
        for reader in readers:
            try:
                (read_grid if reader is read_with_itk else reader)(example)  # ITK decides by the header
            except Exception:  # whatever it is: nnU-Net, too, goes on to the next reader
                continue
            return reader
    return readers[0] if readers else None


def _grid_without_place(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> Grid:
    n = len(shape)
    return Grid(tuple(shape), spacing_mm, (0.0,) * n, tuple(np.eye(n).ravel().tolist()))


def nifti_voxels(path: Path) -> np.ndarray:
    """The voxels with slope and intercept applied; a gzip file is read to its end, where its checksum is."""
    stored = load_nifti(path).dataobj
    if stored.dtype.fields is not None or stored.dtype.kind == "c":
        raise SamnnError(f"{path}: holds colours or complex numbers; expected one real number a voxel.")
    is_scaled = stored.slope != 1 or stored.inter != 0
    return read_voxels(path, stored.shape, np.dtype(float) if is_scaled else stored.dtype.newbyteorder("="))

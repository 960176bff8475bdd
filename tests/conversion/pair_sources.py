"""Small images and masks in many clothes: formats, axes, DICOM series, and the command that converts them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from samnn.dataset_conversion.pairs import convert as convert_command
from samnn.geometry import Grid
from samnn.io import Volume, write_volume

# Turned about all three axes, so that no axis points where another format would guess.
TURN = np.array([[0.96, -0.28, 0.0], [0.2688, 0.9216, -0.28], [0.0784, 0.2688, 0.96]])
GRID = Grid((7, 6, 5), (0.8, 1.25, 2.5), (-41.0, 17.5, -230.25), tuple(TURN.ravel()))


def image(grid: Grid = GRID, seed: int = 0) -> Volume:
    """A volume without symmetry."""
    voxels = np.random.default_rng(seed).integers(-1000, 2000, grid.shape, dtype=np.int16)
    return Volume(np.asfortranarray(voxels), grid)


def mask(grid: Grid = GRID) -> Volume:
    """Labels 1 and 2 at places that tell every axis and direction apart."""
    voxels = np.zeros(grid.shape, np.uint8, order="F")
    voxels[1:4, 2, 1:3] = 1
    voxels[4, 3:5, 3] = 2
    return Volume(voxels, grid)


def save(path: Path, volume: Volume) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, volume)
    return path


def pair(folder: Path, name: str = "a", *, ending: str = ".nii.gz", seed: int = 0) -> tuple[Path, Path]:
    """An image and its mask below `folder`/images and `folder`/masks."""
    return (
        save(folder / "images" / f"{name}{ending}", image(seed=seed)),
        save(folder / "masks" / f"{name}{ending}", mask()),
    )


def save_itk(path: Path, volume: Volume, axes: tuple[int, ...] = (0, 1, 2), flips: str = "") -> Path:
    """Write with SimpleITK, its axes permuted and those named in `flips` reversed; voxels stay where they are."""
    picture = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.voxels.transpose()))
    picture.SetSpacing(volume.grid.spacing_mm)
    picture.SetOrigin(volume.grid.origin_mm)
    picture.SetDirection(volume.grid.direction)
    picture = SimpleITK.PermuteAxes(picture, axes)
    picture = SimpleITK.Flip(picture, [axis in flips for axis in "xyz"])
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(picture, str(path))
    return path


def convert(source: Path, output: Path, **options: object) -> Path:
    """Run the conversion in this process and return the dataset's folder."""
    defaults = {"images": source / "images", "masks": source / "masks"} if "table" not in options else {}
    convert_command(12, "Own", output=output, **(defaults | options))
    return output / "Dataset012_Own"


def save_series(
    folder: Path,
    volume: Volume,
    *,
    slope: float = 1.0,
    intercept: float = -1024.0,
    sideways_mm: float = 0.0,
    heights_mm: list[float] | None = None,
    uid: str | None = None,
    description: str = "",
) -> str:
    """Write a volume as a DICOM series, one file a slice in an order that is not theirs; return its UID.

    Each slice lies `sideways_mm` further along the rows than the one below (a gantry tilt), at `heights_mm` if given.
    """
    grid, uid = volume.grid, uid or generate_uid()
    axes = np.reshape(grid.direction, (3, 3))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(grid.shape[2]):
        height = heights_mm[number] if heights_mm else number * grid.spacing_mm[2]
        position = np.array(grid.origin_mm) + axes[:, 2] * height + axes[:, 0] * sideways_mm * number
        header = dicom_header(
            folder / f"{number * 7919 % 10007:05d}{uid[-4:]}.dcm", "CT", CTImageStorage, uid
        )
        header.SeriesDescription = description
        header.ImagePositionPatient = [f"{value:.10g}" for value in position]
        header.ImageOrientationPatient = [f"{value:.10g}" for value in [*axes[:, 0], *axes[:, 1]]]
        header.PixelSpacing = [grid.spacing_mm[1], grid.spacing_mm[0]]
        header.SliceThickness = grid.spacing_mm[2]
        header.InstanceNumber = number + 1
        header.Columns, header.Rows = grid.shape[:2]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.PixelRepresentation = 15, 1
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
        stored = np.rint((volume.voxels[:, :, number] - intercept) / slope).astype(np.int16)
        header.PixelData = stored.T.tobytes()
        header.save_as(header.filename, enforce_file_format=True)
    return uid


def dicom_header(path: Path, modality: str, storage: str, series: str) -> FileDataset:
    """What every DICOM file has."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = storage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    header.SOPClassUID, header.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    header.Modality, header.SeriesInstanceUID, header.StudyInstanceUID = modality, series, "1.2.3"
    header.PatientName, header.PatientID = "Nobody", "0"
    return header


def save_rtstruct(path: Path) -> None:
    header = dicom_header(path, "RTSTRUCT", pydicom.uid.RTStructureSetStorage, generate_uid())
    header.save_as(path, enforce_file_format=True)


def save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, kind: type = nibabel.Nifti1Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(kind(voxels, affine), path)
    return path


def ras(grid: Grid) -> np.ndarray:
    """The affine as NIfTI has it."""
    return np.diag([-1.0, -1, 1, 1]) @ grid.affine

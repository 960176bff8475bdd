"""One image series out of a folder of DICOM files: which, whether it is a regular grid, and its voxels."""

from __future__ import annotations

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from scipy.ndimage import shift

from samnn.errors import SamnnError
from samnn.geometry import Grid
from samnn.io import Volume, read_slice

MOST_OFF_MM = 0.05  # how far a slice may lie from where an even, upright stack has it
NOT_PARALLEL = 1e-3  # difference of direction cosines within a series; files round them to six digits
TAGS = [
    "SOPClassUID",
    "Modality",
    "SeriesInstanceUID",
    "SeriesDescription",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
]


@dataclass(frozen=True)
class Slice:
    """What the header of one file says; positions in mm, LPS."""

    path: Path
    series: str
    description: str
    position_mm: tuple[float, float, float]
    orientation: tuple[float, ...]  # direction of a row (growing column), then of a column (growing row)
    spacing_mm: tuple[float, float]  # between columns, between rows
    shape: tuple[int, int]  # columns, rows


@dataclass(frozen=True)
class Series:
    """Slices in the order of their positions, and how they differ from an even, upright stack."""

    folder: Path
    uid: str
    slices: list[Slice]
    ignored: list[str]  # in words: what else lies in the folder
    tilt_mm: float = 0.0  # sideways from the first to the last slice
    tilt_degrees: float = 0.0
    uneven_mm: float = 0.0  # the farthest slice from its even place
    gaps_mm: list[float] = field(default_factory=list)

    @property
    def is_regular(self) -> bool:
        return self.tilt_mm <= MOST_OFF_MM and self.uneven_mm <= MOST_OFF_MM

    @property
    def irregularity(self) -> str:
        """What is wrong with the stack, in words."""
        parts = []
        if self.tilt_mm > MOST_OFF_MM:
            parts.append(
                f"the slices move {self.tilt_mm:.4g} mm sideways (gantry tilt of {self.tilt_degrees:.3g} degrees)"
            )
        if self.uneven_mm > MOST_OFF_MM:
            low, high = min(self.gaps_mm), max(self.gaps_mm)
            parts.append(f"the slices lie {low:.4g} to {high:.4g} mm apart (slices missing or uneven)")
        return " and ".join(parts)

    @property
    def grid(self) -> Grid:
        """The grid of a regular series; of another, the upright one it is resampled onto."""
        first, n = self.slices[0], len(self.slices)
        along, across = np.array(first.orientation[:3]), np.array(first.orientation[3:])
        normal = np.cross(along, across)
        direction = np.stack([along, across, normal], axis=1)
        origin_mm, shape = np.array(first.position_mm), first.shape
        length_mm = float(sum(self.gaps_mm))
        spacing_mm = length_mm / (n - 1)
        if not self.is_regular:
            spacing_mm = float(np.median(self.gaps_mm))
            n = round(length_mm / spacing_mm) + 1
            offsets = _offsets(self) / first.spacing_mm  # every slice fits in: none is cut at the sides
            low, high = np.floor(offsets.min(axis=0)), np.ceil(offsets.max(axis=0))
            origin_mm = origin_mm + direction[:, :2] @ (low * first.spacing_mm)
            shape = tuple((np.array(shape) + high - low).astype(int).tolist())
        return Grid(
            (*shape, n),
            (*first.spacing_mm, spacing_mm),
            tuple(origin_mm.tolist()),
            tuple(direction.ravel().tolist()),
        )


def find_series(folder: Path, wanted: Sequence[str] = ()) -> Series:
    """Choose the series with the most slices, or the one whose UID or description is in `wanted`.

    Raises:
        SamnnError: there is no image series, no single one fits, or it is not a stack of parallel slices.
    """
    slices, others = _scan(folder)
    by_uid: dict[str, list[Slice]] = defaultdict(list)
    for found in slices:
        by_uid[found.series].append(found)
    if not by_uid:
        raise SamnnError(f"{folder}: holds no DICOM image slices{_listed(others)}.")
    candidates = by_uid
    if wanted:
        candidates = {
            uid: members
            for uid, members in by_uid.items()
            if uid in wanted or members[0].description in wanted
        }
    most = max(map(len, candidates.values()), default=0)
    chosen = [uid for uid, members in candidates.items() if len(members) == most]
    if len(chosen) != 1:
        said = "several series have the most slices" if chosen else "no series is named by --series"
        known = "; ".join(_words(members) for members in by_uid.values())
        raise SamnnError(f"{folder}: {said}. Name one with --series UID. There are: {known}.")
    ignored = [_words(members) for uid, members in by_uid.items() if uid != chosen[0]]
    ignored += [f"{count} {what}" for what, count in sorted(others.items())]
    return _stack(folder, chosen[0], by_uid[chosen[0]], ignored)


def read_series(series: Series) -> Volume:
    """Read the voxels of a series, rescale slope and intercept applied; an irregular one is resampled linearly.

    Raises:
        SamnnError: a slice cannot be read or is not of the size that its header says.
    """
    arrays = []
    for found in series.slices:
        voxels = read_slice(found.path)
        if voxels.shape != found.shape:
            raise SamnnError(f"{found.path}: holds {voxels.shape} voxels; its header says {found.shape}.")
        arrays.append(voxels)
    small = np.iinfo(np.int16)  # GDCM makes 32 bits of stored 16 less 1024, whatever the values
    if all(a.dtype.kind in "iu" and small.min <= a.min() and a.max() <= small.max for a in arrays):
        arrays = [array.astype(np.int16) for array in arrays]
    if series.is_regular:
        return Volume(np.stack(arrays, axis=-1), series.grid)
    return _resampled(series, arrays)


def _scan(folder: Path) -> tuple[list[Slice], Counter[str]]:
    """The image slices at any depth of a folder, and a count of all other files by kind."""
    slices, others = [], Counter()
    for path in _files(folder):
        try:
            with warnings.catch_warnings(action="ignore"):  # of values that are not used here
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
            if "SOPClassUID" not in header and "Modality" not in header:
                others["files that are not DICOM images"] += 1
            elif "ImagePositionPatient" not in header or header.get("Modality") == "RTDOSE":
                others[f"{header.get('Modality', 'unknown')} files without image slices"] += 1
            else:
                slices.append(_slice(path, header))
        except pydicom.errors.InvalidDicomError:
            others["files that are not DICOM images"] += 1
        except SamnnError:
            raise
        except Exception as error:  # damaged files make pydicom raise errors of any kind
            raise SamnnError(f"{path}: is a damaged DICOM file ({error}). Export it again.") from error
    return slices, others


def _files(folder: Path) -> Iterator[Path]:
    """All visible files, links followed, each folder entered once."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _slice(path: Path, header: pydicom.Dataset) -> Slice:
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise SamnnError(
            f"{path}: is a multi-frame file of {header.NumberOfFrames} slices, which is not supported. "
            "Convert it to NIfTI first, or export single slices."
        )
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise SamnnError(f"{path}: is a colour image; expected one value per voxel.")
    row_mm, column_mm = (float(value) for value in header.PixelSpacing)
    found = Slice(
        path,
        str(header.SeriesInstanceUID),
        str(header.get("SeriesDescription", "")),
        tuple(float(value) for value in header.ImagePositionPatient),
        tuple(float(value) for value in header.ImageOrientationPatient),
        (column_mm, row_mm),
        (int(header.Columns), int(header.Rows)),
    )
    numbers = [*found.position_mm, *found.orientation, *found.spacing_mm]
    right = len(found.position_mm) == 3 and len(found.orientation) == 6 and np.isfinite(numbers).all()
    if right:
        axes = np.reshape(found.orientation, (2, 3))
        right = np.abs(axes @ axes.T - np.eye(2)).max() < NOT_PARALLEL and min(found.spacing_mm) > 0
    if not right or min(found.shape) < 1:
        raise SamnnError(f"{path}: its position, orientation, spacing or size is damaged. Export it again.")
    return found


def _stack(folder: Path, uid: str, slices: list[Slice], ignored: list[str]) -> Series:
    """Sort the slices of a series along their normal and measure how regular they are."""
    first = slices[0]
    for other in slices[1:]:
        if other.shape != first.shape or not np.allclose(other.spacing_mm, first.spacing_mm, atol=1e-4):
            raise SamnnError(
                f"{folder}: {first.path.name} and {other.path.name} of series {uid} differ in size or spacing. "
                "Move localizers away, or choose another with --series."
            )
        if not np.allclose(other.orientation, first.orientation, rtol=0, atol=NOT_PARALLEL):
            raise SamnnError(
                f"{folder}: {first.path.name} and {other.path.name} of series {uid} are not parallel."
            )
    if len(slices) < 2:
        raise SamnnError(f"{folder}: series {uid} has a single slice; expected a volume.")
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    slices = sorted(slices, key=lambda member: float(normal @ member.position_mm))
    positions_mm = np.array([member.position_mm for member in slices])
    heights_mm = (positions_mm - positions_mm[0]) @ normal
    gaps_mm = np.diff(heights_mm)
    if gaps_mm.min() <= MOST_OFF_MM:
        at = int(gaps_mm.argmin())
        raise SamnnError(
            f"{folder}: {slices[at].path.name} and {slices[at + 1].path.name} of series {uid} lie at the same place. "
            "Is it a series over time, or a file twice? Keep one slice a place."
        )
    even_mm = np.linspace(0, heights_mm[-1], len(slices))
    series = Series(folder, uid, slices, ignored, gaps_mm=gaps_mm.tolist())
    tilt_mm = float(np.linalg.norm(_offsets(series), axis=1).max())
    return Series(
        folder,
        uid,
        slices,
        ignored,
        tilt_mm=tilt_mm,
        tilt_degrees=float(np.degrees(np.arctan2(tilt_mm, heights_mm[-1]))),
        uneven_mm=float(np.abs(heights_mm - even_mm).max()),
        gaps_mm=gaps_mm.tolist(),
    )


def _offsets(series: Series) -> np.ndarray:
    """How far each slice lies sideways of the first, along rows and columns, in mm: (slices, 2)."""
    axes = np.reshape(series.slices[0].orientation, (2, 3))
    positions_mm = np.array([member.position_mm for member in series.slices])
    return (positions_mm - positions_mm[0]) @ axes.T


def _resampled(series: Series, arrays: list[np.ndarray]) -> Volume:
    """Shift each slice to its place on the upright grid, and interpolate linearly between neighbours.

    Where no slice reaches, the lowest value of the series stands: air in CT.
    """
    grid = series.grid
    lowest = min(array.min() for array in arrays)
    offsets = _offsets(series) / series.slices[0].spacing_mm
    low = np.floor(offsets.min(axis=0))

    def placed(number: int) -> np.ndarray:
        canvas = np.full(grid.shape[:2], lowest, np.float32)
        width, height = arrays[number].shape
        canvas[:width, :height] = arrays[number]
        return shift(canvas, offsets[number] - low, order=1, mode="constant", cval=float(lowest))

    heights_mm = np.concatenate([[0], np.cumsum(series.gaps_mm)])
    dtype = np.result_type(*arrays)
    voxels = np.empty(grid.shape, dtype, order="F")
    for number in range(grid.shape[2]):
        at_mm = min(number * grid.spacing_mm[2], heights_mm[-1])
        above = int(np.clip(np.searchsorted(heights_mm, at_mm), 1, len(arrays) - 1))
        weight = (at_mm - heights_mm[above - 1]) / (heights_mm[above] - heights_mm[above - 1])
        value = (1 - weight) * placed(above - 1) + weight * placed(above)
        voxels[:, :, number] = np.rint(value) if np.issubdtype(dtype, np.integer) else value
    return Volume(voxels, grid)


def _words(members: list[Slice]) -> str:
    description = f" {members[0].description!r}" if members[0].description else ""
    return f"series {members[0].series}{description} of {len(members)} slices"


def _listed(others: Counter[str]) -> str:
    return (
        " (only " + ", ".join(f"{count} {what}" for what, count in sorted(others.items())) + ")"
        if others
        else ""
    )

"""One image series out of a folder of DICOM files: which, whether it is a regular grid, and its voxels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samnn.errors import SamnnError
from samnn.geometry import Grid
from samnn.io import Volume, read_slice

from ._dicom_files import NOT_PARALLEL, Slice, Unusable, read_plain, scan, transfer_syntax

MOST_OFF_MM = 0.05  # how far a slice may lie from where an even, upright stack has it


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
            low, high = _margins(self)
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
        SamnnError: there is no image series, no single one fits, a file of it cannot be used, or it is not a stack of
            parallel slices.
    """
    found = scan(folder)
    by_uid: dict[str, list[Slice | Unusable]] = defaultdict(list)
    for member in [*found.slices, *found.unusable]:
        by_uid[member.series].append(member)
    if not by_uid:
        raise SamnnError(f"{folder}: holds no DICOM image slices{_listed(found.others)}.")
    candidates = by_uid
    if wanted:
        candidates = {
            uid: members
            for uid, members in by_uid.items()
            if uid in wanted or members[0].description in wanted
        }
    most = max(map(_n_slices, candidates.values()), default=0)
    chosen = [uid for uid, members in candidates.items() if _n_slices(members) == most]
    if len(chosen) != 1:
        said = "several series have the most slices" if chosen else "no series is named by --series"
        known = "; ".join(_words(members) for members in by_uid.values())
        raise SamnnError(f"{folder}: {said}. Name one with --series UID. There are: {known}.")
    slices = by_uid[chosen[0]]
    for member in slices:
        if isinstance(member, Unusable):
            others = "" if len(by_uid) == 1 else f" Or choose another series than {chosen[0]} with --series."
            raise SamnnError(f"{member.path}: {member.why}{others}")
    ignored = [_words(members) for uid, members in by_uid.items() if uid != chosen[0]]
    ignored += [f"{count} {what}" for what, count in sorted(found.others.items())]
    return _stack(folder, chosen[0], slices, ignored)


def read_series(series: Series) -> Volume:
    """Read the voxels of a series, rescale slope and intercept applied; an irregular one is resampled linearly.

    Raises:
        SamnnError: a slice cannot be read or is not of the size that its header says.
    """
    arrays = []
    for found in series.slices:
        if found.plain is not None:
            arrays.append(_small(read_plain(found.path, found.shape, found.plain)))
            continue
        try:
            voxels = read_slice(found.path)
        except SamnnError as error:
            raise SamnnError(
                f"{error} Its pixels are stored as {transfer_syntax(found.path)}; if GDCM cannot read that, export or "
                "convert them uncompressed."
            ) from error
        if voxels.shape != found.shape:
            raise SamnnError(f"{found.path}: holds {voxels.shape} voxels; its header says {found.shape}.")
        arrays.append(_small(voxels))
    if not series.is_regular:
        return _resampled(series, arrays)
    return Volume(
        np.stack([array.T for array in arrays]).T, series.grid
    )  # in the order in which files have it


def _small(voxels: np.ndarray) -> np.ndarray:
    """As 16 bits where that is enough: GDCM makes 32 bits of stored 16 less 1024, whatever the values."""
    small = np.iinfo(np.int16)
    fits = voxels.dtype.kind in "iu" and small.min <= voxels.min() and voxels.max() <= small.max
    return voxels.astype(np.int16) if fits else voxels


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


def _margins(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """How many columns and rows the upright grid begins and ends beyond the first slice, so that none is cut."""
    spacing_mm = np.array(series.slices[0].spacing_mm)
    offsets_mm = _offsets(series)
    low = np.floor((offsets_mm.min(axis=0) + MOST_OFF_MM) / spacing_mm)
    high = np.ceil((offsets_mm.max(axis=0) - MOST_OFF_MM) / spacing_mm)
    return low, high


def _resampled(series: Series, arrays: list[np.ndarray]) -> Volume:
    """Shift each slice to its place on the upright grid, and interpolate linearly between neighbours.

    Where no slice reaches, the lowest value of the series stands: air in CT.
    """
    from scipy.ndimage import shift  # a second to import, and rarely needed

    grid = series.grid
    lowest = min(array.min() for array in arrays)
    offsets = _offsets(series) / series.slices[0].spacing_mm
    low, _ = _margins(series)

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


def _n_slices(members: Sequence[Slice | Unusable]) -> int:
    return sum(member.n_frames if isinstance(member, Unusable) else 1 for member in members)


def _words(members: Sequence[Slice | Unusable]) -> str:
    description = f" {members[0].description!r}" if members[0].description else ""
    return f"series {members[0].series}{description} of {_n_slices(members)} slices"


def _listed(others: Counter[str]) -> str:
    return (
        " (only " + ", ".join(f"{count} {what}" for what, count in sorted(others.items())) + ")"
        if others
        else ""
    )

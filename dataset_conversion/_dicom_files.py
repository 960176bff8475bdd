"""The DICOM files in a folder: which are slices of an image, which would be and cannot be used, and all others."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom

from samnn.errors import SamnnError

NOT_PARALLEL = 1e-3  # difference of direction cosines within a series; files round them to six digits
_PIXEL_DATA = b"\xe0\x7f\x10\x00"  # its tag in little endian
NO_IMAGES = ("RTDOSE", "SEG")  # they have pixels, but not those of a scanner
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
    "PhotometricInterpretation",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
]


@dataclass(frozen=True)
class Plain:
    """Where the pixels of a slice lie that need no decoder: 16 bits each, row by row, of which some may be unused."""

    offset: int  # bytes
    dtype: np.dtype
    unused_bits: int
    intercept: int


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
    plain: Plain | None = None


@dataclass(frozen=True)
class Unusable:
    """A file with pixels that cannot be a slice."""

    path: Path
    series: str
    description: str
    n_frames: int
    why: str  # and what to do


@dataclass
class Scan:
    """All visible files of a folder at any depth."""

    slices: list[Slice] = field(default_factory=list)
    unusable: list[Unusable] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # by kind, in words


def scan(folder: Path) -> Scan:
    """Read the headers of all files.

    Raises:
        SamnnError: a DICOM file is damaged.
    """
    found = Scan()
    for path in _files(folder):
        try:
            header, pixels_at = _read_header(path)
            if header is None:
                found.others["files that are not DICOM images"] += 1
            elif not _has_image(header):
                found.others[f"{header.get('Modality', 'unknown')} files without image slices"] += 1
            elif why := _why_unusable(header):
                found.unusable.append(Unusable(path, *_series(header), _n_frames(header), why))
            else:
                found.slices.append(_slice(path, header, _plain(header, pixels_at)))
        except SamnnError:
            raise
        except Exception as error:  # damaged files make pydicom raise errors of any kind
            words = " ".join(str(error).split()) or type(error).__name__
            raise SamnnError(f"{path}: is a damaged DICOM file ({words}). Export it again.") from error
    return found


def transfer_syntax(path: Path) -> str:
    """How the pixels of a file are packed, in words."""
    meta = pydicom.filereader.read_file_meta_info(path)
    return meta.TransferSyntaxUID.name if "TransferSyntaxUID" in meta else "unknown"


def read_plain(path: Path, shape: tuple[int, int], plain: Plain) -> np.ndarray:
    """The voxels of a slice, (columns, rows), intercept applied.

    Raises:
        SamnnError: the file is gone or shorter than it was.
    """
    try:
        values = np.fromfile(path, plain.dtype, shape[0] * shape[1], offset=plain.offset)
    except OSError as error:
        raise SamnnError(f"{path}: cannot be read ({error.strerror}). Is it still there?") from error
    if len(values) < shape[0] * shape[1]:
        raise SamnnError(f"{path}: is cut short in its pixels. Copy or export it again.")
    values = (
        values << plain.unused_bits
    ) >> plain.unused_bits  # there may be anything in them, an overlay for one
    if plain.intercept:
        values = values.astype(np.int32) + plain.intercept
    return values.reshape(shape[::-1]).T


def _read_header(path: Path) -> tuple[pydicom.Dataset | None, int | None]:
    """The header, and the byte at which its pixels start, as far as that is known.

    None: it is no DICOM file, or not one of a patient, such as a DICOMDIR. Old files lack the words at their start.

    Raises:
        SamnnError: it says that it is an image, and ends too early.
    """
    with open(path, "rb") as file:
        is_bare = file.read(2) == b"\x08\x00"  # begins with group 0008 in the place of a preamble
        file.seek(0)
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS, force=is_bare)
        except pydicom.errors.InvalidDicomError as error:
            if path.suffix.lower() in (".dcm", ".ima"):
                raise SamnnError(f"{path}: is no DICOM file, though named so. Copy it again.") from error
            return None, None
        pixels_at = None
        kind = header.get("SOPClassUID", header.file_meta.get("MediaStorageSOPClassUID", ""))
        if pydicom.uid.UID(kind).name.endswith("Image Storage"):
            pixels_at = _refuse_short(path, header, file)
    return (header if "SOPClassUID" in header or "Modality" in header else None), pixels_at


def _refuse_short(path: Path, header: pydicom.Dataset, file: BinaryIO) -> int | None:
    """Refuse an image without pixels or with too few of them, which GDCM would fill up; → where they start.

    `file` is before its pixels. None: they are packed.
    """
    syntax = header.file_meta.get("TransferSyntaxUID", pydicom.uid.ImplicitVRLittleEndian)
    if "Rows" in header and not syntax.is_compressed and not syntax.is_deflated:
        is_implicit, is_little = header.original_encoding
        at = file.tell()
        start = file.read(12)  # tag, then the length; a type of two letters and two spare bytes between them
        length = start[4:8] if is_implicit else start[8:] if start[4:6] in (b"OW", b"OB") else start[6:8]
        expected = int(header.Rows) * int(header.Columns) * int(header.BitsAllocated) // 8  # of one slice
        if not length or int.from_bytes(length, "little" if is_little else "big") < expected:
            raise SamnnError(f"{path}: has fewer pixels than its header says. Copy or export it again.")
        is_plain = start[:4] == _PIXEL_DATA and int.from_bytes(length, "little") in (
            expected,
            expected + expected % 2,
        )
        return at + (8 if is_implicit or start[4:6] not in (b"OW", b"OB") else 12) if is_plain else None
    if "Rows" not in header:
        raise SamnnError(f"{path}: is cut short before its pixels. Copy or export it again.")
    return None


def _plain(header: pydicom.Dataset, pixels_at: int | None) -> Plain | None:
    """The pixels of a CT as nearly all are stored; None: ITK must read them, which takes several times as long."""
    bits = header.get("BitsStored")
    try:
        intercept, slope = float(header.get("RescaleIntercept") or 0), float(header.get("RescaleSlope") or 1)
    except (TypeError, ValueError):  # several values, or words
        return None
    if (
        pixels_at is None
        or header.get("SOPClassUID") != pydicom.uid.CTImageStorage
        or header.get("PhotometricInterpretation") != "MONOCHROME2"
        or header.original_encoding[1] is not True
        or header.get("BitsAllocated") != 16
        or bits not in range(1, 17)
        or header.get("HighBit") != bits - 1
        or header.get("PixelRepresentation") not in (0, 1)
        or slope != 1
        or not (intercept.is_integer() and abs(intercept) < 2**24)
    ):
        return None
    dtype = np.dtype("<i2" if header.PixelRepresentation else "<u2")
    return Plain(pixels_at, dtype, 16 - bits, int(intercept))


def _has_image(header: pydicom.Dataset) -> bool:
    """Whether it may be part of a scan: pictures of a screen, doses and structures are not."""
    is_picture = (
        str(header.get("SOPClassUID", "")).startswith("1.2.840.10008.5.1.4.1.1.7")  # secondary capture
        and "ImagePositionPatient" not in header
    )
    return "Rows" in header and header.get("Modality") not in NO_IMAGES and not is_picture


def _why_unusable(header: pydicom.Dataset) -> str:
    if (n_frames := _n_frames(header)) > 1:
        return (
            f"is a multi-frame file of {n_frames} slices, which is not supported. Convert it to NIfTI first (dcm2niix "
            "does), or export single slices."
        )
    if int(header.get("SamplesPerPixel") or 1) != 1:
        return "is a colour image; expected one value per voxel."
    if header.get("PhotometricInterpretation") == "MONOCHROME1":  # GDCM turns the stored values around
        return "is MONOCHROME1 (high values dark), which programs read in two ways. Convert it to MONOCHROME2 first."
    if "ModalityLUTSequence" in header:
        return "has a table (Modality LUT) in the place of slope and intercept. Convert it to NIfTI first."
    lacking = [
        tag
        for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        if not header.get(tag)
    ]
    return f"does not say where it lies: {', '.join(lacking)} missing. Export it again." if lacking else ""


def _n_frames(header: pydicom.Dataset) -> int:
    return int(header.get("NumberOfFrames") or 1)


def _series(header: pydicom.Dataset) -> tuple[str, str]:
    return str(header.get("SeriesInstanceUID", "")), str(header.get("SeriesDescription") or "")


def _slice(path: Path, header: pydicom.Dataset, plain: Plain | None) -> Slice:
    row_mm, column_mm = (float(value) for value in header.PixelSpacing)
    found = Slice(
        path,
        *_series(header),
        tuple(float(value) for value in header.ImagePositionPatient),
        tuple(float(value) for value in header.ImageOrientationPatient),
        (column_mm, row_mm),
        (int(header.Columns), int(header.Rows)),
        plain,
    )
    numbers = [*found.position_mm, *found.orientation, *found.spacing_mm]
    right = len(found.position_mm) == 3 and len(found.orientation) == 6 and np.isfinite(numbers).all()
    if right:
        axes = np.reshape(found.orientation, (2, 3))
        right = np.abs(axes @ axes.T - np.eye(2)).max() < NOT_PARALLEL and min(found.spacing_mm) > 0
    if not right or min(found.shape) < 1:
        raise SamnnError(f"{path}: its position, orientation, spacing or size is damaged. Export it again.")
    if header.get("RescaleSlope") is not None and not 0 < abs(float(header.RescaleSlope)) < np.inf:
        raise SamnnError(f"{path}: its rescale slope is {header.RescaleSlope}. Export it again.")
    intercept = header.get("RescaleIntercept")
    if isinstance(intercept, float) and not np.isfinite(intercept):  # ITK would take 0
        raise SamnnError(f"{path}: its rescale intercept is {intercept}. Export it again.")
    return found


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

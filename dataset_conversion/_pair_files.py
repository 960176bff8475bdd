"""Images and masks that belong together: found by name in two folders, or listed in a table."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from samnn.errors import Problems, SamnnError
from samnn.io import UNSAFE_ENDINGS

ENDINGS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".gipl", ".vtk", ".mnc")
PARTS = (".raw", ".zraw", ".raw.gz", ".img", ".img.gz")  # the voxels of a header file beside them
CHANNEL = re.compile(r"(.+)_(\d{4})")
COLUMN = re.compile(r"image(?:_(\d{4}))?")
KEPT = re.compile(r"[^\w.-]+")  # all else in a name becomes _


@dataclass(frozen=True)
class Pair:
    """One case: an image a channel (a file, or a folder with a DICOM series) and its mask, if there is one."""

    name: str  # in the dataset
    called: str  # at the source
    images: tuple[Path, ...]
    mask: Path | None
    patient: str | None = None

    @property
    def sources(self) -> list[Path]:
        return [*self.images, *([] if self.mask is None else [self.mask])]


@dataclass(frozen=True)
class Found:
    """All cases, and what lies in the folders but takes no part, in words."""

    pairs: list[Pair]
    left_out: list[str]


def find_in_folders(images: Path, masks: Path, *, unlabelled: bool) -> Found:
    """Match by name without ending; images may have nnU-Net's channel suffix (`_0000`), masks have none.

    Raises:
        Problems: every name that is there twice, lacks its counterpart or a channel, or cannot be used.
    """
    left_out: list[str] = []
    problems: list[str] = []
    image_files = _by_stem(images, left_out, problems, folders=True)
    mask_files = _by_stem(masks, left_out, problems, folders=False)
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    suffixed = any(
        (match := CHANNEL.fullmatch(stem)) and match[1] in mask_files and stem not in mask_files
        for stem in image_files
    )
    for stem, path in image_files.items():
        match = CHANNEL.fullmatch(stem)
        is_suffix = match and stem not in mask_files and (match[1] in mask_files or suffixed)
        case, channel = (match[1], int(match[2])) if is_suffix else (stem, 0)
        if channel in channels[case]:
            problems.append(
                f"{path}: {channels[case][channel].name} is channel {channel:04d} of the case, too."
            )
        channels[case][channel] = path
    for case, files in channels.items():
        if sorted(files) != list(range(len(files))):
            listed = ", ".join(f"{channel:04d}" for channel in sorted(files))
            problems.append(
                f"{images}: case {case} has channel(s) {listed}; expected 0000, 0001, … without gaps."
            )
        if case not in mask_files and not unlabelled:
            names = ", ".join(path.name for path in files.values())
            problems.append(f"{images}: {names} has no mask. Add {case} to {masks}, or --unlabelled.")
    problems += [
        f"{masks}: {path.name} has no image. Add {stem} to {images}, or move it away."
        for stem, path in mask_files.items()
        if stem not in channels
    ]
    if problems and left_out:
        listed = ", ".join(left_out[:5]) + (f" and {len(left_out) - 5} more" if len(left_out) > 5 else "")
        problems.append(f"Left out, no images by their endings: {listed}. DICOM series need a folder each.")
    pairs = [
        Pair(clean(case), case, tuple(files[channel] for channel in sorted(files)), mask_files.get(case))
        for case, files in sorted(channels.items())
    ]
    return _checked(Found(pairs, left_out), f"{images} and {masks}", problems)


def find_in_table(table: Path) -> Found:
    """Read a CSV file with columns case, image (or image_0000, image_0001, …), mask, and patient if wanted.

    Paths are relative to the table's folder. A case whose mask is left empty is a test case.

    Raises:
        SamnnError: it is no such table.
        Problems: every row that cannot be used.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.DictReader(
                file, delimiter=";" if ";" in first and "," not in first else ",", strict=True
            )
            columns = [column or "" for column in reader.fieldnames or []]
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SamnnError(f"{table}: cannot be read as a table ({error}). Save it as CSV in UTF-8.") from error
    image_columns = [column for column in columns if COLUMN.fullmatch(column)]
    wanted = [f"image_{number:04d}" for number in range(len(image_columns))]
    others = set(columns) - {*image_columns, "case", "mask", "patient"}
    if (
        "case" not in columns
        or image_columns not in (["image"], wanted)
        or others
        or len(set(columns)) < len(columns)
    ):
        raise SamnnError(
            f"{table}: has columns {columns}; expected case, image (or image_0000, image_0001, …), mask, and patient "
            "if wanted."
        )
    problems, pairs = [], []
    for number, row in enumerate(rows, 2):
        cells = {column: (row[column] or "").strip() for column in columns}
        if None in row or not cells["case"] or not all(cells[column] for column in image_columns):
            problems.append(f"{table}, row {number}: a case or image is empty, or there are too many cells.")
            continue
        mask = table.parent / cells["mask"] if cells.get("mask") else None
        images = tuple(table.parent / cells[column] for column in image_columns)
        pairs.append(Pair(clean(cells["case"]), cells["case"], images, mask, cells.get("patient") or None))
        for path in pairs[-1].sources:
            if not path.exists() or (path == mask and path.is_dir()):
                problems.append(f"{table}, row {number}: {path} is missing, a link to nothing, or no file.")
    return _checked(Found(pairs, []), str(table), problems)


def clean(name: str) -> str:
    """A name that is safe in a file name and on a command line: letters, digits, `_`, `.`, `-`; no leading `.` or `-`."""
    return KEPT.sub("_", unicodedata.normalize("NFC", name)).lstrip(".-")


def _by_stem(folder: Path, left_out: list[str], problems: list[str], *, folders: bool) -> dict[str, Path]:
    """The images in a folder by their names without ending, and with `folders` its sub-folders, too."""
    if not folder.is_dir():
        raise SamnnError(f"{folder}: is not a folder. Name the one that holds the files.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next(
            (e for e in sorted(ENDINGS, key=len, reverse=True) if path.name.lower().endswith(e)), None
        )
        if path.name.startswith("."):  # the Finder's ._ files, too
            stem = None
        elif path.is_dir():
            stem = path.name if folders else None
        elif ending and path.is_file():
            stem = path.name[: -len(ending)]
        else:
            if path.is_symlink() and not path.exists():
                problems.append(f"{path}: is a link to nothing. Restore or remove it.")
            stem = None
        if stem is None:
            if not path.name.lower().endswith(PARTS):
                left_out.append(str(path))
        elif ending and not path.is_dir() and not path.name.endswith(ending):
            problems.append(f"{path}: its ending is not in small letters. Rename it.")
        elif stem in found:
            problems.append(f"{path}: {found[stem].name} has the same name without its ending. Keep one.")
        else:
            found[stem] = path
    return found


def _checked(found: Found, where: str, problems: list[str]) -> Found:
    """Refuse names that are empty or fall together, and a folder or table without any case."""
    by_key: dict[str, list[Pair]] = defaultdict(list)
    for pair in found.pairs:
        by_key[pair.name.casefold()].append(pair)
        problems += _unusable(pair)
    problems += [
        f"cases {', '.join(repr(pair.called) for pair in pairs)} all become {pairs[0].name!r} or differ only in "
        "capitals. Rename all but one."
        for pairs in by_key.values()
        if len(pairs) > 1
    ]
    if not found.pairs and not problems:
        problems.append(
            f"no images found. Their names must end in one of {', '.join(e for e in ENDINGS if e not in UNSAFE_ENDINGS)}; DICOM series need a folder each."
        )
    elif not problems and all(pair.mask is None for pair in found.pairs):
        problems.append("no case has a mask; nnU-Net needs some to train.")
    if problems:
        raise Problems(f"{where}: nothing was converted, {len(problems)} problem(s):", problems)
    return found


def _unusable(pair: Pair) -> Iterable[str]:
    if not pair.name.strip("_"):
        yield f"case {pair.called!r}: nothing is left of its name. Rename it."
    if any("\udc80" <= letter <= "\udcff" for path in pair.sources for letter in os.fspath(path)):
        yield f"case {pair.called!a}: a name is not UTF-8. Rename it."

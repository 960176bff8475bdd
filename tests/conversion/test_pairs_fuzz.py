"""Damaged headers: a conversion ends with a dataset or with a refusal, never with anything else."""

from __future__ import annotations

import gzip
import random
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from pair_sources import convert, image, mask, save, save_itk, save_series
from small_thorax import files

from samnn.errors import SamnnError
from samnn.io import read_labels, read_volume

KINDS = ["nifti", "nifti.gz", "nrrd", "mha", "dicom", "mask"]
MOST_SECONDS = 20  # for one conversion of 210 voxels, on a busy machine


def source(folder: Path, kind: str) -> list[Path]:
    """A pair below `folder`; the files whose headers are to be damaged."""
    if kind == "dicom":
        save_series(folder / "images/a", image())
        damaged = sorted((folder / "images/a").iterdir())
    else:
        ending = {"nifti": ".nii", "nifti.gz": ".nii.gz", "mask": ".nii"}.get(kind, f".{kind}")
        damaged = [save_itk(folder / f"images/a{ending}", image())]
    labels = save(folder / ("masks/a.nii" if kind == "mask" else "masks/a.nii.gz"), mask())
    return [labels] if kind == "mask" else damaged


def damage(path: Path, chance: random.Random) -> None:
    """Change, cut out, repeat or insert a few bytes of the header, within the first bytes of the file."""
    content = path.read_bytes()
    packed = path.name.endswith(".gz")
    content = bytearray(gzip.decompress(content) if packed else content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(min(len(content), 1200 if path.suffix == ".dcm" else 400))
        how = chance.randrange(6)
        if how == 0:
            content[at] = chance.randrange(256)
        elif how == 1:
            content[at] ^= 1 << chance.randrange(8)
        elif how == 2:
            content[at : at + 4] = chance.choice(
                [b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f", b"\x00\x00\xc0\x7f"]
            )
        elif how == 3:
            del content[at : at + chance.randrange(1, 9)]
        elif how == 4:
            content[at:at] = content[at : at + chance.randrange(1, 9)]
        else:  # a number in a text
            numbers = [match.span() for match in re.finditer(rb"\d+", content[:1200])] or [(at, at)]
            start, end = chance.choice(numbers)
            content[start:end] = chance.choice([b"-1", b"0", b"99999", b"4294967296", b"nan", b"1e308", b"x"])
    path.write_bytes(gzip.compress(bytes(content)) if packed else bytes(content))


def fuzz(tmp_path: Path, kind: str, seeds: range) -> None:
    """Convert a pair with a damaged header for each seed."""
    good = tmp_path / "good"
    names = [path.relative_to(good) for path in source(good, kind)]
    outcomes = {True: 0, False: 0}
    for seed in seeds:
        chance = random.Random(seed)
        trial = tmp_path / f"trial{seed}"
        shutil.copytree(good, trial)
        damage(trial / chance.choice(names), chance)
        before, start = files(trial), time.monotonic()
        try:
            dataset = convert(trial, tmp_path / "raw")
        except SamnnError:
            assert not (tmp_path / "raw").exists() or not list((tmp_path / "raw").iterdir()), seed
            outcomes[False] += 1
        else:  # whole: both files can be read, lie on one grid, and hold nothing but what the source says
            written = read_volume(dataset / "imagesTr/a_0000.nii.gz")
            assert written.grid.differences(read_labels(dataset / "labelsTr/a.nii.gz").grid) == [], seed
            assert np.isfinite(written.voxels).all(), seed
            outcomes[True] += 1
            shutil.rmtree(tmp_path / "raw")
        assert time.monotonic() - start < MOST_SECONDS, seed
        assert files(trial) == before, seed
        shutil.rmtree(trial)
    assert min(outcomes.values()) > 0, "the damage is too small or too large to say anything"


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_header_is_converted_whole_or_refused(tmp_path, kind):
    fuzz(tmp_path, kind, range(40))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_headers_are_converted_whole_or_refused(tmp_path, kind):
    fuzz(tmp_path, kind, range(1000, 1600))

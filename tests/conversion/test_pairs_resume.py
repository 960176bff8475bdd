"""A conversion that is stopped goes on where it was, and never leaves half a dataset."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from pair_sources import GRID, convert, image, mask, pair, ras, save, save_nifti
from small_thorax import command, files

from samnn.errors import Problems, SamnnError
from samnn.io import Volume


def nan_case(source: Path, name: str) -> None:
    """A case that is found to be damaged only when it is written."""
    voxels = image().voxels.astype(np.float32)
    voxels[3, 3, 3] = np.nan
    save_nifti(source / f"images/{name}.nii", voxels, ras(GRID))
    save(source / f"masks/{name}.nii.gz", mask())


def test_cases_that_are_done_are_kept_and_not_redone(tmp_path):
    for name in "abc":
        pair(tmp_path, name, ending=".nrrd")
    nan_case(tmp_path, "d")
    with pytest.raises(Problems, match="The 3 others are kept for the next run"):
        convert(tmp_path, tmp_path / "raw")
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [".part-Dataset012_Own"]
    kept = tmp_path / "raw/.part-Dataset012_Own/imagesTr/a_0000.nii.gz"
    os.utime(kept, ns=(1, 1))  # a mark that writing it again would remove
    save(tmp_path / "images/d.nii", image())
    save(tmp_path / "images/c.nrrd", image(seed=5))  # changed since: must be done again
    dataset = convert(tmp_path, tmp_path / "raw")
    assert (dataset / "imagesTr/a_0000.nii.gz").stat().st_mtime_ns == 1
    assert files(dataset) == files(convert(tmp_path, tmp_path / "clean"))
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["Dataset012_Own"]


def test_a_case_taken_out_or_labels_renamed_between_runs_leave_no_trace(tmp_path):
    for name in "ab":
        pair(tmp_path, name, ending=".nrrd")
    nan_case(tmp_path, "d")
    with pytest.raises(Problems):
        convert(tmp_path, tmp_path / "raw")
    for path in [*tmp_path.glob("images/[ad]*"), *tmp_path.glob("masks/[ad]*")]:
        path.unlink()
    dataset = convert(tmp_path, tmp_path / "raw", labels="x=2,ignore=1")
    assert files(dataset) == files(convert(tmp_path, tmp_path / "clean", labels="x=2,ignore=1"))


def test_overwrite_replaces_the_dataset_only_by_a_whole_one(tmp_path):
    pair(tmp_path, "a")
    dataset = convert(tmp_path, tmp_path / "raw")
    before = files(dataset)
    with pytest.raises(SamnnError, match="Add --overwrite"):
        convert(tmp_path, tmp_path / "raw")
    nan_case(tmp_path, "b")
    with pytest.raises(Problems):
        convert(tmp_path, tmp_path / "raw", overwrite=True)
    assert files(dataset) == before


@pytest.mark.parametrize("files_seen", [3, 12])
def test_killed_and_run_again_it_ends_as_one_clean_run(tmp_path, files_seen):
    """Killed (SIGKILL) once so many files are seen in the hidden folder."""
    pair(tmp_path, "c0", ending=".nrrd")
    for number in range(1, 12):
        for kind in ("images", "masks"):
            os.link(tmp_path / kind / "c0.nrrd", tmp_path / kind / f"c{number}.nrrd")
    raw = tmp_path / "raw"
    arguments = [
        "convert",
        "pairs",
        "--images",
        tmp_path / "images",
        "--masks",
        tmp_path / "masks",
        "-d",
        "12",
    ]
    process = subprocess.Popen(
        [command(), *map(str, arguments), "--name", "Own", "-o", str(raw)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        part = next(raw.glob(".part-*"), None)
        if part is not None and sum(len(names) for *_, names in os.walk(part)) >= files_seen:
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.001)
    assert process.returncode == -signal.SIGKILL, "the conversion ended before it could be killed"
    assert not (raw / "Dataset012_Own").exists()
    assert files(convert(tmp_path, raw)) == files(convert(tmp_path, tmp_path / "clean"))


def test_a_full_disk_is_said_and_leaves_no_dataset(tmp_path):
    """A limit on file sizes stands for the full disk."""
    save(tmp_path / "images/a.nrrd", image())
    save(tmp_path / "masks/a.nrrd", mask())
    big = Volume(np.random.default_rng(0).integers(0, 2**15, (64, 64, 8), np.int16), GRID)
    save_nifti(tmp_path / "images/b.nii", big.voxels, ras(GRID))
    save_nifti(tmp_path / "masks/b.nii", (big.voxels > 9999).astype(np.uint8), ras(GRID))
    arguments = [
        "convert",
        "pairs",
        "--images",
        "images",
        "--masks",
        "masks",
        "-d",
        "12",
        "--name",
        "Own",
        "-o",
        "raw",
    ]
    done = subprocess.run(
        [command(), *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "raw/Dataset012_Own").exists()

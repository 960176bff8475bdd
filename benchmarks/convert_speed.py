"""How fast `samnn convert pairs` is: beside SimpleITK reading and writing each volume, and beside copying the bytes."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK
from scipy.ndimage import gaussian_filter, zoom

from samnn.dataset_conversion.pairs import convert
from samnn.geometry import Grid
from samnn.io import Volume, write_volume

SHAPE = (512, 512, 180)  # SegTHOR's
GRID = Grid(SHAPE, (0.98, 0.98, 2.5), (-250.0, -250.0, -400.0), tuple(np.eye(3).ravel()))


def ct(seed: int) -> np.ndarray:
    """A made-up body: smooth tissue in air, a scanner's noise of 15 HU in its circle, and nothing outside of that."""
    chance = np.random.default_rng(seed)
    tissue = zoom(gaussian_filter(chance.normal(size=(64, 64, 45)), 2), (8, 8, 4), order=1) * 1500
    x, y = np.ogrid[: SHAPE[0], : SHAPE[1]]
    tissue[((x - 256) / 200) ** 2 + ((y - 256) / 150) ** 2 > 1] = -1000
    noise = gaussian_filter(chance.normal(size=SHAPE).astype(np.float32), (0.6, 0.6, 0))
    tissue += noise * (15 / noise.std())
    tissue[(x - 256) ** 2 + (y - 256) ** 2 > 250**2] = -1000
    return np.asfortranarray(tissue.astype(np.int16))


def organs(seed: int) -> np.ndarray:
    """Four ellipsoids."""
    chance = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8, order="F")
    x, y, z = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    for label, radii in enumerate([(20, 20, 70), (70, 60, 30), (15, 15, 50), (18, 18, 60)], 1):
        c = chance.uniform((180, 180, 70), (330, 330, 110))
        labels[sum(((a - m) / r) ** 2 for a, m, r in zip((x, y, z), c, radii, strict=True)) < 1] = label
    return labels


def make(folder: Path, n_cases: int, ending: str) -> None:
    for number in range(n_cases):
        for kind, voxels in (("images", ct(number)), ("masks", organs(number))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            first = folder / kind / f"case_{number}.nii.gz"
            write_volume(first, Volume(voxels, GRID))
            if ending != ".nii.gz":
                SimpleITK.WriteImage(
                    SimpleITK.ReadImage(str(first)), str(first)[:-7] + ending, ending == ".nrrd"
                )
                first.unlink()


def by_simpleitk(source: Path, target: Path) -> None:
    for kind in ("images", "masks"):
        (target / kind).mkdir(parents=True)
        for path in sorted((source / kind).iterdir()):
            picture = SimpleITK.ReadImage(str(path))
            SimpleITK.WriteImage(picture, str(target / kind / f"{path.name.split('.')[0]}.nii.gz"), True)


def by_copying(source: Path, target: Path) -> None:
    """Copy each file and wait until the disk has it, as the conversion does."""
    for kind in ("images", "masks"):
        (target / kind).mkdir(parents=True)
        for path in sorted((source / kind).iterdir()):
            shutil.copyfile(path, target / kind / path.name)
            with open(target / kind / path.name, "rb") as copied:
                os.fsync(copied.fileno())


def by_samnn(source: Path, target: Path, **options: bool) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        convert(12, "Speed", images=source / "images", masks=source / "masks", output=target, **options)


def compare(
    title: str, source: Path, scratch: Path, ways: dict[str, Callable[..., None]], repeats: int
) -> None:
    """Run the ways in turn, `repeats` times, and print median, spread and the ratio of the first to each other."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way(source, scratch / "out")
            seconds[name].append(time.perf_counter() - start)
            shutil.rmtree(scratch / "out")
            print(f"  {title}, run {repeat + 1}, {name}: {seconds[name][-1]:.2f} s", flush=True)
    baseline = statistics.median(next(iter(seconds.values())))
    print(f"{title}: median of {repeats} (lowest to highest), and the ratio to it of the first")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(
            f"  {name:24} {median:6.2f} s ({min(taken):.2f} to {max(taken):.2f})   {baseline / median:5.2f}"
        )


def main() -> None:
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    print(f"{asked.cases} cases of {SHAPE} int16 and their masks, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        make(scratch / "nrrd", asked.cases, ".nrrd")
        ways = {"SimpleITK": by_simpleitk, "samnn": by_samnn}
        compare("rewriting NRRD", scratch / "nrrd", scratch, ways, asked.repeats)
        shutil.rmtree(scratch / "nrrd")
        make(scratch / "fits", asked.cases, ".nii.gz")
        ways = {
            "copying": by_copying,
            "samnn": by_samnn,
            "samnn --link": lambda source, target: by_samnn(source, target, link=True),
        }
        compare("nothing to change", scratch / "fits", scratch, ways, asked.repeats)


if __name__ == "__main__":
    main()

"""How fast `samnn convert pairs` is: beside SimpleITK reading and writing each volume, and beside copying the bytes.

Written are SegTHOR-sized images and masks, read once before, so that all ways find them in memory; the ways take
turns. `command` is all that a user waits for, start-up too. How well voxels pack decides how long packing takes:
`--ct FILE` fills the images with pieces of a real CT, in place of made-up ones.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK
from scipy.ndimage import gaussian_filter, zoom

from samnn.dataset_conversion.pairs import convert
from samnn.geometry import Grid
from samnn.io import Volume, read_volume, write_volume

SHAPE = (512, 512, 180)  # SegTHOR's
GRID = Grid(SHAPE, (0.98, 0.98, 2.5), (-250.0, -250.0, -400.0), tuple(np.eye(3).ravel()))
FITS = ".nii.gz"
KINDS = {  # ending and whether SimpleITK packs it
    "nii": (".nii", False),
    "nrrd": (".nrrd", True),
    "mha": (".mha", True),
    "dicom": ("", False),
    "fits": (FITS, True),
}
Way = Callable[[Path, Path], None]


def main() -> None:
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--ct", type=Path, help="a real CT; images are made of pieces of it")
    parser.add_argument("--data", type=Path, help="where the made-up volumes are kept for the next time")
    parser.add_argument(
        "--cold",
        action="store_true",
        help="every case has a file of its own (use a new --data), which is not in memory at the start",
    )
    parser.add_argument("--only-make", action="store_true", help="make the volumes and stop")
    asked = parser.parse_args()
    images = f"pieces of {asked.ct.name}" if asked.ct else "made up"
    print(f"{asked.cases} cases of {SHAPE} int16, {images}, and their masks, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(dir=asked.data and asked.data.parent) as folder:
        data, scratch = asked.data or Path(folder) / "data", Path(folder)
        make(data, asked.cases, asked.kinds, asked.ct, again=shutil.copyfile if asked.cold else os.link)
        for kind in [] if asked.only_make else asked.kinds:
            ways: dict[str, Way] = {"SimpleITK": by_simpleitk}
            if kind == "fits":
                ways = {"copying": by_copying, "copying, fsync": by_copying_for_good}
            ways |= {"samnn, in process": by_function, "samnn, command": by_command}
            if kind == "fits":
                ways |= {"samnn --link, in process": linking(by_function)}
                ways |= {"samnn --link, command": linking(by_command)}
            compare(kind, data / kind, scratch, ways, asked.repeats, cold=asked.cold)


def by_simpleitk(source: Path, target: Path) -> None:
    for kind in ("images", "masks"):
        (target / kind).mkdir(parents=True)
        for path in sorted((source / kind).iterdir()):
            files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)) if path.is_dir() else path
            picture = SimpleITK.ReadImage(files)
            SimpleITK.WriteImage(picture, str(target / kind / f"{path.name.split('.')[0]}.nii.gz"), True)


def by_copying(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


def by_copying_for_good(source: Path, target: Path) -> None:
    """Copy and wait until the disk has it."""
    shutil.copytree(source, target)
    for path in target.rglob("*.gz"):
        with open(path, "rb") as copied:
            os.fsync(copied.fileno())


def by_function(source: Path, target: Path, **options: bool) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        convert(12, "Speed", images=source / "images", masks=source / "masks", output=target, **options)


def by_command(source: Path, target: Path, **options: bool) -> None:
    samnn = [Path(sys.executable).with_name("samnn"), "convert", "pairs", "-d", "12", "--name", "Speed"]
    folders = ["--images", source / "images", "--masks", source / "masks", "-o", target]
    subprocess.run([*samnn, *folders, *(f"--{name}" for name in options)], check=True, capture_output=True)


def linking(way: Callable[..., None]) -> Way:
    return lambda source, target: way(source, target, link=True)


def compare(
    title: str, source: Path, scratch: Path, ways: dict[str, Way], repeats: int, *, cold: bool = False
) -> None:
    """Run the ways in turn, `repeats` times, and print median, spread and how often each fits into the first."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in files:
        path.read_bytes()
    for _ in range(repeats):
        for name, way in ways.items():
            os.sync()  # nobody waits for what another has written
            for path in files if cold else []:
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            way(source, scratch / "out")
            seconds[name].append(time.perf_counter() - start)
            shutil.rmtree(scratch / "out")
    baseline = statistics.median(next(iter(seconds.values())))
    print(f"{title}: median of {repeats} runs (lowest to highest); the first way's time over this one's")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        spread = f"{min(taken):.2f} to {max(taken):.2f}"
        print(f"  {name:26} {median:6.2f} s ({spread})   {baseline / median:5.2f}", flush=True)


def make(
    data: Path, n_cases: int, kinds: list[str], real: Path | None, again: Callable[..., object] = os.link
) -> None:
    """Write what is not there yet. Two cases are made; the others are hard links to them, or what `again` makes."""
    for number in range(n_cases):
        for folder, make_voxels in (("images", pieces_of(real) if real else ct), ("masks", organs)):
            first = data / "fits" / folder / f"case_{number}{FITS}"
            for kind in dict.fromkeys(["fits", *kinds]):
                ending, packed = KINDS[kind] if (kind, folder) != ("dicom", "masks") else KINDS["fits"]
                path = data / kind / folder / f"case_{number}{ending}"
                made = path.with_name(f"case_{number % 2}{ending}")
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists():
                    continue
                if path != made and made.is_dir():
                    shutil.copytree(made, path, copy_function=again)
                elif path != made:
                    again(made, path)
                elif path == first:
                    write_volume(path, Volume(make_voxels(number), GRID))
                elif ending:
                    SimpleITK.WriteImage(SimpleITK.ReadImage(str(first)), str(path), packed)
                else:
                    write_series(path, read_volume(first))


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


def pieces_of(path: Path) -> Callable[[int], np.ndarray]:
    """Put copies of a CT side by side, each with its slices in another order and turned at random: none is near
    enough to its like for packing to notice."""
    real = read_volume(path).voxels

    def make_voxels(seed: int) -> np.ndarray:
        chance = np.random.default_rng(seed)
        voxels = np.full(SHAPE, -1024, np.int16, order="F")
        for x, y in np.ndindex(
            *(-(-size // piece) for size, piece in zip(SHAPE[:2], real.shape[:2], strict=True))
        ):
            place = voxels[x * real.shape[0] :, y * real.shape[1] :][: real.shape[0], : real.shape[1]]
            slices = (np.arange(SHAPE[2]) + chance.integers(real.shape[2])) % real.shape[2]
            piece = real[:: chance.choice([-1, 1]), :: chance.choice([-1, 1])][:, :, slices]
            place[...] = piece[: place.shape[0], : place.shape[1]]
        return voxels

    return make_voxels


def organs(seed: int) -> np.ndarray:
    """Four ellipsoids."""
    chance = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8, order="F")
    x, y, z = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    for label, radii in enumerate([(20, 20, 70), (70, 60, 30), (15, 15, 50), (18, 18, 60)], 1):
        c = chance.uniform((180, 180, 70), (330, 330, 110))
        labels[sum(((a - m) / r) ** 2 for a, m, r in zip((x, y, z), c, radii, strict=True)) < 1] = label
    return labels


def write_series(folder: Path, volume: Volume) -> None:
    """One uncompressed DICOM file a slice, as scanners export them."""
    folder.mkdir()
    for number in range(SHAPE[2]):
        header = pydicom.Dataset()
        header.SOPClassUID, header.SOPInstanceUID = pydicom.uid.CTImageStorage, f"1.2.3.{number}"
        header.Modality, header.SeriesInstanceUID, header.StudyInstanceUID = "CT", "1.2.3", "1.2"
        header.ImagePositionPatient = [*GRID.origin_mm[:2], GRID.origin_mm[2] + number * GRID.spacing_mm[2]]
        header.ImageOrientationPatient, header.PixelSpacing = [1, 0, 0, 0, 1, 0], [*GRID.spacing_mm[:2]]
        header.Rows = header.Columns = SHAPE[0]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
        header.RescaleSlope, header.RescaleIntercept = 1, -1024
        header.PixelData = (volume.voxels[:, :, number] + np.int16(1024)).tobytes(order="F")
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        header.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)


if __name__ == "__main__":
    main()

"""How fast converters of public sets write volumes: beside numpy or SimpleITK reading and SimpleITK writing them.

The volumes are those of convert_speed.py, written as the sets have them; the ways take turns. `--ct FILE` makes them of pieces
of a real CT, in place of made-up ones.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK
from convert_speed import GRID, SHAPE, Way, compare, ct, organs, pieces_of

SPACING = ",".join(map(str, GRID.spacing_mm))
GREY = np.array([0, 63, 126, 189, 252], np.uint8)  # AI4MI's values of SegTHOR's organs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--ct", type=Path, help="a real CT; images are made of pieces of it")
    asked = parser.parse_args()
    images = f"pieces of {asked.ct.name}" if asked.ct else "made up"
    print(f"{asked.cases} cases of {SHAPE}, images {images}, {os.cpu_count()} cores")
    make_ct = pieces_of(asked.ct) if asked.ct else ct
    with tempfile.TemporaryDirectory() as folder:
        for kind in asked.kinds:
            make, by_others = KINDS[kind]
            source = Path(folder) / kind
            for number in range(asked.cases):
                make(source, number, lambda number: window(make_ct(number % 2)))
            ways = {"SimpleITK": by_others, "samnn, command": by_command(kind)}
            compare(kind, source, Path(folder), ways, asked.repeats)


def window(voxels: np.ndarray) -> np.ndarray:
    """A CT in grey values 0 to 255."""
    return (np.clip((voxels.astype(np.float32) + 1000) / 2000, 0, 1) * 255).astype(np.uint8)


def make_npz(source: Path, number: int, image: Callable[[int], np.ndarray]) -> None:
    """MedSAM's form: arrays in (z, y, x), and the spacing."""
    (source / "npz").mkdir(parents=True, exist_ok=True)
    path = source / "npz" / f"CT_Made_{number}.npz"
    if number > 1:
        os.link(path.with_name(f"CT_Made_{number % 2}.npz"), path)
        return
    np.savez_compressed(path, imgs=image(number).T, gts=organs(number).T, spacing=np.array(GRID.spacing_mm))


def npz_by_others(source: Path, target: Path) -> None:
    target.mkdir()
    for path in sorted((source / "npz").iterdir()):
        content = np.load(path)
        for key in ("imgs", "gts"):
            picture = SimpleITK.GetImageFromArray(content[key])
            picture.SetSpacing(content["spacing"].tolist())
            SimpleITK.WriteImage(picture, str(target / f"{path.stem}_{key}.nii.gz"), True)


def make_slices(source: Path, number: int, image: Callable[[int], np.ndarray]) -> None:
    """AI4MI's form: a PNG a slice, the organs as grey values."""
    for kind, voxels in (("img", image(number)), ("gt", GREY[organs(number % 2)])):
        folder = source / "train" / kind
        folder.mkdir(parents=True, exist_ok=True)
        for z in range(SHAPE[2]):
            picture = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels[:, :, z]))
            SimpleITK.WriteImage(picture, str(folder / f"Patient_{number:02d}_{z:04d}.png"))


def slices_by_others(source: Path, target: Path) -> None:
    target.mkdir()
    for kind in ("img", "gt"):
        files = sorted((source / "train" / kind).iterdir())
        for patient in sorted({path.stem[:10] for path in files}):
            mine = [str(path) for path in files if path.stem.startswith(patient)]
            picture = SimpleITK.ReadImage(mine)
            picture.SetSpacing(GRID.spacing_mm)
            SimpleITK.WriteImage(picture, str(target / f"{patient}_{kind}.nii.gz"), True)


def by_command(kind: str) -> Way:
    def way(source: Path, target: Path) -> None:
        folder, more = OPTIONS[kind]
        samnn = [Path(sys.executable).with_name("samnn"), "convert", kind, source / folder]
        done = subprocess.run(
            [*samnn, "-d", "12", "--name", "Speed", "-o", target, *more], capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr)

    return way


KINDS = {"medsam_npz": (make_npz, npz_by_others), "slices": (make_slices, slices_by_others)}
OPTIONS = {"medsam_npz": ("npz", []), "slices": (".", ["--spacing", SPACING])}


if __name__ == "__main__":
    main()

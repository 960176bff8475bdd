"""How fast `samnn evaluate` is, side by side in one run with packages that measure the same.

Two made-up label maps of 512 × 512 × 180 voxels, heart, aorta, esophagus and trachea in the size of a patient's, the
prediction with a wavy surface. Times depend on the machine and on what else runs there; the ratios hardly do. Tools
take turns, so that all of them meet the same disturbances.

Needs `pip install 'samnn[check]'`; MONAI is measured too where it is installed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from samnn.evaluation3d import evaluate_case, evaluate_folder
from samnn.geometry import Grid
from samnn.io import Volume, read_labels, write_volume
from samnn.labels import LabelSet

SHAPE = (512, 512, 180)
SPACING_MM = (0.98, 0.98, 2.5)
LABELS = {"background": 0, "esophagus": 1, "heart": 2, "trachea": 3, "aorta": 4}
WAVE_MM, WAVE_LENGTH_MM = 2.0, 12.0
TOLERANCE_MM = 1.0
SPECKS = 15

# Organs as capsules of a radius along a path, and the heart as an ellipsoid; all in mm.
PATHS_MM = {
    "esophagus": (8, [(262, 300, 400), (265, 298, 300), (270, 295, 200), (275, 285, 80)]),
    "trachea": (9, [(255, 270, 440), (258, 280, 310)]),
    "aorta": (13, [(250, 240, 200), (250, 230, 290), (270, 270, 320), (290, 310, 290), (285, 315, 60)]),
}
HEART_MM = ((270, 230, 170), (65, 55, 60))  # centre, radii

Tool = Callable[[np.ndarray, np.ndarray], object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5, help="of each comparison (default 5)")
    parser.add_argument(
        "--slow-repetitions",
        type=int,
        default=1,
        help="with specks, of medpy and of MONAI: minutes each (default 1)",
    )
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS), help="default: all")
    chosen = parser.parse_args()
    for name in chosen.only:
        SECTIONS[name](chosen.repetitions, chosen.slow_repetitions)


def in_memory(repetitions: int, slow_repetitions: int) -> None:
    """The default metrics against HD, HD95, ASSD and NSD of surface-distance."""
    maps = label_maps(specks=0)
    times = take_turns({"samnn": with_samnn, "surface-distance": with_surface_distance}, maps, repetitions)
    report("arrays in memory", times)


def beside_others(repetitions: int, slow_repetitions: int) -> None:
    """The same beside medpy (without NSD) and MONAI, where they are installed, on organs cropped for them."""
    tools = {"samnn": with_samnn, **other_tools()}
    report("beside others", take_turns(tools, label_maps(specks=0), slow_repetitions))


def with_specks(repetitions: int, slow_repetitions: int) -> None:
    """The same with stray specks far away from every organ, as raw predictions have them."""
    tools = {"samnn": with_samnn, "surface-distance": with_surface_distance}
    report(f"{SPECKS} specks a class", take_turns(tools, label_maps(specks=SPECKS), slow_repetitions))


def from_files(repetitions: int, slow_repetitions: int) -> None:
    """A case from two .nii.gz files, against reading them with nibabel."""
    with tempfile.TemporaryDirectory() as scratch:
        reference, prediction = written(Path(scratch), label_maps(specks=0))

        def merely_read(*_: object) -> None:
            for folder in (reference, prediction):
                np.asarray(nibabel.load(folder / "case.nii.gz").dataobj)

        def samnn(*_: object) -> None:
            evaluate_folder(reference, prediction)

        times = take_turns({"nibabel reads": merely_read, "samnn": samnn}, (None, None), repetitions)
    report("from files", times)


def memory(repetitions: int, slow_repetitions: int) -> None:
    """What a worker's memory grows by while it evaluates a case."""
    for specks in (0, SPECKS):
        with tempfile.TemporaryDirectory() as scratch:
            folders = written(Path(scratch), label_maps(specks=specks))
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                grown, volume = pool.submit(grown_by, *folders).result()
        print(
            f"memory, {specks} specks: a worker grows by {grown / volume:.2f} decoded volumes of {volume / 1e6:.0f} MB"
        )


def absent_labels(repetitions: int, slow_repetitions: int) -> None:
    """More labels that no voxel has."""
    maps = label_maps(specks=0)

    def labels(n_absent: int) -> Tool:
        more = {f"absent {value}": value for value in range(5, 5 + n_absent)}
        label_set = LabelSet.from_mapping({**LABELS, **more})
        return lambda *both: evaluate_case(*both, spacing_mm=SPACING_MM, labels=label_set)

    times = take_turns({f"{n} absent labels": labels(n) for n in (0, 10, 100, 1000)}, maps, repetitions)
    report("absent labels", times)


SECTIONS = {
    "in-memory": in_memory,
    "specks": with_specks,
    "others": beside_others,
    "files": from_files,
    "memory": memory,
    "absent-labels": absent_labels,
}


def with_samnn(reference: np.ndarray, prediction: np.ndarray) -> None:
    evaluate_case(reference, prediction, spacing_mm=SPACING_MM, labels=LABELS, tolerance_mm=TOLERANCE_MM)


def with_surface_distance(reference: np.ndarray, prediction: np.ndarray) -> None:
    import surface_distance

    for value in range(1, 5):
        found = surface_distance.compute_surface_distances(
            reference == value, prediction == value, SPACING_MM
        )
        surface_distance.compute_robust_hausdorff(found, 100)
        surface_distance.compute_robust_hausdorff(found, 95)
        surface_distance.compute_average_surface_distance(found)
        surface_distance.compute_surface_dice_at_tolerance(found, TOLERANCE_MM)


def with_medpy(reference: np.ndarray, prediction: np.ndarray) -> None:
    from medpy.metric import binary

    for value in range(1, 5):
        of_reference, of_prediction = cropped(reference == value, prediction == value)
        for metric in (binary.hd, binary.hd95, binary.assd):
            metric(of_prediction, of_reference, voxelspacing=SPACING_MM)


def with_monai(reference: np.ndarray, prediction: np.ndarray) -> None:
    import torch
    from monai import metrics

    for value in range(1, 5):
        of_reference, of_prediction = cropped(reference == value, prediction == value)
        maps = [torch.from_numpy(mask)[None, None] for mask in (of_prediction, of_reference)]
        given = {"include_background": True, "spacing": SPACING_MM}
        metrics.compute_hausdorff_distance(*maps, **given)
        metrics.compute_hausdorff_distance(*maps, percentile=95, **given)
        metrics.compute_average_surface_distance(*maps, symmetric=True, **given)
        metrics.compute_surface_dice(*maps, class_thresholds=[TOLERANCE_MM], **given)


def cropped(reference: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks in the box that holds them and one voxel more: medpy and MONAI take minutes for whole images."""
    box = tuple(slice(max(held.min() - 1, 0), held.max() + 2) for held in np.nonzero(reference | prediction))
    return np.ascontiguousarray(reference[box]), np.ascontiguousarray(prediction[box])


def other_tools() -> dict[str, Tool]:
    """Those of medpy and MONAI that are installed."""
    found = {}
    for name, module, tool in [("medpy", "medpy.metric", with_medpy), ("MONAI", "monai.metrics", with_monai)]:
        try:
            importlib.import_module(module)
        except ImportError:
            print(f"{name}: not installed")
        else:
            found[name] = tool
    return found


def take_turns(tools: dict[str, Tool], maps: tuple, repetitions: int) -> dict[str, list[float]]:
    """Time each tool `repetitions` times, in turns; every tool has run once before, on a small map."""
    if maps[0] is not None:
        small = [voxels[::4, ::4, ::3] for voxels in maps]
        for tool in tools.values():
            tool(*small)
    times: dict[str, list[float]] = {name: [] for name in tools}
    for _ in range(repetitions):
        for name, tool in tools.items():
            start = time.perf_counter()
            tool(*maps)
            times[name].append(time.perf_counter() - start)
    return times


def report(title: str, times: dict[str, list[float]]) -> None:
    """Print medians, ranges, and ratios to the first tool."""
    base_s = statistics.median(next(iter(times.values())))
    print(title)
    for name, found in times.items():
        middle = statistics.median(found)
        print(
            f"  {name:<20} median {middle:8.3f} s, {min(found):.3f} to {max(found):.3f} s in {len(found)} runs; "
            f"{middle / base_s:.2f} ×"
        )


def grown_by(reference: Path, prediction: Path) -> tuple[int, int]:
    """In a process of its own: evaluate once, and return the bytes it grew by at most, and those of a volume."""
    small = np.ones((4, 4, 4), np.uint8)
    evaluate_case(small, small, spacing_mm=SPACING_MM, labels=LABELS)  # all is imported
    before = _status_kb("VmRSS")
    evaluate_folder(reference, prediction)
    grown = (_status_kb("VmHWM") - before) * 1024
    return grown, read_labels(reference / "case.nii.gz").voxels.nbytes


def _status_kb(name: str) -> int:
    """A number that Linux keeps about this process: VmRSS is its memory now, VmHWM the most it ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def written(folder: Path, maps: tuple[np.ndarray, np.ndarray]) -> tuple[Path, Path]:
    """Write both maps as the one case of two folders."""
    (folder / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
    grid = Grid(SHAPE, SPACING_MM, (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    folders = folder / "labelsTs", folder / "predictions"
    for target, voxels in zip(folders, maps, strict=True):
        target.mkdir()
        write_volume(target / "case.nii.gz", Volume(voxels, grid))
    return folders


def label_maps(*, specks: int) -> tuple[np.ndarray, np.ndarray]:
    """Make reference and prediction, as files give them: (x, y, z), with x the fastest in memory."""
    rng = np.random.default_rng(1)
    maps = tuple(np.zeros(SHAPE[::-1], np.uint8).transpose() for _ in range(2))
    for name, value in LABELS.items():
        if name == "background":
            continue
        if name == "heart":
            centre, radii = map(np.array, HEART_MM)
            low, high = centre - radii, centre + radii
        else:
            radius, path = PATHS_MM[name]
            low, high = np.min(path, 0) - radius, np.max(path, 0) + radius
        first = np.maximum((low - 4 * WAVE_MM) / SPACING_MM, 0).astype(int)
        last = np.minimum((high + 4 * WAVE_MM) / SPACING_MM + 1, SHAPE).astype(int)
        box = tuple(slice(*ends) for ends in zip(first, last, strict=True))
        at = np.meshgrid(
            *[np.arange(*ends) for ends in zip(first, last, strict=True)], indexing="ij", sparse=True
        )
        at_mm = [axis * step for axis, step in zip(at, SPACING_MM, strict=True)]
        if name == "heart":
            scaled = sum(((p - c) / r) ** 2 for p, c, r in zip(at_mm, centre, radii, strict=True))
            outside_mm = (np.sqrt(scaled) - 1) * radii.min()
        else:
            outside_mm = _to_path(at_mm, path) - radius
        knots = rng.normal(
            0,
            WAVE_MM,
            [int(n * s / WAVE_LENGTH_MM) + 3 for n, s in zip(outside_mm.shape, SPACING_MM, strict=True)],
        )
        wave_mm = ndimage.zoom(knots, np.divide(outside_mm.shape, knots.shape), order=1)
        maps[0][box][outside_mm < 0] = value
        maps[1][box][outside_mm + wave_mm < 0] = value
        for _ in range(specks):
            x, y, z = (int(rng.integers(2, size - 4)) for size in SHAPE)
            maps[1][x : x + 2, y : y + 2, z] = value
    return maps


def _to_path(at_mm: list[np.ndarray], path: list[tuple[int, ...]]) -> np.ndarray:
    """Distance in mm to a line through some points."""
    nearest = np.inf
    for start, end in pairwise(path):
        along = np.subtract(end, start)
        part = sum((p - s) * a for p, s, a in zip(at_mm, start, along, strict=True)) / (along @ along)
        part = np.clip(part, 0, 1)
        squares = sum((p - s - part * a) ** 2 for p, s, a in zip(at_mm, start, along, strict=True))
        nearest = np.minimum(nearest, np.sqrt(squares))
    return nearest


if __name__ == "__main__":
    main()

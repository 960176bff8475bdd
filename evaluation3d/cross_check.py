"""The cross-check: surface metrics of random cases computed again with the package that defined them."""

from __future__ import annotations

import importlib
import math
import random
from types import ModuleType

import numpy as np

from samnn.errors import SamnnError

from .evaluate import Evaluation, read_case
from .surface import Definition

LARGEST_DIFFERENCE = 1e-6  # mm, or a fraction
SEED = 20180912

# The package that defines a surface: its name for pip, and the module of it that measures.
PACKAGES: dict[Definition, tuple[str, str]] = {
    "surfel": ("surface-distance", "surface_distance"),
    "voxel": ("medpy", "medpy.metric.binary"),
}


def require_package(surface: Definition) -> ModuleType:
    """Import the package that defines `surface`.

    Raises:
        SamnnError: it is not installed.
    """
    package, module = PACKAGES[surface]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SamnnError(
            f"The cross-check computes with {package}, which cannot be imported ({error}): "
            "pip install 'samnn[check]'."
        ) from error


def cross_check(evaluation: Evaluation, *, n_cases: int) -> str:
    """Compute `n_cases` random cases again, always the same ones, and say how far the results are apart.

    Raises:
        SamnnError: the package is missing, or a metric differs by more than `LARGEST_DIFFERENCE`.
    """
    package = PACKAGES[evaluation.surface][0]
    require_package(evaluation.surface)
    cases = evaluation.case_set.cases
    chosen = random.Random(SEED).sample(cases, min(n_cases, len(cases)))
    largest: dict[str, tuple[float, str]] = {}  # metric → difference, and where
    n_compared = 0
    for case in chosen:
        reference, prediction, _ = read_case(case, evaluation.labels, evaluation.case_set.channels)
        for name, result in evaluation.results[case.name].items():
            if result.outcome != "compared":
                continue
            n_compared += 1
            values = evaluation.labels.classes[name]
            masks = [np.isin(voxels, values) for voxels in (reference.voxels, prediction)]
            if evaluation.labels.ignore is not None:
                masks[1] &= reference.voxels != evaluation.labels.ignore
            expected = package_values(
                *masks,
                spacing_mm=reference.grid.spacing_mm,
                tolerance_mm=evaluation.tolerance_mm,
                surface=evaluation.surface,
            )
            for metric, value in expected.items():
                difference = abs(value - result.values[metric])
                here = (math.inf if math.isnan(difference) else difference, f"{case.name}, {name}")
                largest[metric] = max(largest.get(metric, here), here)
    head = (
        f"Cross-check with {package}: {len(chosen)} random cases, {n_compared} organs. Largest differences: "
        + ("; ".join(f"{metric} {difference:.1e}" for metric, (difference, _) in largest.items()) or "none")
    )
    wrong = [
        f"{metric} by {difference:g} ({where})"
        for metric, (difference, where) in largest.items()
        if difference > LARGEST_DIFFERENCE
    ]
    if wrong:
        raise SamnnError(f"{head}. More than {LARGEST_DIFFERENCE:g} apart: {'; '.join(wrong)}.")
    return f"{head}."


def package_values(
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing_mm: tuple[float, ...],
    tolerance_mm: float,
    surface: Definition,
) -> dict[str, float]:
    """Measure two masks, neither of them empty, with the package: our names, its numbers."""
    package = require_package(surface)
    if surface == "voxel":
        there = package.asd(reference, prediction, voxelspacing=spacing_mm)
        back = package.asd(prediction, reference, voxelspacing=spacing_mm)
        return {
            "hausdorff": package.hd(prediction, reference, voxelspacing=spacing_mm),
            "hausdorff95": package.hd95(prediction, reference, voxelspacing=spacing_mm),
            "assd": package.assd(prediction, reference, voxelspacing=spacing_mm),
            "masd": (there + back) / 2,
        }
    found = package.compute_surface_distances(reference, prediction, spacing_mm)
    distances_mm = np.concatenate([found["distances_gt_to_pred"], found["distances_pred_to_gt"]])
    areas_mm2 = np.concatenate([found["surfel_areas_gt"], found["surfel_areas_pred"]])
    return {
        "hausdorff": package.compute_robust_hausdorff(found, 100),
        "hausdorff95": package.compute_robust_hausdorff(found, 95),
        "nsd": package.compute_surface_dice_at_tolerance(found, tolerance_mm),
        "assd": np.average(distances_mm, weights=areas_mm2),
        "masd": np.mean(package.compute_average_surface_distance(found)),
    }

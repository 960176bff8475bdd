"""Distances between the surfaces of two masks, each surface element weighted by its area."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import surface_distance


@dataclass(frozen=True)
class SurfaceDistances:
    """For each surface element of one mask the distance to the other mask's surface; sorted by distance.

    The definition is that of DeepMind's `surface-distance` (Nikolov et al. 2018, arXiv:1809.04430): a surface
    element (surfel) sits at each corner shared by 2×2×2 voxels that are not all in or all out of the mask, and has
    the area of the marching-cubes patch there. In 2D: contour elements and their lengths in mm.
    """

    reference_to_prediction_mm: np.ndarray
    reference_areas_mm2: np.ndarray
    prediction_to_reference_mm: np.ndarray
    prediction_areas_mm2: np.ndarray


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, *, spacing_mm: tuple[float, ...]
) -> SurfaceDistances:
    """Measure both directions between two boolean masks of one shape, 2D or 3D, neither of them empty."""
    found = surface_distance.compute_surface_distances(reference, prediction, spacing_mm)
    return SurfaceDistances(
        reference_to_prediction_mm=found["distances_gt_to_pred"],
        reference_areas_mm2=found["surfel_areas_gt"],
        prediction_to_reference_mm=found["distances_pred_to_gt"],
        prediction_areas_mm2=found["surfel_areas_pred"],
    )

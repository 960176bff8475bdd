"""Surface metrics against DeepMind's package on whole, uncropped masks, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
import surface_distance
from scipy import ndimage

from samnn.evaluation3d import evaluate_case

SPACING_MM = (0.7, 1.3, 2.9)
TOLERANCE_MM = 1.4


def values(reference, prediction, *, spacing_mm=SPACING_MM):
    case = evaluate_case(
        reference.astype(np.uint8),
        prediction.astype(np.uint8),
        spacing_mm=spacing_mm,
        labels={"organ": 1},
        tolerance_mm=TOLERANCE_MM,
    )
    return case["organ"].values


def blob(seed: int, shape=(18, 15, 12)) -> np.ndarray:
    """A smooth random mask that touches the border."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, 1.5) > 0.05


def specks(seed: int) -> np.ndarray:
    """A few single voxels, anywhere."""
    voxels = np.zeros((18, 15, 12), bool)
    rng = np.random.default_rng(seed)
    voxels[tuple(rng.integers(0, voxels.shape, (5, 3)).T)] = True
    return voxels


PAIRS = {
    "blobs": lambda: (blob(1), blob(2)),
    "blob and specks": lambda: (blob(3), specks(4)),
    "specks": lambda: (specks(5), specks(6)),
    "noise": lambda: np.random.default_rng(8).random((2, 7, 8, 9)) < 0.4,
    "one slice": lambda: (blob(9, (20, 20, 1)), blob(10, (20, 20, 1))),
    "whole volume": lambda: (np.ones((6, 5, 4), bool), blob(11, (6, 5, 4))),
    "far corners": lambda: (
        np.pad(np.ones((1, 1, 1), bool), ((0, 9), (0, 9), (0, 9))),
        np.pad(np.ones((1, 1, 1), bool), ((9, 0), (9, 0), (9, 0))),
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_equals_the_surface_distance_package_on_whole_masks(pair):
    reference, prediction = PAIRS[pair]()
    found = values(reference, prediction)
    theirs = surface_distance.compute_surface_distances(reference, prediction, SPACING_MM)
    areas = np.concatenate([theirs["surfel_areas_gt"], theirs["surfel_areas_pred"]])
    distances_mm = np.concatenate([theirs["distances_gt_to_pred"], theirs["distances_pred_to_gt"]])
    expected = {
        "hausdorff": surface_distance.compute_robust_hausdorff(theirs, 100),
        "hausdorff95": surface_distance.compute_robust_hausdorff(theirs, 95),
        "nsd": surface_distance.compute_surface_dice_at_tolerance(theirs, TOLERANCE_MM),
        "assd": np.average(distances_mm, weights=areas),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_permuted_axes_with_permuted_spacing_change_nothing(order):
    reference, prediction = blob(1), blob(2)
    permuted = values(
        reference.transpose(order),
        prediction.transpose(order),
        spacing_mm=tuple(SPACING_MM[axis] for axis in order),
    )
    assert permuted == pytest.approx(values(reference, prediction), abs=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirroring_both_changes_nothing(axis):
    reference, prediction = blob(1), blob(2)
    mirrored = values(np.flip(reference, axis), np.flip(prediction, axis))
    assert mirrored == pytest.approx(values(reference, prediction), abs=1e-9)


def test_swapped_roles_change_only_sensitivity_precision_and_specificity():
    there, back = values(blob(1), blob(2)), values(blob(2), blob(1))
    assert there.pop("sensitivity") == back.pop("precision")
    assert there.pop("precision") == back.pop("sensitivity")
    assert there.pop("specificity") != back.pop("specificity")
    assert there == pytest.approx(back, abs=1e-9)


def test_an_empty_margin_changes_only_specificity():
    reference, prediction = blob(1), blob(2)
    plain, padded = values(reference, prediction), values(np.pad(reference, 5), np.pad(prediction, 5))
    assert padded.pop("specificity") > plain.pop("specificity")
    assert padded == pytest.approx(plain, abs=1e-9)


def test_distances_scale_with_the_spacing():
    reference, prediction = blob(1), blob(2)
    doubled = values(reference, prediction, spacing_mm=tuple(2 * step for step in SPACING_MM))
    single = values(reference, prediction)
    for name in ("assd", "hausdorff", "hausdorff95"):
        assert doubled[name] == pytest.approx(2 * single[name])

"""Surface metrics against the packages that defined them, on whole masks, and what must not change them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from surface_distance import lookup_tables

from samnn.evaluation3d import evaluate_case
from samnn.evaluation3d.cross_check import package_values
from samnn.evaluation3d.surfels import surfel_sizes
from samnn.io import read_labels

SPACING_MM = (0.7, 1.3, 2.9)
TOLERANCE_MM = 1.4


def values(reference, prediction, *, spacing_mm=SPACING_MM, surface="surfel"):
    case = evaluate_case(
        reference.astype(np.uint8),
        prediction.astype(np.uint8),
        spacing_mm=spacing_mm,
        labels={"organ": 1},
        tolerance_mm=TOLERANCE_MM,
        surface=surface,
    )
    return case["organ"].values


def assert_as_the_package(reference, prediction, *, surface, spacing_mm=SPACING_MM):
    found = values(reference, prediction, spacing_mm=spacing_mm, surface=surface)
    expected = package_values(
        reference, prediction, spacing_mm=spacing_mm, tolerance_mm=TOLERANCE_MM, surface=surface
    )
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


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
    "two dimensions": lambda: (blob(12, (40, 30)), blob(13, (40, 30))),
    "noise in two dimensions": lambda: np.random.default_rng(14).random((2, 12, 15)) < 0.4,
}


@pytest.mark.parametrize("surface", ["surfel", "voxel"])
@pytest.mark.parametrize("pair", PAIRS)
def test_equals_the_package_on_whole_masks(pair, surface):
    reference, prediction = PAIRS[pair]()
    assert_as_the_package(reference, prediction, surface=surface, spacing_mm=SPACING_MM[: reference.ndim])


def test_elements_on_both_sides_of_a_slab_find_each_other():
    """Plates across a box of more planes than are looked at together, `surface.VOXELS_A_SLAB`."""
    x, y, _ = np.indices((140, 110, 90))
    assert_as_the_package(abs(x - 1.1 * y - 9) < 5, abs(x - 1.13 * y - 8) < 5, surface="surfel")


@given(
    arrays(bool, st.tuples(st.just(2), *[st.integers(1, 5)] * 3)),
    st.tuples(*[st.floats(0.2, 5)] * 3),
    st.sampled_from(["surfel", "voxel"]),
)
def test_equals_the_package_on_any_small_masks(masks, spacing_mm, surface):
    masks[:, 0, 0, 0] = True  # neither is empty
    assert_as_the_package(*masks, surface=surface, spacing_mm=spacing_mm)


@pytest.mark.parametrize("surface", ["surfel", "voxel"])
@pytest.mark.parametrize(
    "dataset", ["Dataset901_OpenKBPHN", "Dataset905_TSAbdomenSlabs", "Dataset907_TSThoraxCTA"]
)
def test_equals_the_package_on_real_organs(shared, dataset, surface):
    """The reference against itself moved along two axes, with an edge worn away."""
    path = min((shared / "data").glob(f"{dataset}/labelsTs/*.nii.gz"))
    volume = read_labels(path)
    for value in np.unique(volume.voxels)[1:4]:
        organ = np.pad(volume.voxels == value, 3)
        prediction = np.roll(organ, (2, -1), axis=(0, 1)) & ~np.roll(organ, 3, axis=1)
        box = ndimage.find_objects((organ | prediction).astype(np.uint8))[0]
        if prediction.any():
            assert_as_the_package(
                organ[box], prediction[box], surface=surface, spacing_mm=volume.grid.spacing_mm
            )


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), SPACING_MM, (4, 0.5, 1.1)])
def test_all_256_surface_elements_have_the_sizes_of_the_package(spacing_mm):
    theirs = lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    kernel = np.array(lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL)
    for code, size in enumerate(surfel_sizes(spacing_mm)):
        inside = np.array([kernel[z, y, x] for x, y, z in product((0, 1), repeat=3)])
        their_code = sum(int(inside[bit]) for bit in range(8) if code >> bit & 1)
        assert size == pytest.approx(theirs[their_code], abs=1e-12), f"{code:08b}"


@pytest.mark.parametrize("spacing_mm", [(1, 1), SPACING_MM[:2]])
def test_all_16_contour_elements_have_the_lengths_of_the_package(spacing_mm):
    theirs = lookup_tables.create_table_neighbour_code_to_contour_length(spacing_mm)
    kernel = np.array(lookup_tables.ENCODE_NEIGHBOURHOOD_2D_KERNEL)
    for code, size in enumerate(surfel_sizes(spacing_mm)):
        inside = np.array([kernel[y, x] for x, y in product((0, 1), repeat=2)])
        their_code = sum(int(inside[bit]) for bit in range(4) if code >> bit & 1)
        assert size == pytest.approx(theirs[their_code], abs=1e-12), f"{code:04b}"


def test_a_distance_of_whole_steps_is_not_rounded_away_from_the_tolerance():
    """Two steps of 0.7 mm are 1.4 mm, and within a tolerance of 1.4 mm, wherever they lie in the volume."""
    for start in range(40):
        reference = np.zeros((60, 5, 5), np.uint8)
        reference[start, 2, 2] = 1
        found = values(reference, np.roll(reference, 2, axis=0), spacing_mm=(0.7, 1, 1))
        assert found["nsd"] == 1.0


@pytest.mark.parametrize("surface", ["surfel", "voxel"])
def test_memory_order_changes_nothing(surface):
    reference, prediction = blob(1), blob(2)
    expected = values(reference, prediction, surface=surface)
    orders = [
        np.ascontiguousarray,
        np.asfortranarray,
        lambda a: a.transpose(1, 2, 0).copy().transpose(2, 0, 1),
    ]
    for mine, theirs in product(orders, orders):
        assert values(mine(reference), theirs(prediction), surface=surface) == pytest.approx(
            expected, abs=1e-9
        )


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


def test_swapped_roles_change_only_sensitivity_precision_specificity_and_a_sign():
    there, back = values(blob(1), blob(2)), values(blob(2), blob(1))
    assert there.pop("sensitivity") == back.pop("precision")
    assert there.pop("precision") == back.pop("sensitivity")
    assert there.pop("specificity") != back.pop("specificity")
    assert there.pop("volume_error") == -back.pop("volume_error")
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
    for name in ("assd", "hausdorff", "hausdorff95", "masd"):
        assert doubled[name] == pytest.approx(2 * single[name])

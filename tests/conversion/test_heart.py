"""The displaced heart: the map of the description, its way back, and what the image says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import affine_transform
from small_thorax import SHAPE, ball, published_displacement, thorax

from samnn.dataset_conversion import _heart
from samnn.geometry import Grid

WHOLE = (512, 512, 44)  # as wide as SegTHOR; high enough for a heart and the shift of 15 slices


def iou(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(bool), b.astype(bool)
    return (a & b).sum() / (a | b).sum()


def random_heart(seed: int) -> np.ndarray:
    """A heart of 30 to 60 voxels' radius, where hearts lie; its displaced copy stays inside the volume."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform((260, 200, 28), (330, 280, 31))
    return ball(tuple(centre), tuple(rng.uniform((30, 30, 8), (60, 50, 12))), WHOLE)


def test_the_centre_of_rotation_moves_by_the_shift_alone():
    """A = C R C⁻¹ T leaves C fixed after T: the voxel (275, 200, 0) - (50, 40, 15) is read from (275, 200, 0)."""
    read_from = _heart.displacement(WHOLE) @ [225, 160, -15, 1]
    np.testing.assert_allclose(read_from, [275, 200, 0, 1], atol=1e-9)


def test_a_step_along_x_is_turned_by_minus_27_degrees():
    matrix = _heart.displacement(WHOLE)
    np.testing.assert_allclose(matrix[:3, 0], [0.891006524, -0.453990500, 0], atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_a_displaced_heart_is_given_back(seed):
    heart = random_heart(seed)
    displaced = published_displacement(heart)
    assert iou(heart, displaced) < 0.5
    assert iou(heart, _heart.move_back(displaced)) > 0.99


def test_moving_back_is_the_inverse_affine_of_order_zero():
    displaced = published_displacement(random_heart(3)).astype(np.uint8)
    inverse = np.linalg.inv(_heart.displacement(WHOLE))
    np.testing.assert_array_equal(_heart.move_back(displaced), affine_transform(displaced, inverse, order=0))


def test_displacing_is_the_tampering_of_the_course():
    heart = random_heart(4)
    np.testing.assert_array_equal(_heart.displace(heart), published_displacement(heart))


def test_a_heart_displaced_into_the_first_slice_loses_none_of_it():
    """The z shift is whole, so no rounding may push slice 0 out of the volume."""
    heart = np.zeros(SHAPE, bool)
    heart[70:90, 50:70, 15:25] = True
    displaced = _heart.displace(heart)
    assert displaced[:, :, 0].any() and _heart.outside(displaced) == 0
    assert _heart.move_back(displaced)[:, :, 15].any()


def test_only_a_heart_that_was_not_displaced_can_leave_the_volume_when_moved_back():
    assert _heart.outside(_heart.displace(ball((72, 60, 25), (13, 11, 8)))) == 0
    assert _heart.outside(ball((72, 60, 25), (13, 11, 8))) > 0.5


def test_the_image_tells_a_displaced_heart_from_a_true_one():
    image, labels = thorax(22)
    low = np.concatenate([image, np.full_like(image, -1000)], axis=2)  # room above: moving back stays inside
    heart = np.concatenate([labels == 2, np.zeros(SHAPE, bool)], axis=2)
    assert _heart.judge(low, heart).choice == "keep"
    assert _heart.judge(low, _heart.displace(heart)).choice == "repair"


@pytest.mark.parametrize("hounsfield", [40, -900])
def test_an_image_without_contrast_between_both_places_tells_nothing(hounsfield):
    heart = _heart.displace(ball((72, 60, 25), (13, 11, 8)))
    assert _heart.judge(np.full(SHAPE, hounsfield, np.int16), heart).choice is None


def test_a_heart_at_the_edge_of_the_volume_is_noticed():
    assert _heart.touches_border(ball((72, 60, 4), (13, 11, 8)))
    assert not _heart.touches_border(ball((72, 60, 18), (13, 11, 8)))


def test_agreement_by_hand():
    """Two bars of 4 voxels that share 2: IoU 2/6; centroids 2 voxels of 1.5 mm apart."""
    a, b = np.zeros((8, 1, 1)), np.zeros((8, 1, 1))
    a[0:4], b[2:6] = 1, 1
    grid = Grid((8, 1, 1), (1.5, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert _heart.agreement(a, b, grid) == pytest.approx((1 / 3, 3.0))

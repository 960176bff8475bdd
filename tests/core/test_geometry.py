"""When two grids are the same, and in which words they are not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from samnn.geometry import Grid

UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
GRID = Grid((512, 512, 180), (0.9765625, 0.9765625, 2.5), (-250.0, -250.0, 40.0), UPRIGHT)


def turned(degrees: float) -> tuple[float, ...]:
    """A rotation about z."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (c, -s, 0.0, s, c, 0.0, 0.0, 0.0, 1.0)


def test_a_grid_does_not_differ_from_itself():
    assert GRID.differences(GRID) == []


@pytest.mark.parametrize(
    "same",
    [
        replace(GRID, spacing_mm=(0.9765620231628418, 0.9765620231628418, 2.5)),  # rounded to float32
        replace(GRID, origin_mm=(-250.0, -250.0, 40.001)),
        replace(GRID, direction=turned(0.0005)),
    ],
)
def test_rounding_that_moves_no_voxel_visibly_is_no_difference(same):
    assert GRID.differences(same) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(GRID, shape=(512, 512, 179)), ["shape (512, 512, 180) against (512, 512, 179)"]),
        (
            replace(GRID, spacing_mm=(0.9765625, 0.9765625, 2.501)),
            [
                "spacing (mm) (0.9765625, 0.9765625, 2.5) against (0.9765625, 0.9765625, 2.501)",
                "corners up to 0.179 mm apart",
            ],
        ),
        (
            replace(GRID, origin_mm=(-250.0, -250.0, 41.5)),
            ["origin (mm) (-250, -250, 40) against (-250, -250, 41.5)", "corners up to 1.5 mm apart"],
        ),
        (
            replace(GRID, direction=(-1.0, *UPRIGHT[1:])),
            [
                "direction (1, 0, 0, 0, 1, 0, 0, 0, 1) against (-1, 0, 0, 0, 1, 0, 0, 0, 1)",
                "corners up to 998 mm apart",
            ],
        ),
    ],
)
def test_a_difference_is_said_in_words_with_both_numbers(other, words):
    assert GRID.differences(other) == words


def test_a_tiny_spacing_error_counts_for_what_it_moves():
    """0.0001 mm a slice is nothing over 3 slices and 0.018 mm over 180."""
    off = (0.9765625, 0.9765625, 2.5001)
    few = replace(GRID, shape=(512, 512, 4))
    assert few.differences(replace(few, spacing_mm=off)) == []
    assert GRID.differences(replace(GRID, spacing_mm=off)) != []


def test_numbers_that_differ_are_printed_so_that_they_differ():
    for spacing in (0.97657, 0.976566, 0.9765661):
        words = GRID.differences(replace(GRID, spacing_mm=(spacing, 0.9765625, 2.5)), tolerance_mm=1e-6)
        before, after = words[0].removeprefix("spacing (mm) ").split(" against ")
        assert before != after


def test_two_and_three_dimensions_differ():
    flat = Grid((512, 512), (0.9765625, 0.9765625), (-250.0, -250.0), (1.0, 0.0, 0.0, 1.0))
    assert flat.differences(flat) == []
    assert GRID.differences(flat) == ["shape (512, 512, 180) against (512, 512)"]


def test_a_geometry_that_is_not_a_number_is_never_the_same():
    assert GRID.differences(replace(GRID, origin_mm=(math.nan, 0.0, 0.0))) != []

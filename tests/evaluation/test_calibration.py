"""Calibration metrics against numbers worked out by hand, and against maps that are calibrated by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from samnn.evaluation3d.calibration import N_BINS, NOTHING, measure
from samnn.evaluation3d.metrics import brier, ece, nll

METRICS = {"brier": brier, "ece": ece, "nll": nll}


def metric(name: str, p, y) -> float:
    return METRICS[name].compute(measure(np.array(p), np.array(y, bool)))


def test_four_voxels_by_hand():
    """Bins of 1/15: 0.01 and 0.03 lie in the first, 0.7 in the eleventh (0.667 to 0.733), 0.9 in the fourteenth."""
    p, y = [0.01, 0.03, 0.7, 0.9], [0, 1, 1, 1]
    assert metric("ece", p, y) == pytest.approx(2 / 4 * abs(0.5 - 0.02) + 1 / 4 * 0.3 + 1 / 4 * 0.1)
    assert metric("brier", p, y) == pytest.approx((0.01**2 + 0.97**2 + 0.3**2 + 0.1**2) / 4)
    assert metric("nll", p, y) == pytest.approx(-math.log(0.99 * 0.03 * 0.7 * 0.9) / 4)


def test_certainty_that_is_right_is_perfect_and_one_that_is_wrong_the_worst():
    for name, worst in [("ece", 1), ("brier", 1), ("nll", -math.log(1e-7))]:
        assert metric(name, [0.0, 1.0], [0, 1]) == 0
        assert metric(name, [0.0, 1.0], [1, 0]) == pytest.approx(worst)


def test_always_saying_the_frequency_is_calibrated_but_not_sharp():
    """A quarter of the voxels is of the class: ECE 0, Brier 1/4 · 3/4, NLL the entropy."""
    p, y = [0.25] * 8, [1, 0, 0, 0, 1, 0, 0, 0]
    assert metric("ece", p, y) == 0
    assert metric("brier", p, y) == pytest.approx(3 / 16)
    assert metric("nll", p, y) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))


def test_a_map_that_is_calibrated_by_construction_has_an_ece_near_zero_and_a_sharpened_one_has_not():
    rng = np.random.default_rng(1)
    p = rng.random(1_000_000)
    y = rng.random(len(p)) < p
    assert metric("ece", p, y) < 0.002  # each bin's mean is off by √(1/4 / 66667) at most, in the mean
    sharpened = p**2 / (p**2 + (1 - p) ** 2)
    assert metric("ece", sharpened, y) > 0.05
    assert metric("nll", sharpened, y) > metric("nll", p, y)  # proper: the truth is best


@pytest.mark.parametrize("name", METRICS)
def test_without_a_voxel_a_metric_is_undefined(name):
    assert math.isnan(metric(name, [], []))


probabilities = arrays.arrays(np.float32, st.integers(1, 50), elements=st.floats(0, 1, width=32))


@given(probabilities, st.integers(0, 2**32 - 1), st.integers(0, 50))
def test_parts_add_up_to_the_whole(p, seed, cut):
    y = np.random.default_rng(seed).random(len(p)) < 0.5
    whole, parts = measure(p, y), measure(p[:cut], y[:cut]) + measure(p[cut:], y[cut:]) + NOTHING
    assert (whole.n, whole.sum_y) == (parts.n, parts.sum_y)
    assert whole.sum_p == pytest.approx(parts.sum_p)
    assert whole.sum_squared_error == pytest.approx(parts.sum_squared_error)
    assert whole.sum_log_loss == pytest.approx(parts.sum_log_loss)
    assert whole.n_voxels == len(p) and len(whole.n) == N_BINS


@given(probabilities, st.integers(0, 2**32 - 1))
def test_the_ece_of_a_class_is_that_of_its_complement_but_for_the_edges_of_bins(p, seed):
    y = np.random.default_rng(seed).random(len(p)) < 0.5
    p = np.clip((np.floor(p * 14) + 0.5) / N_BINS, 0, 1)  # the middles of bins
    assert metric("ece", p, y) == pytest.approx(metric("ece", 1 - p, ~y))
    low, high = nll.METRIC.range
    assert low <= metric("nll", p, y) <= high

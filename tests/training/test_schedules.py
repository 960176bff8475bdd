"""Schedules are pure functions of the iteration."""

import math

import pytest
import torch

from samnn.training.schedules import CosinePerEpoch, CosineWarmup, PolyWarmup


def build(schedule: type, *, total: int, warmup: int) -> PolyWarmup:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return schedule(optimizer, 0.5, total_iterations=total, iterations_per_epoch=10, warmup_iterations=warmup)


def test_warmup_is_linear_and_ends_at_the_peak() -> None:
    schedule = build(PolyWarmup, total=100, warmup=5)
    assert [schedule.lr(i) for i in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])


def test_warmup_takes_at_most_a_tenth_of_the_run() -> None:
    assert build(PolyWarmup, total=100, warmup=1000).warmup_iterations == 10
    assert build(PolyWarmup, total=5, warmup=1000).lr(0) == 0.5


def test_poly_and_cosine_by_hand() -> None:
    poly, cosine = build(PolyWarmup, total=110, warmup=10), build(CosineWarmup, total=110, warmup=10)
    assert poly.lr(60) == pytest.approx(0.5 * 0.5**0.9)  # half of the 100 iterations after the warm-up
    assert cosine.lr(60) == pytest.approx(0.25)
    assert cosine.lr(35) == pytest.approx(0.25 * (1 + math.cos(math.pi / 4)))


def test_stepping_by_epoch_sets_the_rate_of_its_first_iteration() -> None:
    schedule = build(PolyWarmup, total=100, warmup=5)
    schedule.step(3)
    assert schedule.optimizer.param_groups[0]["lr"] == schedule.lr(30)


def test_cosine_per_epoch_by_hand() -> None:
    schedule = build(CosinePerEpoch, total=40, warmup=0)
    half = 1e-7 + (0.5 - 1e-7) / 2
    assert [schedule.lr(i) for i in (0, 9, 20, 29)] == pytest.approx([0.5, 0.5, half, half])

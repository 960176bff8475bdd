"""PReLU for CPUs: torch's numbers. Dropout: torch's distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from samnn.nn.elementwise import Dropout, PReLU


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("of_gradient", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("slope", [0.25, 0.0, 1.0, -0.5])
def test_prelu_and_its_gradients_are_torchs(memory_format, of_gradient, slope):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 6).contiguous(memory_format=memory_format).requires_grad_()
    grad = torch.randn(3, 4, 5, 6).contiguous(memory_format=of_gradient)
    found = {}
    for kind in (PReLU, nn.PReLU):
        layer = kind()
        layer.weight.data.fill_(slope)
        y = layer(x)
        found[kind] = (y, *torch.autograd.grad(y, [x, layer.weight], grad))
    for ours, torchs in zip(found[PReLU], found[nn.PReLU], strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-5)


def test_prelu_of_a_view_with_gaps_has_the_right_gradients():
    whole = torch.randn(2, 6, 4, 4, requires_grad=True)
    layer, torchs = PReLU(), nn.PReLU()
    for part in (whole[:, 1:4], whole[..., ::2], whole[:1].expand(3, -1, -1, -1)):
        ours = torch.autograd.grad(layer(part).square().sum(), [whole, layer.weight], retain_graph=True)
        expected = torch.autograd.grad(torchs(part).square().sum(), [whole, torchs.weight])
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_prelu_in_double_precision_passes_a_numerical_check():
    layer = PReLU().double()
    assert torch.autograd.gradcheck(layer, torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5])
def test_dropout_makes_zeros_of_its_share_and_scales_the_others(p):
    torch.manual_seed(0)
    n = 400_000
    y = Dropout(p)(torch.ones(4, n // 4))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    assert abs((y == 0).sum().item() - n * p) < 4 * math.sqrt(n * p * (1 - p))


def test_values_are_dropped_independently():
    """The zeros of a pair, of a row and of the next draw: as many together as the product of their shares."""
    torch.manual_seed(0)
    p, draws = 0.2, 20_000
    layer, x = Dropout(p), torch.ones(8)
    zeros = torch.stack([layer(x) for _ in range(draws)]) == 0
    numbers = torch.bincount(zeros.sum(1), minlength=9) / draws
    expected = torch.tensor([math.comb(8, k) * p**k * (1 - p) ** (8 - k) for k in range(9)])
    torch.testing.assert_close(numbers, expected, rtol=0, atol=0.012)
    together = zeros.float().T @ zeros.float() / draws
    next_draw = zeros[:-1].float().T @ zeros[1:].float() / draws
    off_diagonal = ~torch.eye(8, dtype=torch.bool)
    for share in (together[off_diagonal], next_draw):
        torch.testing.assert_close(share, torch.full_like(share, p**2), rtol=0, atol=0.009)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("of_gradient", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_is_dropped_and_scaled_where_the_value_was(memory_format, of_gradient):
    torch.manual_seed(0)
    x = torch.rand(3, 4, 5, 6).add(1).contiguous(memory_format=memory_format).requires_grad_()
    grad = torch.rand(3, 4, 5, 6).contiguous(memory_format=of_gradient)
    y = Dropout(0.3)(x)
    (found,) = torch.autograd.grad(y, x, grad)
    assert (y == 0).any()
    torch.testing.assert_close(y.detach(), x.detach() / 0.7 * (y != 0))
    torch.testing.assert_close(found, grad / 0.7 * (y != 0))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.9, 1.0])
def test_dropout_passes_everything_in_evaluation_and_takes_what_torch_takes(p):
    layer, x = Dropout(p), torch.ones(2, 3, 4)[:, 1:]
    assert torch.equal(layer.eval()(x), x)
    assert layer.train()(x).shape == x.shape
    assert layer(torch.ones(0, 3)).shape == (0, 3)

"""PReLU and dropout for CPUs: torch's numbers, and the stated share of values."""

from __future__ import annotations

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
def test_dropout_drops_the_stated_share_independently_and_keeps_the_mean(p):
    torch.manual_seed(0)
    n = 1 << 20
    y = Dropout(p)(torch.ones(n))
    dropped = (y == 0).float()
    assert abs(dropped.mean() - p) < 5 * (p * (1 - p) / n) ** 0.5 + 1 / (1 << 17)
    assert torch.equal(y[y != 0].unique(), torch.tensor([1 / (1 - round(p * 65536) / 65536)]))
    for step in (1, 2, 3, 4, 5, 64):  # values that share a random number, and those that do not
        both = (dropped[step:] * dropped[:-step]).mean()
        assert abs(both - p * p) < 5 * p / n**0.5


def test_dropout_of_any_memory_format_scales_its_gradient_as_its_values():
    for x in (
        torch.rand(2, 3, 5, 7),
        torch.rand(2, 5, 7, 3).permute(0, 3, 1, 2),
        torch.rand(3),
        torch.rand(2, 8)[:, ::2],
    ):
        x = (x + 1).detach().requires_grad_()
        y = Dropout(0.4)(x)
        (grad,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(grad, (y / x).detach())


def test_dropout_is_drawn_from_torchs_seed_and_is_nothing_in_evaluation():
    x, layer = torch.rand(1000), Dropout(0.3)
    torch.manual_seed(1)
    first = layer(x)
    assert not torch.equal(layer(x), first)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x) and not Dropout(1.0)(x).any()

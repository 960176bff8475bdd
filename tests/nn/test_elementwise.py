"""PReLU for CPUs: torch's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samnn.nn.elementwise import PReLU


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

"""The form of attention for CPUs equals the plain one, element by element, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from samnn.nn import chunked_attention
from samnn.nn.sam_attention import attention


class Layer(nn.Module):
    """What `attention` asks of a layer: two heads of eight channels."""

    num_heads, scale = 2, 8**-0.5

    def __init__(self, rows, columns):
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.qkv.requires_grad_(False)
        self.rel_pos_h = nn.Parameter(torch.randn(2 * rows - 1, 8))
        self.rel_pos_w = nn.Parameter(torch.randn(2 * columns - 1, 8))


@pytest.fixture
def few_scores_at_once(monkeypatch):
    """So few that several chunks are needed, the last of them smaller."""
    monkeypatch.setattr(chunked_attention, "SCORES_AT_ONCE", 800)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0, 1, 3, 4]), st.integers(1, 2))
def by_both_forms(height, width, window, batch):
    torch.manual_seed(height * 10 + width)
    layer = Layer(*((window, window) if window else (height, width)))
    qkv = torch.randn(batch, height, width, 48, requires_grad=True)
    wanted = torch.randn(batch, height, width, 16)
    results = []
    for trainable in (False, True):  # trainable positions take the plain form
        layer.rel_pos_h.requires_grad = layer.rel_pos_w.requires_grad = trainable
        out = attention(qkv, layer, window)
        results.append((out.detach(), *torch.autograd.grad(out, qkv, wanted)))
        assert ("Chunked" in type(out.grad_fn).__name__) != trainable
    for chunked, plain in zip(*results, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-4, atol=1e-5)


def test_the_form_for_cpus_equals_the_plain_one():
    by_both_forms()


def test_the_form_for_cpus_equals_the_plain_one_in_several_chunks(few_scores_at_once):
    by_both_forms()


def test_windows_are_filled_with_the_projection_of_zeros():
    """By hand: the grid of tokens with zeros beside it, projected and then cut into windows without a rest."""
    torch.manual_seed(0)
    layer = Layer(4, 4)
    tokens = torch.randn(1, 6, 7, 16)
    padded = torch.zeros(1, 8, 8, 16)
    padded[:, :6, :7] = tokens
    with torch.no_grad():
        ours = attention(layer.qkv(tokens), layer, 4)
        by_hand = attention(layer.qkv(padded), layer, 4)[:, :6, :7]
    torch.testing.assert_close(ours, by_hand)


def test_scores_are_those_of_sams_definition():
    """One head by hand: a scaled product, and the query's product with the offset's row and column vectors."""
    torch.manual_seed(0)
    layer = Layer(2, 3)
    layer.num_heads, layer.scale = 1, 16**-0.5
    layer.rel_pos_h, layer.rel_pos_w = (nn.Parameter(torch.randn(n, 16)) for n in (3, 5))
    qkv = torch.randn(1, 2, 3, 48)
    places = [(row, column) for row in range(2) for column in range(3)]
    q, k, v = qkv[0].split(16, dim=-1)
    expected = torch.zeros(1, 2, 3, 16)
    for i in places:
        scores = torch.stack([
            layer.scale * q[i] @ k[j] + q[i] @ layer.rel_pos_h[i[0] - j[0] + 1] + q[i] @ layer.rel_pos_w[i[1] - j[1] + 2]
            for j in places
        ])  # fmt: skip
        expected[0][i] = sum(p * v[j] for p, j in zip(scores.softmax(0), places, strict=True))
    for trainable in (False, True):
        layer.rel_pos_h.requires_grad = layer.rel_pos_w.requires_grad = trainable
        torch.testing.assert_close(attention(qkv, layer, 0), expected)

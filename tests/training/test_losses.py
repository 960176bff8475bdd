"""Generalised Dice against numbers worked out by hand."""

import pytest
import torch

from samnn.training.losses import GeneralisedDiceLoss


def onehot(labels: list[int], n: int = 2) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), n).float().T[None]  # (1, C, voxels)


def test_by_hand() -> None:
    """Reference 1 1 1 0, prediction 1 1 0 0: background weight 1, foreground 1/9.

    Overlap: 1 · 1 + 2/9; sums: 1 · (2 + 1) + (2 + 3)/9; so 2 · (11/9) / (32/9) = 11/16."""
    loss = GeneralisedDiceLoss(smooth=0)(onehot([1, 1, 0, 0]), torch.tensor([[[1, 1, 1, 0]]]))
    assert float(loss) == pytest.approx(-11 / 16)


def test_perfect_agreement_is_minus_one_and_none_is_zero() -> None:
    labels = [0, 1, 2, 2]
    loss = GeneralisedDiceLoss()
    assert float(loss(onehot(labels, 3), torch.tensor([[labels]]))) == pytest.approx(-1)
    assert float(loss(onehot([1, 2, 0, 0], 3), torch.tensor([[labels]]))) == pytest.approx(0, abs=1e-4)


def test_an_absent_class_weighs_like_the_rarest_present_one() -> None:
    """Class 2 is absent; of 8 background voxels one is taken for it: weights 1/64, -, 1/64 → 14/16."""
    reference = torch.zeros(1, 1, 8, dtype=torch.long)
    predicted = onehot([0, 0, 0, 0, 0, 0, 0, 2], 3)
    assert float(GeneralisedDiceLoss(smooth=0)(predicted, reference)) == pytest.approx(-14 / 16)


def test_masked_voxels_do_not_count() -> None:
    reference = torch.tensor([[[1, 1, 1, 0]]])
    mask = torch.tensor([[[1, 1, 0, 1]]])
    loss = GeneralisedDiceLoss(smooth=0)(onehot([1, 1, 0, 0]), reference, loss_mask=mask)
    assert float(loss) == pytest.approx(-1)


def test_batch_dice_sums_before_it_divides() -> None:
    predicted = torch.cat([onehot([1, 1, 0, 0]), onehot([0, 0, 0, 0])])
    reference = torch.tensor([[[1, 1, 1, 0]], [[0, 0, 0, 0]]])
    whole = GeneralisedDiceLoss(smooth=0)(
        onehot([1, 1, 0, 0, 0, 0, 0, 0]), torch.tensor([[[1, 1, 1, 0, 0, 0, 0, 0]]])
    )
    assert float(GeneralisedDiceLoss(batch_dice=True, smooth=0)(predicted, reference)) == pytest.approx(
        float(whole)
    )


def test_gradient_flows_to_the_logits() -> None:
    logits = torch.randn(2, 3, 5, 5, requires_grad=True)
    GeneralisedDiceLoss(lambda x: x.softmax(1))(logits, torch.randint(0, 3, (2, 1, 5, 5))).backward()
    assert logits.grad.abs().sum() > 0

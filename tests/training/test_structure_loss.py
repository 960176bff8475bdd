"""The structure loss against numbers worked out by hand, the published formula, and its own generalisations."""

import math

import pytest
import torch
import torch.nn.functional as F

from samnn.training.structure_loss import StructureLoss, against_the_rest

A = 1 / 31**2  # what one pixel adds to the mean of the window around it


def test_one_pixel_by_hand():
    """A picture of two pixels, foreground and background, both logits 0: p = 1/2, BCE = log 2 whatever the weights.

    Each pixel sees both, so the mean is A everywhere: weights 1 + 5 (1 − A) and 1 + 5 A. IoU: overlap w1/2, union
    w1/2 + w1 + w2/2 − w1/2 = w1 + w2/2."""
    w1, w2 = 6 - 5 * A, 1 + 5 * A
    expected = math.log(2) + 1 - (w1 / 2 + 1) / (w1 + w2 / 2 + 1)
    loss = StructureLoss(regions=True)(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]]))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_edges_weigh_more_by_hand():
    """Logits log 3 on both pixels: p = 3/4, BCE is log(4/3) on the foreground and log 4 on the background."""
    w1, w2 = 6 - 5 * A, 1 + 5 * A
    logits = torch.full((1, 1, 1, 2), math.log(3))
    target = torch.tensor([[[[1.0, 0.0]]]])
    iou = 1 - (0.75 * w1 + 1) / (0.75 * (w1 + w2) + w1 - 0.75 * w1 + 1)
    weighted = (w1 * math.log(4 / 3) + w2 * math.log(4)) / (w1 + w2)
    plain = (math.log(4 / 3) + math.log(4)) / 2
    assert float(StructureLoss(regions=True)(logits, target)) == pytest.approx(weighted + iou, rel=1e-5)
    unweighted = StructureLoss(regions=True, weighted_bce=False)(logits, target)
    assert float(unweighted) == pytest.approx(plain + iou, rel=1e-5)


def picture(n=2, c=1, seed=0):
    torch.manual_seed(seed)
    return torch.randn(n, c, 40, 50), (F.avg_pool2d(torch.randn(n, c, 40, 50), 9, 1, 4) > 0.05).float()


def test_perfect_agreement_costs_nothing_and_the_opposite_much():
    _, target = picture()
    assert float(StructureLoss(regions=True)(100 * (2 * target - 1), target)) == pytest.approx(0, abs=1e-5)
    assert float(StructureLoss(regions=True)(-100 * (2 * target - 1), target)) > 100


def test_two_classes_equal_one_region_with_the_difference_of_their_logits():
    logits, target = picture(c=1)
    background = torch.randn_like(logits)
    classes = StructureLoss()(torch.cat([background, background + logits], 1), target)
    assert float(classes) == pytest.approx(float(StructureLoss(regions=True)(logits, target)), rel=1e-5)


def test_the_sigmoid_of_a_class_against_the_rest_is_its_softmax():
    logits = torch.randn(2, 5, 3, 4) * 5
    torch.testing.assert_close(against_the_rest(logits).sigmoid(), logits.softmax(1)[:, 1:])


def test_several_classes_are_the_mean_over_each_against_the_rest():
    logits = torch.randn(2, 4, 20, 20)
    labels = torch.randint(0, 4, (2, 1, 20, 20))
    binary = against_the_rest(logits)
    each = [StructureLoss(regions=True)(binary[:, c - 1 : c], (labels == c).float()) for c in (1, 2, 3)]
    assert float(StructureLoss()(logits, labels)) == pytest.approx(float(sum(each) / 3), rel=1e-5)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_ignored_pixels_have_no_say(regions, weighted):
    torch.manual_seed(0)
    loss = StructureLoss(regions=regions, ignore_label=3, weighted_bce=weighted)
    logits = torch.randn(2, 2 if regions else 3, 20, 20)
    ignored = torch.zeros(2, 1, 20, 20, dtype=torch.bool)
    ignored[:, :, 5:12] = True
    labels = torch.randint(0, 3, (2, 1, 20, 20)).masked_fill(ignored, 3)
    target = torch.cat([labels == 1, labels == 2, ignored], 1) if regions else labels
    logits.requires_grad_()
    loss(logits, target).backward()
    assert not logits.grad[ignored.expand_as(logits)].any() and logits.grad[~ignored.expand_as(logits)].any()
    if regions:  # nor has what lies under them
        under = target.clone()
        under[:, 0] |= ignored[:, 0]
        assert float(loss(logits, under)) == float(loss(logits, target))


def test_a_wholly_ignored_picture_costs_nothing():
    loss = StructureLoss(ignore_label=3)
    assert float(loss(torch.randn(1, 3, 8, 8), torch.full((1, 1, 8, 8), 3))) == 0


def test_integer_float_and_boolean_targets_mean_the_same():
    logits, target = picture(c=2)
    loss = StructureLoss(regions=True)
    assert float(loss(logits, target.bool())) == float(loss(logits, target))
    labels = torch.randint(0, 2, (2, 1, 40, 50))
    assert float(StructureLoss()(logits, labels)) == float(StructureLoss()(logits, labels.float()))


def test_gradient_is_finite_for_extreme_logits_in_half_precision():
    logits = (torch.randn(1, 3, 16, 16) * 1e4).half().requires_grad_()
    loss = StructureLoss()(logits, torch.randint(0, 3, (1, 1, 16, 16)))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()

"""The structure loss of SAM2-UNet: cross-entropy and IoU that weigh edges more, for classes, regions and ignore labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 31  # pixels, odd
EDGE_WEIGHT = 5.0


class StructureLoss(nn.Module):
    """Weighted binary cross-entropy plus 1 − weighted IoU, over binary pictures (Wei et al. 2020, F³Net, section 3.3).

    With a picture g of 0 and 1, prediction p = sigmoid(z), and a(g) its mean over the 31x31 pixels around
    (zeros outside the picture), a pixel weighs w = 1 + 5 |a(g) − g|: up to 6 where it differs from its surroundings.

        loss = Σ w · BCE(z, g) / Σ w  +  1 − (Σ w·p·g + 1) / (Σ w·(p + g − p·g) + 1)

    per picture and class, then the mean over those. Regions have one z each; for classes, every class but the background
    is held against all others together: z = z_c − log Σ_{k≠c} exp z_k, of which the sigmoid is the softmax of c. So one
    foreground class with two logits gives what one region gives with their difference.

    Args:
        regions: whether targets are regions (B, regions, H, W) and not labels (B, 1, H, W).
        ignore_label: pixels with it (with regions: pixels where the last channel of the target is 1) count in no sum,
            and as zeros in a(g).
        weighted_bce: False leaves w out of the cross-entropy, a plain mean then, and in the IoU. That is what the public
            code of SAM2-UNet computes: it says `reduce='none'` where `reduction='none'` was meant.
    """

    def __init__(
        self, *, regions: bool = False, ignore_label: int | None = None, weighted_bce: bool = True
    ) -> None:
        super().__init__()
        self.regions = regions
        self.ignore_label = ignore_label
        self.weighted_bce = weighted_bce

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (B, C, H, W) and a target as nnU-Net's losses take it → scalar."""
        truth, known = self._binary(target, logits.shape[1])
        binary = logits.float() if self.regions else against_the_rest(logits.float())
        weight = (1 + EDGE_WEIGHT * (_mean_around(truth) - truth).abs()) * known
        bce_weight = weight if self.weighted_bce else known.expand_as(weight)
        bce = F.binary_cross_entropy_with_logits(binary, truth, reduction="none")
        bce = _sum(bce_weight * bce) / _sum(bce_weight).clamp_min(1)

        predicted = binary.sigmoid()
        overlap = _sum(weight * predicted * truth)
        union = _sum(weight * (predicted + truth)) - overlap
        return (bce + 1 - (overlap + 1) / (union + 1)).mean()

    def _binary(self, target: Tensor, n_logits: int) -> tuple[Tensor, Tensor]:
        """Target → binary pictures (B, classes or regions, H, W), and where they are known (B, 1, H, W)."""
        if self.regions:
            target = target.float()
            if self.ignore_label is None:
                return target, torch.ones_like(target[:, :1])
            known = 1 - target[:, -1:]
            return target[:, :-1] * known, known
        known = torch.ones_like(target, dtype=torch.float32)
        if self.ignore_label is not None:
            known = (target != self.ignore_label).float()
        classes = torch.arange(1, n_logits, device=target.device).view(1, -1, 1, 1)
        return (target == classes).float() * known, known


def against_the_rest(logits: Tensor) -> Tensor:
    """(B, C, …) → (B, C − 1, …): the logit of each class but the first against all others together."""
    binary = []
    for c in range(1, logits.shape[1]):
        others = torch.cat([logits[:, :c], logits[:, c + 1 :]], 1)
        binary.append(logits[:, c] - others.logsumexp(1))
    return torch.stack(binary, 1)


def _mean_around(picture: Tensor) -> Tensor:
    return F.avg_pool2d(picture, WINDOW, stride=1, padding=WINDOW // 2)


def _sum(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C)."""
    return x.sum((2, 3))

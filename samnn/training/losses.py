"""Losses that nnU-Net does not have, in the form its compound losses expect."""

from __future__ import annotations

from collections.abc import Callable

import torch
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor, nn


class GeneralisedDiceLoss(nn.Module):
    """Negative generalised Dice: classes weighted by the inverse square of their reference volume.

    GDL = 1 − 2 · Σ_c w_c Σ p·g / Σ_c w_c Σ (p + g), with w_c = 1 / (Σ g_c)²  (Sudre et al. 2017, DLMIA,
    equation 2, background included). Like nnU-Net's Dice it returns −Dice, so perfect agreement gives −1.
    The paper leaves w_c open for a class without reference voxels; here it is the largest weight among the classes
    that are present (1 where none is), so that false positives of an absent class count and cannot dominate.

    The constructor takes what nnU-Net passes to its Dice losses; `do_bg` is ignored because the background belongs
    to the definition.
    """

    def __init__(
        self,
        apply_nonlin: Callable[[Tensor], Tensor] | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1e-5,
        ddp: bool = False,
    ) -> None:
        super().__init__()
        self.apply_nonlin = apply_nonlin
        self.batch_dice = batch_dice
        self.smooth = smooth
        self.ddp = ddp

    def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """x: logits (B, C, *spatial); y: labels (B, 1, *spatial) or one-hot (B, C, *spatial); → scalar in [−1, 0].

        loss_mask: (B, 1, *spatial), 1 where the voxel counts.
        """
        if self.apply_nonlin is not None:
            x = self.apply_nonlin(x)
        with torch.no_grad():
            onehot = y.float() if y.shape == x.shape else torch.zeros_like(x, dtype=torch.float32)
            if y.shape != x.shape:
                onehot.scatter_(1, y.long(), 1)
        if loss_mask is not None:
            x, onehot = x * loss_mask, onehot * loss_mask

        axes = tuple(range(2, x.ndim))
        overlap = (x * onehot).sum(axes, dtype=torch.float32)  # (B, C)
        volume = onehot.sum(axes, dtype=torch.float32)
        total = x.sum(axes, dtype=torch.float32) + volume
        if self.batch_dice:
            if self.ddp:
                overlap, volume, total = (AllGatherGrad.apply(s).sum(0) for s in (overlap, volume, total))
            overlap, volume, total = (s.sum(0, keepdim=True) for s in (overlap, volume, total))  # (1, C)

        with torch.no_grad():
            present = volume > 0
            weight = torch.where(present, 1 / volume.clamp_min(1).square(), 0)
            largest = weight.amax(1, keepdim=True)
            weight = torch.where(present, weight, torch.where(largest > 0, largest, 1.0))
            weight = weight / weight.amax(
                1, keepdim=True
            )  # the ratio is unchanged and stays far from underflow
        dice = (2 * (weight * overlap).sum(1) + self.smooth) / ((weight * total).sum(1) + self.smooth)
        return -dice.mean()

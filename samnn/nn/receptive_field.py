"""A receptive-field block: branches with ever wider views of one map, brought to a common number of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recompute import recomputed_with_batch_norm

WIDTHS = (3, 5, 7)  # kernels of the branches, and dilations of their last convolutions


class ReceptiveField(nn.Module):
    """Four branches, merged, plus a shortcut (Liu et al. 2018, arXiv 1711.07767, as modified by SAM2-UNet).

    Inside the branches batch norm follows every convolution and no activation follows batch norm.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        c = out_channels
        self.branches = nn.ModuleList([nn.Sequential(_convolution(in_channels, c, 1))])
        for width in WIDTHS:
            self.branches.append(
                nn.Sequential(
                    _convolution(in_channels, c, 1),
                    _convolution(c, c, (1, width)),
                    _convolution(c, c, (width, 1)),
                    _convolution(c, c, 3, dilation=width),
                )
            )
        self.merge = _convolution((1 + len(WIDTHS)) * c, c, 3)
        self.shortcut = _convolution(in_channels, c, 1)

    def forward(self, x: Tensor, *, recompute: bool = False) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W); `recompute` keeps nothing of the branches for the backward
        pass."""
        run = recomputed_with_batch_norm if recompute else nn.Module.__call__
        merged = self.merge(torch.cat([run(branch, x) for branch in self.branches], dim=1))
        return F.relu(merged + self.shortcut(x))


def _convolution(
    in_channels: int, out_channels: int, kernel: int | tuple[int, int], *, dilation: int = 1
) -> nn.Sequential:
    """Convolution that keeps the size, without bias, and batch norm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding="same", dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
    )

"""Networks that compute on a resized picture and enlarge their logits at the end, and say so."""

from __future__ import annotations

from torch import Tensor, nn


class Coarse(nn.Module):
    """A network that is `enlarge(coarse_logits(resize(image)), size of the image)`, with linear ends.

    A subclass promises that `resize` and `enlarge` are linear, treat every channel alike and commute with flips. Then
    predictions of a picture and its mirror images may share one `resize`, and be averaged before one `enlarge`.
    """

    def resize(self, image: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, h, w)."""
        raise NotImplementedError

    def coarse_logits(self, resized: Tensor) -> Tensor:
        """(B, C, h, w) → (B, num_classes, any size)."""
        raise NotImplementedError

    def enlarge(self, logits: Tensor, size: tuple[int, ...]) -> Tensor:
        """(B, num_classes, any size) → (B, num_classes, H, W), `size` being (H, W)."""
        raise NotImplementedError

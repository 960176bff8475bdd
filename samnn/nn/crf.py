"""MeanFieldCRF: a conditional random field as a layer, with learned weight and bandwidths in millimetres."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samnn.errors import SamnnError

RETURNS = ("logits", "proba", "log-proba")
KERNELS = ("crfseg", "dense")
NO_NEIGHBOUR = 1e-12  # neighbours that weigh less than this together count as none


class MeanFieldCRF(nn.Module):
    """Let the neighbours of each voxel pull its logits towards their own classes, in `n_iter` mean-field iterations:

        x_i ← u_i + w · Σ_j k(i, j) · softmax(x_j)        k(i, j) = exp(−½ Σ_a (d_a / θ_a)²)

    u are the logits that came in, d_a is the distance of voxels i and j along axis a in mm, and j runs over the window
    of `filter_size` voxels around i (Krähenbühl & Koltun 2011, NeurIPS, with Potts compatibility; unrolled as a layer
    by Zheng et al. 2015, ICCV). w and θ are learned. The Gaussian is separable, so each axis is one product with the
    banded matrix exp(−½ (d/θ)²).

    Args:
        n_spatial_dims: 2 or 3 (any number works).
        filter_size: voxels, odd; one number or one an axis.
        n_iter: iterations.
        requires_grad: whether weights and bandwidths are trained.
        returns: "logits", "proba" or "log-proba".
        smoothness_weight: w at the start.
        smoothness_theta: θ at the start, in mm; one number or one an axis.
        kernel: which neighbours count. "crfseg": the package crfseg's, equal to it number by number, which zeroes the
            centre of each axis's kernel and so leaves out every voxel that shares a coordinate with i; voxels outside
            of the volume count as zeros. "dense": all but the centre voxel itself, and the sum is divided by the mass
            of the kernel inside window and volume: a weighted mean of the neighbours, whatever θ, spacing and border.
        regions: each channel is a binary label of its own (sigmoid), as nnU-Net's regions. One channel always is.
        appearance_weight: switches on a second sum that follows edges of the image: the mean of the neighbours,
            weighted by exp(−½ Σ_a (d_a / θ_a)² − ½ |I_i − I_j|² / θ_I²), I being the channels of `image`, times this
            weight (bilateral; always divided by its mass). It keeps one weight per voxel and offset of its window.
        appearance_theta: its θ in mm; one number or one an axis.
        intensity_theta: its θ_I, in the image's units (nnU-Net's images have a standard deviation of about 1).
        appearance_filter_size: its window in voxels, odd; one number or one an axis.

    The parameters `smoothness_weight` and `inv_smoothness_theta` are those of crfseg's `CRF`, whose state dict loads.

    Raises:
        SamnnError: an argument is not as described.
    """

    def __init__(
        self,
        n_spatial_dims: int,
        *,
        filter_size: int | Sequence[int] = 11,
        n_iter: int = 5,
        requires_grad: bool = True,
        returns: Literal["logits", "proba", "log-proba"] = "logits",
        smoothness_weight: float = 1.0,
        smoothness_theta: float | Sequence[float] = 1.0,
        kernel: Literal["crfseg", "dense"] = "crfseg",
        regions: bool = False,
        appearance_weight: float | None = None,
        appearance_theta: float | Sequence[float] = 1.0,
        intensity_theta: float = 0.5,
        appearance_filter_size: int | Sequence[int] = 5,
    ) -> None:
        super().__init__()
        if n_iter < 0 or returns not in RETURNS or kernel not in KERNELS:
            raise SamnnError(
                f"MeanFieldCRF: {n_iter=}, {returns=}, {kernel=}; expected n_iter >= 0, returns one of {RETURNS}, "
                f"kernel one of {KERNELS}."
            )
        self.n_spatial_dims = n_spatial_dims
        self.radius = self._radius("filter_size", filter_size)
        self.n_iter = n_iter
        self.returns = returns
        self.kernel = kernel
        self.regions = regions

        def parameter(values: float | np.ndarray) -> nn.Parameter:
            return nn.Parameter(torch.tensor(values, dtype=torch.float32), requires_grad)

        self.smoothness_weight = parameter(smoothness_weight)
        self.inv_smoothness_theta = parameter(1 / self._thetas("smoothness_theta", smoothness_theta))
        self.has_appearance = appearance_weight is not None
        if appearance_weight is not None:
            self.appearance_radius = self._radius("appearance_filter_size", appearance_filter_size)
            self.appearance_weight = parameter(appearance_weight)
            self.inv_appearance_theta = parameter(1 / self._thetas("appearance_theta", appearance_theta))
            self.inv_intensity_theta = parameter(1 / self._thetas("intensity_theta", intensity_theta)[0])

    def forward(
        self,
        logits: Tensor,
        spacing_mm: Tensor | np.ndarray | Sequence[float] | Sequence[Sequence[float]] | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, classes, *spatial) → the same shape, in float32 (float64 stays), also under autocast.

        spacing_mm: (n_spatial_dims,), or (B, n_spatial_dims) for a spacing per sample; None: 1.
        image: (B, channels, *spatial), needed with the appearance term and only there.

        Raises:
            SamnnError: shapes do not fit, or an image is missing or not used.
        """
        spatial = logits.shape[2:]
        self._check(logits, image)
        with torch.autocast(logits.device.type, enabled=False):
            unary = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
            spacing = self._spacing(spacing_mm, unary)
            bands = [self._band(axis, length, spacing) for axis, length in enumerate(spatial)]
            scale = self.smoothness_weight.to(unary)
            if self.kernel == "dense":
                scale = scale / _mass(bands)
            else:  # the same on a small matrix instead of every voxel
                bands[0] = scale * bands[0]
            pull = None if image is None else self._bilateral(image.to(unary), spacing)
            binary = self.regions or unary.shape[1] == 1

            x = unary
            for _ in range(self.n_iter):
                # Of a binary label, p − (1 − p) = tanh(x / 2) is all that its two classes differ in.
                belief = torch.tanh(x / 2) if binary else F.softmax(x, 1)
                x = unary + (
                    _dense(belief, bands) * scale if self.kernel == "dense" else _product(belief, bands)
                )
                if pull is not None:
                    x = x + self.appearance_weight.to(x) * self._pulled(belief, *pull)
            if self.returns == "logits":
                return x
            if self.returns == "proba":
                return torch.sigmoid(x) if binary else F.softmax(x, 1)
            return F.logsigmoid(x) if binary else F.log_softmax(x, 1)

    def learned(self) -> dict[str, float | list[float]]:
        """The weights, and the bandwidths in mm (of the intensity: in the image's units), as numbers."""
        found: dict[str, float | list[float]] = {}
        for name, value in self.named_parameters():
            numbers = value.detach().double().cpu()
            if name.startswith("inv_"):
                numbers = 1 / numbers.abs()
                name = name.removeprefix("inv_") + ("" if name == "inv_intensity_theta" else "_mm")
            found[name] = numbers.tolist()
        return found

    def extra_repr(self) -> str:
        window = " × ".join(str(2 * r + 1) for r in self.radius)
        return f"kernel={self.kernel}, window={window}, n_iter={self.n_iter}, returns={self.returns}"

    # ---- smoothness: the separable Gaussian

    def _band(self, axis: int, length: int, spacing: Tensor) -> Tensor:
        """exp(−½ (d/θ)²) between all places of an axis, 0 on the diagonal and beyond the window: (B or 1, L, L)."""
        place = torch.arange(length, device=spacing.device)
        steps = (place[:, None] - place).abs()
        is_neighbour = (steps > 0) & (steps <= self.radius[axis])
        distance_mm = steps * spacing[:, axis, None, None]
        inv_theta = self.inv_smoothness_theta[axis].to(spacing)
        return torch.exp(-0.5 * (distance_mm * inv_theta).square()) * is_neighbour

    # ---- appearance: bilateral weights in a small window

    def _bilateral(self, image: Tensor, spacing: Tensor) -> tuple[list[Tensor], Tensor]:
        """The weight of the neighbour at each offset of the window, and their sum inside the volume: (B, 1, *spatial)."""
        per_mm, per_intensity = self.inv_appearance_theta.to(spacing), self.inv_intensity_theta.to(spacing)
        weights = []
        for offset, moved in self._neighbours(image):
            steps = spacing.new_tensor(offset) * spacing * per_mm  # (B or 1, axes), in bandwidths
            apart = steps.square().sum(1).view(-1, *[1] * (image.ndim - 1))
            unlike = ((moved - image) * per_intensity).square().sum(1, keepdim=True)
            weights.append(torch.exp(-0.5 * (apart + unlike)))
        inside = torch.ones_like(image[:, :1])
        return weights, _total(weights, self._neighbours(inside), inside).clamp_min(NO_NEIGHBOUR)

    def _pulled(self, belief: Tensor, weights: list[Tensor], mass: Tensor) -> Tensor:
        return _total(weights, self._neighbours(belief), belief) / mass

    def _neighbours(self, x: Tensor) -> list[tuple[tuple[int, ...], Tensor]]:
        """Each offset of the window but the centre, and `x` moved by it, zeros from outside."""
        radius = self.appearance_radius
        padded = F.pad(x, [r for r in reversed(radius) for _ in range(2)])
        offsets = [o for o in itertools.product(*(range(-r, r + 1) for r in radius)) if any(o)]
        found = []
        for offset in offsets:
            moved = padded
            for axis, (step, r) in enumerate(zip(offset, radius, strict=True)):
                moved = moved.narrow(axis + 2, r + step, x.shape[axis + 2])
            found.append((offset, moved))
        return found

    # ---- arguments

    def _spacing(self, spacing_mm: Any, like: Tensor) -> Tensor:
        n = self.n_spatial_dims
        if spacing_mm is None:
            return like.new_ones(1, n)
        spacing = torch.as_tensor(spacing_mm, dtype=like.dtype, device=like.device)
        if spacing.shape not in ((n,), (1, n), (len(like), n)):
            raise SamnnError(
                f"MeanFieldCRF: spacing_mm has shape {tuple(spacing.shape)}; expected ({n},) or ({len(like)}, {n})."
            )
        return spacing.view(-1, n)

    def _check(self, logits: Tensor, image: Tensor | None) -> None:
        if logits.ndim != self.n_spatial_dims + 2:
            raise SamnnError(
                f"MeanFieldCRF of {self.n_spatial_dims} dimensions got logits of shape {tuple(logits.shape)}; "
                "expected (batch, classes, *spatial)."
            )
        if (image is not None) != self.has_appearance:
            need = "needs an image" if self.has_appearance else "takes no image without appearance_weight"
            raise SamnnError(f"MeanFieldCRF {need}.")
        if image is not None and (image.shape[2:] != logits.shape[2:] or len(image) != len(logits)):
            raise SamnnError(
                f"MeanFieldCRF: image {tuple(image.shape)} does not fit logits {tuple(logits.shape)}."
            )

    def _radius(self, name: str, size: int | Sequence[int]) -> tuple[int, ...]:
        sizes = self._per_axis(name, size)
        if (sizes < 1).any() or (sizes % 2 != 1).any():
            raise SamnnError(f"MeanFieldCRF: {name}={size}; expected odd numbers of voxels.")
        return tuple(int(s) // 2 for s in sizes)

    def _thetas(self, name: str, theta: float | Sequence[float]) -> np.ndarray:
        thetas = self._per_axis(name, theta).astype(float)
        if not (thetas > 0).all() or not np.isfinite(thetas).all():
            raise SamnnError(f"MeanFieldCRF: {name}={theta}; expected positive numbers.")
        return thetas

    def _per_axis(self, name: str, value: Any) -> np.ndarray:
        try:
            return np.broadcast_to(value, self.n_spatial_dims)
        except ValueError as error:
            raise SamnnError(
                f"MeanFieldCRF: {name}={value}; expected one number, or one for each of {self.n_spatial_dims} axes."
            ) from error


def _along(axis: int, band: Tensor, x: Tensor) -> Tensor:
    """Multiply spatial axis `axis` of x (B, C, *spatial) by a matrix (B, L, L), or by one for all (1, L, L)."""
    shape = x.shape
    dim = axis + 2
    shared = len(band) == 1
    if dim == x.ndim - 1:  # the bands are symmetric
        rows = x.reshape(-1, shape[-1]) if shared else x.reshape(len(x), -1, shape[-1])
        return (rows @ (band[0] if shared else band)).reshape(shape)
    if shared:
        columns = x.reshape(-1, shape[dim], shape[dim + 1 :].numel())
        return (band[0] @ columns).reshape(shape)
    columns = x.reshape(len(x), -1, shape[dim], shape[dim + 1 :].numel())
    return (band[:, None] @ columns).reshape(shape)


def _product(belief: Tensor, bands: list[Tensor]) -> Tensor:
    """Σ_j k(i, j) belief_j over the voxels that share no coordinate: one axis after the other, (B, C, *spatial)."""
    for axis, band in enumerate(bands):
        belief = _along(axis, band, belief)
    return belief


def _dense(belief: Tensor, bands: list[Tensor]) -> Tensor:
    """Σ_j k(i, j) belief_j over all but the voxel itself: (… (1 + band_1) (1 + band_0) − 1) belief, never subtracting."""
    message = _along(0, bands[0], belief)
    for axis, band in enumerate(bands[1:], 1):
        message = message + _along(axis, band, belief + message)
    return message


def _mass(bands: list[Tensor]) -> Tensor:
    """What the dense kernel sums to around each voxel, inside the volume: Π_a (1 + row sums of a) − 1, (B, 1, *spatial)."""
    log_sums = [torch.log1p(band.sum(-1)) for band in bands]  # a logarithm keeps what is small beside 1
    total: Any = 0
    for axis, log_sum in enumerate(log_sums):
        shape = [len(log_sum), 1] + [1] * len(bands)
        shape[axis + 2] = log_sum.shape[1]
        total = total + log_sum.view(shape)
    return torch.expm1(total).clamp_min(NO_NEIGHBOUR)


def _total(weights: list[Tensor], neighbours: list[tuple[tuple[int, ...], Tensor]], like: Tensor) -> Tensor:
    total = torch.zeros_like(like)
    for weight, (_, moved) in zip(weights, neighbours, strict=True):
        total = total + weight * moved
    return total

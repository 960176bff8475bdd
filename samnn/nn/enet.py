"""ENet: a small 2D encoder-decoder that remembers where its maxima lay (Paszke et al. 2016, arXiv 1606.02147).

The layout follows the ENet of the public AI4MI project, which differs from the paper in its last stage and in its
skip connections; its weights can be loaded with `ENet.load_reference`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samnn.errors import Problems, SamnnError

from .elementwise import Dropout, PReLU, plus

STRIDE = 8  # the encoder halves the picture three times


class ENet(nn.Module):
    """Segment pictures of any size with 16 to 128 channels at an eighth of the resolution.

    Args:
        input_channels: channels of the picture; any number.
        num_classes: channels of the logits.
        deep_supervision: what nnU-Net asks for. There is one output, so it only decides how that is handed over:
            while `decoder.deep_supervision` is true, `forward` returns `[logits]`, the list that nnU-Net's
            deep-supervision loss insists on (that loss then counts full resolution alone, with its usual share of
            the weight).
        kernels: channels after the first layer, K; the stages have 4K, 8K, 8K, 4K, K.
        projection: a bottleneck computes with 1/projection of the channels that enter it.
        strides: not used here. nnU-Net's own trainers read it in the plans: how much coarser each output of deep
            supervision is than the one before; [[1, 1]] for each, and two more.

    The names of the only layer whose shape depends on `num_classes` contain `.seg_layers.`, which nnU-Net leaves
    out of `-pretrained_weights`.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        kernels: int = 16,
        projection: int = 4,
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if input_channels < 1 or num_classes < 1:
            raise SamnnError(f"ENet needs channels and classes; got {input_channels=}, {num_classes=}.")
        if kernels < max(2, projection) or projection < 1:
            raise SamnnError(
                f"ENet needs kernels >= 2 and >= projection >= 1; got {kernels=}, {projection=}."
            )
        self.encoder = Encoder(input_channels, kernels, projection)
        self.decoder = Decoder(num_classes, kernels, projection)
        self.decoder.deep_supervision = deep_supervision

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(B, input_channels, H, W) → logits (B, num_classes, H, W), for any H and W.

        The picture is padded with zeros at the bottom and on the right to multiples of 8, the logits are cropped
        back.
        """
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % STRIDE, 0, -height % STRIDE))
        logits = self.decoder(*self.encoder(padded))[..., :height, :width]
        return [logits] if self.decoder.deep_supervision else logits

    @property
    def output_layers(self) -> list[nn.Module]:
        """The last layer: what remains trainable where everything else is frozen."""
        return [self.decoder.seg_layers[0]]

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load a state dict of AI4MI's `ENet(1, num_classes, kernels=kernels, factor=projection)`.

        A prefix before every key (`module.`, `_orig_mod.`) is taken off.

        Raises:
            SamnnError: keys are missing, unexpected or have another shape; they are named, nothing is loaded.
        """
        prefix = next((key.removesuffix(_A_KEY) for key in state_dict if key.endswith(_A_KEY)), "")
        given = {key.removeprefix(prefix): value for key, value in state_dict.items()}
        own = {_reference_key(key): value for key, value in self.state_dict().items()}
        misshapen = [
            f"{key} {tuple(given[key].shape)}, expected {tuple(own[key].shape)}"
            for key in own
            if key in given and given[key].shape != own[key].shape
        ]
        problems = [
            *_listed("missing", [key for key in own if key not in given]),
            *_listed("unexpected", [key for key in given if key not in own]),
            *_listed("another shape", misshapen),
        ]
        if problems:
            raise Problems(
                "These weights do not fit this ENet: made with other sizes, or by another network.", problems
            )
        self.load_state_dict({key: given[_reference_key(key)] for key in self.state_dict()})


class Encoder(nn.Module):
    """Picture → features at an eighth of its resolution, and what the decoder needs to find the way back."""

    def __init__(self, input_channels: int, kernels: int, projection: int) -> None:
        super().__init__()
        k, f = kernels, projection
        self.initial = Initial(input_channels, k)
        self.down1 = Downsampling(k, 4 * k, f)
        self.stage1 = nn.Sequential(*[Bottleneck(4 * k, 4 * k, f) for _ in range(4)])
        self.down2 = Downsampling(4 * k, 8 * k, f)
        self.stage2 = nn.Sequential(*_context(8 * k, 8 * k, f))
        self.stage3 = nn.Sequential(*_context(8 * k, 4 * k, f))

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """(B, C, H, W) → deepest features, skipped features and the places of the maxima, shallow first."""
        first = self.initial(image)  # (B, K, H/2, W/2)
        first = first.contiguous(memory_format=torch.channels_last)  # faster for so few channels
        down1, places1 = self.down1(first)  # (B, 4K, H/4, W/4), places of (B, K, H/4, W/4)
        second = self.stage1(down1)  # (B, 4K, H/4, W/4)
        down2, places2 = self.down2(second)  # (B, 8K, H/8, W/8), places of (B, 4K, H/8, W/8)
        deepest = self.stage3(self.stage2(down2))  # (B, 4K, H/8, W/8)
        return deepest, [first, second], [places1, places2]


class Decoder(nn.Module):
    """Features at an eighth of the resolution → logits at full resolution."""

    deep_supervision: bool  # set by nnU-Net's trainers; read by ENet.forward

    def __init__(self, num_classes: int, kernels: int, projection: int) -> None:
        super().__init__()
        k, f = kernels, projection
        self.up4 = Upsampling(4 * k, 4 * k, f)
        self.stage4 = nn.Sequential(
            Bottleneck(4 * k, 4 * k, f, dropout=0.1), Bottleneck(4 * k, k, f, dropout=0.1)
        )
        self.up5 = Upsampling(k, k, f)
        self.stage5 = nn.Sequential(Bottleneck(k, k, f, dropout=0.1))
        self.smooth = nn.Sequential(
            _convolution(k, k, 3, padding=1, bias=False), _convolution(k, k, 3, padding=1, bias=False)
        )
        self.seg_layers = nn.ModuleList([nn.Conv2d(k, num_classes, 1)])

    def forward(self, deepest: Tensor, skips: list[Tensor], places: list[Tensor]) -> Tensor:
        """(B, 4K, H/8, W/8) and the encoder's skips and places → (B, num_classes, H, W)."""
        x = self.stage4(self.up4(deepest, skips[1], places[1]))  # (B, K, H/4, W/4)
        x = self.stage5(self.up5(x, skips[0], places[0]))  # (B, K, H/2, W/2)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")  # (B, K, H, W)
        return self.seg_layers[0](self.smooth(x))


class Initial(nn.Module):
    """Half the resolution: a strided convolution beside the max-pooled picture itself, K channels together.

    The picture may fill half of the K channels; a picture of more channels is brought down to that by a learned
    1x1 convolution.
    """

    def __init__(self, input_channels: int, kernels: int) -> None:
        super().__init__()
        pooled = min(input_channels, kernels // 2)
        self.conv = nn.Conv2d(input_channels, kernels - pooled, 3, stride=2, padding=1)
        self.project = nn.Conv2d(input_channels, pooled, 1) if pooled < input_channels else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) → (B, K, H/2, W/2)."""
        return torch.cat([self.conv(image), self.project(F.max_pool2d(image, 2))], dim=1)


class Bottleneck(nn.Module):
    """x + expand(convolve(reduce(x))) at one resolution; the shortcut is a 1x1 convolution if channels are lost."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        projection: int,
        *,
        dropout: float = 0.01,
        dilation: int = 1,
        asymmetric: bool = False,
    ) -> None:
        super().__init__()
        inner = in_channels // projection
        self.reduce = _convolution(in_channels, inner, 1)
        if asymmetric:  # 5x5 as 5x1 after 1x5
            self.convolve = Convolution(
                nn.Conv2d(inner, inner, (5, 1), padding=(2, 0)),
                *_convolution(inner, inner, (1, 5), padding=(0, 2)),
            )
        else:
            self.convolve = _convolution(inner, inner, 3, padding=dilation, dilation=dilation)
        self.expand = _convolution(inner, out_channels, 1)
        self.dropout = Dropout(dropout)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else _convolution(in_channels, out_channels, 1)
        self.activation = PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W)."""
        change = self.dropout(self.expand(self.convolve(self.reduce(x))))
        return self.activation(plus(change, self.shortcut(x)))


class Downsampling(nn.Module):
    """Half the resolution and more channels; the shortcut is max pooling, filled up with zero channels."""

    def __init__(self, in_channels: int, out_channels: int, projection: int) -> None:
        super().__init__()
        inner = in_channels // projection
        self.reduce = _convolution(in_channels, inner, 2, stride=2)
        self.convolve = _convolution(inner, inner, 3, padding=1)
        self.expand = _convolution(inner, out_channels, 1)
        self.dropout = Dropout(0.01)
        self.activation = PReLU()
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, in, H, W) → (B, out, H/2, W/2), and where each maximum lay in its plane: (B, in, H/2, W/2)."""
        pooled, places = F.max_pool2d(x, 2, return_indices=True)
        change = self.dropout(self.expand(self.convolve(self.reduce(x))))
        return self.activation(plus(change, F.pad(pooled, (0, 0, 0, 0, 0, self.new_channels)))), places


class Upsampling(nn.Module):
    """Twice the resolution: every value goes back to the place its maximum came from, the skip fills in detail."""

    def __init__(self, in_channels: int, out_channels: int, projection: int) -> None:
        super().__init__()
        inner = 2 * in_channels // projection
        self.reduce = _convolution(2 * in_channels, inner, 3, padding=1)
        self.convolve = _convolution(inner, inner, 3, padding=1)
        self.expand = _convolution(inner, out_channels, 1)
        self.dropout = Dropout(0.01)
        self.activation = PReLU()

    def forward(self, x: Tensor, skip: Tensor, places: Tensor) -> Tensor:
        """(B, C, H, W), the encoder's (B, C, 2H, 2W) and its places (B, C, H, W) → (B, C, 2H, 2W)."""
        sparse = F.max_unpool2d(x, places, 2)  # one value in four, zeros elsewhere
        joined = torch.cat([sparse, skip], dim=1)  # (B, 2C, 2H, 2W)
        change = self.dropout(self.expand(self.convolve(self.reduce(joined))))
        return self.activation(plus(change, sparse))


def _context(in_channels: int, out_channels: int, projection: int) -> list[Bottleneck]:
    """Eight bottlenecks whose growing dilation sees ever more of the picture; the last sets the channels."""
    c, f = in_channels, projection
    return [
        Bottleneck(c, c, f, dropout=0.1),
        Bottleneck(c, c, f, dilation=2),
        Bottleneck(c, c, f, dropout=0.1, asymmetric=True),
        Bottleneck(c, c, f, dilation=4),
        Bottleneck(c, c, f, dropout=0.1),
        Bottleneck(c, c, f, dilation=8),
        Bottleneck(c, c, f, dropout=0.1, asymmetric=True),
        Bottleneck(c, out_channels, f, dilation=16),
    ]


class Convolution(nn.Sequential):
    """Convolutions, batch norm, PReLU; for prediction, batch norm is folded into the last convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H', W')."""
        *before, last, norm, activation = self
        if self.training or norm.training or norm.running_var is None or torch.is_grad_enabled():
            return super().forward(x)
        for convolution in before:
            x = convolution(x)
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        bias = shift if last.bias is None else torch.addcmul(shift, last.bias, scale)
        return activation(last._conv_forward(x, last.weight * scale[:, None, None, None], bias))


def _convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int = 1,
    bias: bool = True,
) -> Convolution:
    """Convolution, batch norm, PReLU with one slope for all channels."""
    return Convolution(
        nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=padding, dilation=dilation, bias=bias
        ),
        nn.BatchNorm2d(out_channels),
        PReLU(),
    )


# The public project's names for the same parts.
_PARTS = {
    "encoder.initial.conv": "conv0",
    "encoder.down1": "bottleneck1_0",
    "encoder.stage1": "bottleneck1_1",
    "encoder.down2": "bottleneck2_0",
    "encoder.stage2": "bottleneck2_1",
    "encoder.stage3": "bottleneck3",
    "decoder.up4": "bottleneck4.0",
    "decoder.stage4.0": "bottleneck4.1",
    "decoder.stage4.1": "bottleneck4.2",
    "decoder.up5": "bottleneck5.0",
    "decoder.stage5.0": "bottleneck5.1",
    "decoder.smooth": "final",
    "decoder.seg_layers.0": "final.2",
}
_LAYERS = {"reduce": "block0", "convolve": "block1", "expand": "block2", "shortcut": "conv_out"}
_A_KEY = "conv0.weight"  # in every state dict of the public project, after its prefix if it has one


def _reference_key(key: str) -> str:
    """Our parameter name → the public project's; a layer it does not have keeps our name."""
    part = next((part for part in _PARTS if key.startswith(f"{part}.")), None)
    if part is None:
        return key
    activation = "PReLU" if part.split(".")[1].startswith(("down", "up")) else "PReLU_out"
    names = {**_LAYERS, "activation": activation}
    inside = [names.get(name, name) for name in key.removeprefix(f"{part}.").split(".")]
    return ".".join([_PARTS[part], *inside])


def _listed(kind: str, keys: list[str], *, at_most: int = 10) -> list[str]:
    """One line a key, and how many more there are."""
    more = [f"{kind}: {len(keys) - at_most} more"] if len(keys) > at_most else []
    return [*(f"{kind}: {key}" for key in keys[:at_most]), *more]

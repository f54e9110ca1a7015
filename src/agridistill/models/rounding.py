"""Layers that round as an int8 export does, in a float network that can still be trained, and operators for export.

An activation tensor has one scale and one zero point. Weights have one scale for each output channel and are
symmetric, so that zero stays zero.

Source: Jacob et al. 2018, arXiv 1712.05877, equations 1 and 12; straight-through gradients as in section 3.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor, nn

from agridistill.manifest import Preprocessing

LOW, HIGH = -128, 127
# Weights use 7 of the 8 bits: x86 without VNNI adds pairs of 255 * weight in 16 bits, which overflow from a weight of
# 64 on. With 127, an AVX2 processor gave one photo in seven another class than one with VNNI (docs/performance.md).
WEIGHT_HIGH = 63

Ranges = Literal["least_error", "min_max"]

_NO_RANGE = 1e-12
# Number of values that are recorded for each photo.
_SAMPLES = 1 << 9
# Shares of the full range to try, from 1 down to 1/256, in steps of 2 ** (1/8).
_SHARES = tuple(2 ** (-step / 8) for step in range(65))
_ROUNDS = 2
# Lower bound of a channel's scale, relative to the largest scale. With a smaller one, the bias, which is stored in the
# scale of the products, would not fit into 32 bits.
_LEAST_SCALE = 1e-4


class ActivationRounding(nn.Module):
    """Rounds an activation tensor to 256 levels (8 bits), and keeps it in float.

    The buffer `scale` is the distance between two levels, `zero_point` the number of the level for 0. Call `observe()`,
    run photos through the network, then call `calibrate()`, which sets both.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))
        self._range: tuple[float, float] | None = None
        self._samples: list[Tensor] = []
        self._observing = False

    @property
    def is_calibrated(self) -> bool:
        """Whether `calibrate()` has set the levels."""
        return bool(self.scale > 0)

    def observe(self) -> None:
        """Makes `forward` record tensors instead of rounding them, until `calibrate()` is called."""
        self._observing, self._range, self._samples = True, None, []

    def calibrate(self, ranges: Ranges = "least_error") -> None:
        """Sets the levels for the recorded tensors, at least one, and ends the recording.

        "least_error" takes the range of the levels from `best_range`; "min_max" covers all recorded values.
        """
        if self._range is None:
            raise ValueError("no tensor was recorded: call observe() and run photos through the network first")
        low, high = self._range
        if ranges == "least_error" or high - low < _NO_RANGE:
            low, high = best_range(torch.cat(self._samples), low, high)
        self.scale.fill_((high - low) / (HIGH - LOW))
        self.zero_point.fill_(round(LOW - low / float(self.scale)))
        self._observing, self._range, self._samples = False, None, []

    def forward(self, values: Tensor) -> Tensor:
        """Rounds a tensor of any shape `(B, ...)`; during a recording, records it and returns it unchanged."""
        if not self._observing:
            return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, LOW, HIGH)
        low, high = self._range or (0.0, 0.0)
        self._range = min(low, float(values.min())), max(high, float(values.max()))
        samples = values.detach().flatten(1)
        if samples.shape[1] > _SAMPLES:
            # Draw at random: every n-th value would always lie in the same columns if n divides the width.
            drawn = torch.Generator().manual_seed(len(self._samples))
            samples = samples[:, torch.randint(samples.shape[1], (_SAMPLES,), generator=drawn).to(samples.device)]
        self._samples.append(samples.float().clone())
        return values


def best_range(samples: Tensor, low: float, high: float) -> tuple[float, float]:
    """Returns the range of values whose 256 levels round the samples with the least squared error.

    A wide range rounds coarsely, a narrow one clips values. The squared error of each photo is divided by its variance,
    because otherwise one unusual photo with very large values would determine the range.

    The samples are `(photos, N)`, N values of each photo. The range lies within `low`, at most 0, and `high`, at least
    0, and contains 0.
    """
    if high - low < _NO_RANGE:
        return 0.0, 1.0
    weight = 1 / samples.var(1, correction=0).clamp_min(_NO_RANGE)

    # Cached, because after a ReLU all lower ends are 0, and the second round repeats ranges of the first.
    @functools.cache
    def error(ends: tuple[float, float]) -> float:
        scale = (ends[1] - ends[0]) / (HIGH - LOW)
        zero_point = round(LOW - ends[0] / scale) if scale >= _NO_RANGE else HIGH + 1
        if not LOW <= zero_point <= HIGH:
            return float("inf")  # 0 has no level
        rounded = torch.fake_quantize_per_tensor_affine(samples, scale, zero_point, LOW, HIGH)
        return float(((rounded - samples).square().mean(1) * weight).mean())

    # Shrink both ends together first, then each end separately.
    best = min(((low * share, high * share) for share in _SHARES), key=error)
    for _ in range(_ROUNDS):
        best = min(((low * share, best[1]) for share in _SHARES), key=error)
        best = min(((best[0], high * share) for share in _SHARES), key=error)
    return best


def weight_scales(weight: Tensor) -> Tensor:
    """Returns the distance between two levels for each output channel of a weight tensor: `(C, ...)` to `(C,)`."""
    largest = weight.abs().flatten(1).amax(1)
    return largest.clamp_min(1e-8).clamp_min(_LEAST_SCALE * largest.max()) / WEIGHT_HIGH


def round_weights(weight: Tensor) -> Tensor:
    """Rounds each output channel of a weight tensor `(C, ...)` to 127 levels, symmetric about 0.

    The gradient is that of the unrounded weight (straight-through).
    """
    scales = weight_scales(weight.detach())
    zero_points = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zero_points, 0, -WEIGHT_HIGH, WEIGHT_HIGH)


class RoundedConv2d(nn.Conv2d):
    """A convolution that rounds its float weights by `round_weights` in each forward pass."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Computes the same convolution as `torch.nn.Conv2d`, with rounded weights."""
        convolved: Tensor = self._conv_forward(input, round_weights(self.weight), self.bias)
        return convolved


class RoundedLinear(nn.Linear):
    """A linear layer that rounds its float weights by `round_weights` in each forward pass."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Computes the same as `torch.nn.Linear`, with rounded weights."""
        return nn.functional.linear(input, round_weights(self.weight), self.bias)


class GlobalMean(nn.Module):
    """Averages over height and width: `(B, C, H, W)` to `(B, C, 1, 1)` with `keepdim`, otherwise to `(B, C)`.

    It replaces adaptive pooling, because converters write it as one operator, and adaptive pooling as six.
    """

    def __init__(self, *, keepdim: bool) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, values: Tensor) -> Tensor:
        """Computes the mean of `(B, C, H, W)` over height and width."""
        return values.mean((2, 3), keepdim=self.keepdim)


class PhotoLevels(nn.Module):
    """Converts a normalised photo to (pixel - `zero_point`) * `scale`, where pixel is its value from 0 to 255.

    An int8 network can then take pixels as its input levels. All RGB channels have the same scale and zero point. They
    are chosen so that values have about mean 0 and standard deviation 1, because convolutions pad with 0.
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.scale = 1 / (255 * float(std.mean()))
        self.zero_point = min(255, max(0, round(255 * float(mean.mean()))))
        # (pixel - zero_point) * scale, of pixel = 255 * (value * std + mean)
        factor, offset = 255 * std * self.scale, (255 * mean - self.zero_point) * self.scale
        self.register_buffer("factor", factor.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("offset", offset.view(1, -1, 1, 1), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Converts normalised photos `(B, 3, H, W)` to a tensor of the same shape."""
        return values * self.factor + self.offset

    @torch.no_grad()
    def fold_into(self, conv: nn.Conv2d) -> None:
        """Changes a convolution in place, so that converted photos give the outputs that unconverted ones gave before.

        The outputs are exactly the same, except at borders that the convolution pads with zeros.
        """
        conv.weight /= self.factor
        conv.bias = nn.Parameter(bias_of(conv) - (conv.weight * self.offset).sum((1, 2, 3)))


class UnitClamp(nn.Module):
    """Clamps values to the range 0 to 1.

    It replaces a hard sigmoid whose slope and offset have been folded into the convolution before it. The rounding
    after it clamps as well, so an exported file needs no operator for it.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Clamps a tensor of any shape to the range 0 to 1."""
        return values.clamp(0, 1)


def bias_of(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """Returns a copy of a layer's bias `(C,)` without gradient, or zeros if the layer has no bias."""
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach().clone()


# The same roundings as pairs of operators, which torch.export keeps and converters translate. They have the names and
# arguments of torch's private `quantized_decomposed` operators, which litert-torch registers and supports.
@torch.library.custom_op("agridistill::quantize_per_tensor", mutates_args=())
def quantize_per_tensor(
    values: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype
) -> Tensor:
    """Returns round(values / scale) + zero_point, clamped to `low` and `high`, as integers of type `dtype`."""
    return (values * (1 / scale)).round().add(zero_point).clamp(low, high).to(dtype)


@torch.library.custom_op("agridistill::dequantize_per_tensor", mutates_args=())
def dequantize_per_tensor(
    levels: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype
) -> Tensor:
    """Returns (levels - zero_point) * scale as float32, the inverse of `quantize_per_tensor`."""
    return (levels.float() - zero_point) * scale


@torch.library.custom_op("agridistill::quantize_per_channel", mutates_args=())
def quantize_per_channel(
    values: Tensor, scales: Tensor, zero_points: Tensor, axis: int, low: int, high: int, dtype: torch.dtype
) -> Tensor:
    """Does the work of `quantize_per_tensor` with a scale and a zero point, both `(C,)`, for each index of `axis`."""
    shape = [-1 if dim == axis else 1 for dim in range(values.ndim)]
    return (values / scales.view(shape)).round().add(zero_points.view(shape)).clamp(low, high).to(dtype)


@torch.library.custom_op("agridistill::dequantize_per_channel", mutates_args=())
def dequantize_per_channel(
    levels: Tensor, scales: Tensor, zero_points: Tensor, axis: int, low: int, high: int, dtype: torch.dtype
) -> Tensor:
    """Returns (levels - zero_points) * scales as float32, with a scale and a zero point for each index of `axis`."""
    shape = [-1 if dim == axis else 1 for dim in range(levels.ndim)]
    return (levels.float() - zero_points.view(shape)) * scales.view(shape)


for _operator in (quantize_per_tensor, quantize_per_channel):
    _operator.register_fake(lambda values, *how: torch.empty_like(values, dtype=how[-1]))
for _operator in (dequantize_per_tensor, dequantize_per_channel):
    _operator.register_fake(lambda levels, *how: torch.empty_like(levels, dtype=torch.float32))

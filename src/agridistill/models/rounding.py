"""Rounding to 8 bits, as an int8 artefact does it, inside a float network that can still be trained.

Activations: one scale and zero point a tensor. Weights: one scale a channel, symmetric, so that zero stays zero
(Jacob et al. 2018, arXiv 1712.05877, equations 1 and 12; straight-through gradients as in section 3).
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor, nn

LOW, HIGH = -128, 127
# 7 bits of the 8: x86 without VNNI adds 255 * weight in pairs of 16 bits, which saturate from 64 on. With 127 an AVX2
# processor gave one photo in seven another class than one with VNNI (docs/performance.md).
WEIGHT_HIGH = 63

Ranges = Literal["least_error", "min_max"]

_NO_RANGE = 1e-12
# Of each photo, where a tensor holds more.
_SAMPLES = 1 << 9
# Eight ends of a range to each halving, down to 1/256 of it.
_SHARES = tuple(2 ** (-step / 8) for step in range(65))
_ROUNDS = 2
# A channel with hardly any weight is rounded a little more coarsely than it could be: its bias, stored at the scale of
# its products, would not fit into 32 bits.
_LEAST_SCALE = 1e-4


class ActivationRounding(nn.Module):
    """Rounds a tensor to 256 levels between its smallest and largest useful value.

    It is calibrated first: between `observe()` and `calibrate()` tensors pass unchanged and are remembered.

    Attributes:
        scale: `()`, distance of two levels.
        zero_point: `()`, the level of 0.
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

    def observe(self) -> None:
        """Starts to remember what passes."""
        self._observing, self._range, self._samples = True, None, []

    def calibrate(self, ranges: Ranges = "least_error") -> None:
        """Chooses the levels for what was seen.

        Args:
            ranges: "least_error" rounds it with the least error (`best_range`); "min_max" clips nothing.
        """
        if self._range is None:
            raise ValueError("nothing was seen: run representative samples through the network first")
        low, high = self._range
        if ranges == "least_error" or high - low < _NO_RANGE:
            low, high = best_range(torch.cat(self._samples), low, high)
        self.scale.fill_((high - low) / (HIGH - LOW))
        self.zero_point.fill_(round(LOW - low / float(self.scale)))
        self._observing, self._range, self._samples = False, None, []

    def forward(self, values: Tensor) -> Tensor:
        """Any shape in, the same out."""
        if self._observing:
            self._remember(values.detach())
            return values
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, LOW, HIGH)

    def _remember(self, values: Tensor) -> None:
        low, high = self._range or (0.0, 0.0)
        self._range = min(low, float(values.min())), max(high, float(values.max()))
        of_each = values.flatten(1)
        if of_each.shape[1] > _SAMPLES:
            # Drawn, not every n-th: steps that divide the width would see the same columns of each photo only.
            drawn = torch.Generator().manual_seed(len(self._samples))
            of_each = of_each[:, torch.randint(of_each.shape[1], (_SAMPLES,), generator=drawn).to(of_each.device)]
        self._samples.append(of_each.float().clone())


def best_range(samples: Tensor, low: float, high: float) -> tuple[float, float]:
    """The range whose 256 levels round samples with the least error.

    A wide range rounds coarsely, a narrow one clips. Both ends are drawn in together first, then each on its own. The
    squared error is taken relative to the variance, photo by photo: one strange photo with values of thirty times the
    usual would otherwise choose the range for all.

    Args:
        samples: `(photos, N)`.
        low: smallest value, at most 0.
        high: largest value, at least 0.

    Returns:
        A range that contains 0, inside (low, high).
    """
    if high - low < _NO_RANGE:
        return 0.0, 1.0
    weight = 1 / samples.var(1, correction=0).clamp_min(_NO_RANGE)

    # Asked again and again about the same: behind a ReLU all lower ends are 0, and a second round finds the first's.
    @functools.cache
    def error(ends: tuple[float, float]) -> float:
        rounded = _rounded(samples, *ends)
        if rounded is None:
            return float("inf")
        return float(((rounded - samples).square().mean(1) * weight).mean())

    best = min(((low * share, high * share) for share in _SHARES), key=error)
    for _ in range(_ROUNDS):
        best = min(((low * share, best[1]) for share in _SHARES), key=error)
        best = min(((best[0], high * share) for share in _SHARES), key=error)
    return best


def round_weights(weight: Tensor) -> Tensor:
    """Rounds each output channel to 127 levels that are symmetric about 0; gradients pass straight through."""
    scale = weight_scales(weight.detach())
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, -WEIGHT_HIGH, WEIGHT_HIGH)


def weight_scales(weight: Tensor) -> Tensor:
    """`(C,)`, the scale of each output channel of a weight `(C, ...)`."""
    largest = weight.abs().flatten(1).amax(1)
    return largest.clamp_min(1e-8).clamp_min(_LEAST_SCALE * largest.max()) / WEIGHT_HIGH


class RoundedConv2d(nn.Conv2d):
    """A convolution that computes with rounded weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """As `torch.nn.Conv2d`."""
        convolved: Tensor = self._conv_forward(input, round_weights(self.weight), self.bias)
        return convolved


class RoundedLinear(nn.Linear):
    """A linear layer that computes with rounded weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """As `torch.nn.Linear`."""
        return nn.functional.linear(input, round_weights(self.weight), self.bias)


def _rounded(samples: Tensor, low: float, high: float) -> Tensor | None:
    """None where there is no range, or 0 would have no level."""
    scale = (high - low) / (HIGH - LOW)
    if scale < _NO_RANGE:
        return None
    zero_point = round(LOW - low / scale)
    if not LOW <= zero_point <= HIGH:
        return None
    return torch.fake_quantize_per_tensor_affine(samples, scale, zero_point, LOW, HIGH)

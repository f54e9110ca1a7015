"""Rounding to 8 bits, as an int8 artefact does it, inside a float network that can still be trained.

Activations: one scale and zero point a tensor. Weights: one scale a channel, symmetric, so that zero stays zero
(Jacob et al. 2018, arXiv 1712.05877, equations 1 and 12; straight-through gradients as in section 3).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

LOW, HIGH = -128, 127
# The most negative weight is not used: -128 * -128 overflows where products are summed in pairs of 16 bits.
WEIGHT_HIGH = 127

Ranges = Literal["least_error", "min_max"]

_NO_RANGE = 1e-12
_SAMPLES = 1 << 16
_SHRINKS = 40


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
            ranges: "least_error" rounds it with the least squared error; "min_max" clips nothing.
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
        flat = values.flatten()
        step = max(1, len(flat) // _SAMPLES)
        self._samples.append(flat[::step].float().clone())


def best_range(samples: Tensor, low: float, high: float) -> tuple[float, float]:
    """The range whose 256 levels round samples with the least squared error.

    A wide range rounds coarsely, a narrow one clips: each end is drawn in on its own, step by step.

    Args:
        samples: `(N,)`.
        low: smallest value, at most 0.
        high: largest value, at least 0.

    Returns:
        A range that contains 0, inside (low, high).
    """
    if high - low < _NO_RANGE:
        return 0.0, 1.0
    best = (low, high)
    least = _squared_error(samples, *best)
    for share in torch.linspace(1, 1 / _SHRINKS, _SHRINKS).tolist():
        for candidate in ((low * share, high), (best[0], high * share)):
            error = _squared_error(samples, *candidate)
            if error < least and candidate[1] - candidate[0] > _NO_RANGE:
                best, least = candidate, error
    return best


def round_weights(weight: Tensor) -> Tensor:
    """Rounds each output channel to 255 levels that are symmetric about 0; gradients pass straight through."""
    scale = weight_scales(weight.detach())
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, -WEIGHT_HIGH, WEIGHT_HIGH)


def weight_scales(weight: Tensor) -> Tensor:
    """`(C,)`, the scale of each output channel of a weight `(C, ...)`."""
    return weight.abs().flatten(1).amax(1).clamp_min(1e-8) / WEIGHT_HIGH


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


def _squared_error(samples: Tensor, low: float, high: float) -> float:
    scale = (high - low) / (HIGH - LOW)
    zero_point = round(LOW - low / scale) if scale > 0 else 0
    if not LOW <= zero_point <= HIGH:
        return float("inf")
    rounded = torch.fake_quantize_per_tensor_affine(samples, scale, zero_point, LOW, HIGH)
    return float((rounded - samples).square().mean())

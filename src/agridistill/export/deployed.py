"""Wraps a network as a device runs it: it takes uint8 photos, returns logits, and rounds as the file formats do."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from agridistill.manifest import Preprocessing
from agridistill.models import normalise_batch
from agridistill.models.rounding import (
    HIGH,
    LOW,
    WEIGHT_HIGH,
    ActivationRounding,
    PhotoLevels,
    RoundedConv2d,
    RoundedLinear,
    UnitClamp,
    weight_scales,
)
from agridistill.progress import STDERR, STDOUT, captured_output

Outputs = Tensor | tuple[Tensor, Tensor]
"""Logits `(N, K)` float32, or logits and attention maps `(N, H, W)` float32."""


class Deployed(nn.Module):
    """A network that includes its preprocessing, so a device cannot use a wrong mean or standard deviation.

    Args:
        network: takes normalised photos `(N, 3, S, S)` and returns logits `(N, K)`, or logits and attention maps
            `(N, H, W)` (see `models.with_attention`); it is copied.
        preprocessing: the preprocessing that the network expects.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self.preprocessing = _for_export(network), preprocessing

    def forward(self, pixels: Tensor) -> Outputs:
        """Computes the network's outputs for photos `(N, S, S, 3)` uint8."""
        outputs: Outputs = self.network(normalise_batch(pixels.permute(0, 3, 1, 2), self.preprocessing))
        return outputs


class DeployedInt8(nn.Module):
    """An int8 network that takes uint8 photos: their pixel values are the int8 levels of its first convolution.

    Args:
        network: from `models.quantised`, calibrated, and with or without `models.with_attention`; it is copied.
        unsigned: True for a format with levels from 0 to 255, as pixels have; False for levels from -128 to 127, to
            which the pixels are shifted first.
        operators: holds the quantise and dequantise operators to use: those of `models.rounding`, or others with
            the same names and arguments.
    """

    def __init__(self, network: nn.Module, *, unsigned: bool, operators: Any = torch.ops.agridistill) -> None:
        super().__init__()
        self.network = _written_out(network, unsigned, operators)

    def forward(self, pixels: Tensor) -> Outputs:
        """Computes the network's outputs for photos `(N, S, S, 3)` uint8."""
        outputs: Outputs = self.network(pixels.permute(0, 3, 1, 2))
        return outputs


def _for_export(network: nn.Module) -> nn.Module:
    """Returns a copy of the network without in-place operations: torch.export needs twice the time with them."""
    model = copy.deepcopy(network).eval()
    for module in model.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010 - mypy believes that the attribute is a tensor
    return model


def _written_out(network: nn.Module, unsigned: bool, operators: Any) -> nn.Module:
    """Returns a copy of an int8 network in which each rounding is a quantise and a dequantise operator."""
    model = _for_export(network)
    _part_equal_biases(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PhotoLevels):
                setattr(parent, name, _Pixels(child, unsigned, operators))
            elif isinstance(child, UnitClamp):
                # The rounding that follows has only levels between 0 and 1, so it clamps by itself.
                setattr(parent, name, nn.Identity())
            elif isinstance(child, ActivationRounding):
                setattr(parent, name, _Activation(child, operators))
            elif isinstance(child, RoundedConv2d):
                setattr(parent, name, _Convolution(child, operators))
            elif isinstance(child, RoundedLinear):
                setattr(parent, name, _Linear(child, operators))
    return model


@torch.no_grad()
def _part_equal_biases(model: nn.Module) -> None:
    """Makes equal values of a bias differ: the converter would share them between layers with other scales."""
    for place, module in enumerate(model.modules()):
        if not isinstance(module, RoundedConv2d | RoundedLinear) or module.bias is None:
            continue
        if bool((module.bias == module.bias[0]).all()):
            # This changes the layer's output by less than a thousandth of a level.
            module.bias += 1e-7 * place * torch.linspace(0.5, 1, len(module.bias), device=module.bias.device)


class _Pixels(nn.Module):
    def __init__(self, levels: PhotoLevels, unsigned: bool, operators: Any) -> None:
        super().__init__()
        self.scale, self.zero_point = levels.scale, levels.zero_point
        self.unsigned, self.operators = unsigned, operators

    def forward(self, pixels: Tensor) -> Tensor:
        if not self.unsigned:
            values = (pixels.float() - self.zero_point) * self.scale
            return _in_levels(values, self.scale, self.zero_point + LOW, self.operators)
        how = (self.scale, self.zero_point, 0, 255, torch.uint8)
        levels: Tensor = self.operators.dequantize_per_tensor(pixels, *how)
        return levels


class _Activation(nn.Module):
    def __init__(self, rounding: ActivationRounding, operators: Any) -> None:
        super().__init__()
        self.operators = operators
        self.scale, self.zero_point = float(rounding.scale), int(rounding.zero_point)

    def forward(self, values: Tensor) -> Tensor:
        return _in_levels(values, self.scale, self.zero_point, self.operators)


def _in_levels(values: Tensor, scale: float, zero_point: int, operators: Any) -> Tensor:
    how = (scale, zero_point, LOW, HIGH, torch.int8)
    levels = operators.quantize_per_tensor(values, *how)
    rounded: Tensor = operators.dequantize_per_tensor(levels, *how)
    return rounded


class _Weights(nn.Module):
    """A layer's weights, with one scale for each output channel."""

    scales: Tensor
    zero_points: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, operators: Any) -> None:
        super().__init__()
        self.weight, self.bias, self.operators = layer.weight, layer.bias, operators
        scales = weight_scales(layer.weight.detach())
        self.register_buffer("scales", scales)
        self.register_buffer("zero_points", torch.zeros(len(scales), dtype=torch.int64))

    def rounded(self) -> Tensor:
        how = (self.scales, self.zero_points, 0, -WEIGHT_HIGH, WEIGHT_HIGH, torch.int8)
        levels = self.operators.quantize_per_channel(self.weight, *how)
        rounded: Tensor = self.operators.dequantize_per_channel(levels, *how)
        return rounded


class _Convolution(_Weights):
    def __init__(self, layer: nn.Conv2d, operators: Any) -> None:
        super().__init__(layer, operators)
        self.geometry: tuple[Any, ...] = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.conv2d(values, self.rounded(), self.bias, *self.geometry)


class _Linear(_Weights):
    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.linear(values, self.rounded(), self.bias)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses all output of converters in its block (also that of native code), because users cannot act on it."""
    unheard = io.StringIO()
    before = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        captured_output(STDOUT, STDERR),
        contextlib.redirect_stdout(unheard),
        contextlib.redirect_stderr(unheard),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)

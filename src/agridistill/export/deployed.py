"""The network as a device runs it: uint8 photos in, logits out, and rounding as the exchange formats write it."""

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
from agridistill.models.int8 import PhotoLevels, RoundedConv2d, RoundedLinear, UnitClamp
from agridistill.models.int8.rounding import HIGH, LOW, WEIGHT_HIGH, ActivationRounding, weight_scales
from agridistill.progress import STDERR, STDOUT, captured_output


class Deployed(nn.Module):
    """A network with its preprocessing: scale, mean and standard deviation cannot be got wrong on the device.

    Args:
        network: takes normalised photos `(N, 3, S, S)`, gives logits `(N, K)`; it is copied.
        preprocessing: of its input.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self.preprocessing = _for_export(network), preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits `(N, K)` float32 of photos `(N, S, S, 3)` uint8."""
        logits: Tensor = self.network(normalise_batch(pixels.permute(0, 3, 1, 2), self.preprocessing))
        return logits


class DeployedInt8(nn.Module):
    """A network that takes a photo's pixels for the levels of its first convolution.

    Args:
        network: from `models.quantised`, calibrated; it is copied.
        unsigned: the format has levels from 0 on, as pixels are: no arithmetic stands before the convolution.
        operators: quantise and dequantise (`models.int8.rounding`), or others of these names and arguments.
    """

    def __init__(self, network: nn.Module, *, unsigned: bool, operators: Any = torch.ops.agridistill) -> None:
        super().__init__()
        self.network = _written_out(network, unsigned, operators)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits `(N, K)` float32 of photos `(N, S, S, 3)` uint8."""
        logits: Tensor = self.network(pixels.permute(0, 3, 1, 2))
        return logits


def _for_export(network: nn.Module) -> nn.Module:
    """A copy without operations in place: torch.export takes each of those apart first, half of an export's time."""
    model = copy.deepcopy(network).eval()
    for module in model.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010 - of any activation, which mypy takes for a tensor
    return model


def _written_out(network: nn.Module, unsigned: bool, operators: Any) -> nn.Module:
    """A copy whose roundings are pairs of quantise and dequantise."""
    model = _for_export(network)
    _part_equal_biases(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PhotoLevels):
                setattr(parent, name, _Pixels(child, unsigned, operators))
            elif isinstance(child, UnitClamp):
                # Levels of the rounding after it lie between 0 and 1.
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
    """Varies biases of one value a little: LiteRT's converter shares such constants between layers, at one scale."""
    for place, module in enumerate(model.modules()):
        if not isinstance(module, RoundedConv2d | RoundedLinear) or module.bias is None:
            continue
        if bool((module.bias == module.bias[0]).all()):
            # Less than a thousandth of a level of what the layer gives.
            module.bias += 1e-7 * place * torch.linspace(0.5, 1, len(module.bias), device=module.bias.device)


class _Pixels(nn.Module):
    def __init__(self, levels: PhotoLevels, unsigned: bool, operators: Any) -> None:
        super().__init__()
        self.scale, self.zero_point, self.unsigned, self.operators = (
            levels.scale,
            levels.zero_point,
            unsigned,
            operators,
        )

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
    """Weights, and the scale of each of their output channels."""

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
    """Silences prints, warnings and logs of converters, also of native code: they are for their developers."""
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

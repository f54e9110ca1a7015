"""The network as a device runs it: uint8 photos in, logits out, and rounding as the exchange formats write it."""

from __future__ import annotations

import copy

import torch

# Registers torch.ops.quantized_decomposed, which the exporters know.
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

from agridistill.manifest import Preprocessing
from agridistill.models.normalisation import normalise_batch
from agridistill.models.quantised import PhotoLevels, UnitClamp
from agridistill.models.rounding import (
    HIGH,
    LOW,
    WEIGHT_HIGH,
    ActivationRounding,
    RoundedConv2d,
    RoundedLinear,
    weight_scales,
)


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
    """

    def __init__(self, network: nn.Module, *, unsigned: bool) -> None:
        super().__init__()
        self.network = _written_out(network, unsigned=unsigned)

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


def _written_out(network: nn.Module, *, unsigned: bool) -> nn.Module:
    """A copy whose roundings are pairs of quantise and dequantise."""
    model = _for_export(network)
    _part_equal_biases(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PhotoLevels):
                setattr(parent, name, (_UnsignedPixels if unsigned else _SignedPixels)(child))
            elif isinstance(child, UnitClamp):
                # Levels of the rounding after it lie between 0 and 1.
                setattr(parent, name, nn.Identity())
            elif isinstance(child, ActivationRounding):
                setattr(parent, name, _Activation(child))
            elif isinstance(child, RoundedConv2d):
                setattr(parent, name, _Convolution(child))
            elif isinstance(child, RoundedLinear):
                setattr(parent, name, _Linear(child))
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
    def __init__(self, levels: PhotoLevels) -> None:
        super().__init__()
        self.scale, self.zero_point = levels.scale, levels.zero_point


class _UnsignedPixels(_Pixels):
    def forward(self, pixels: Tensor) -> Tensor:
        how = (self.scale, self.zero_point, 0, 255, torch.uint8)
        values: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor(pixels, *how)
        return values


class _SignedPixels(_Pixels):
    def forward(self, pixels: Tensor) -> Tensor:
        values = (pixels.float() - self.zero_point) * self.scale
        return _in_levels(values, self.scale, self.zero_point + LOW)


class _Activation(nn.Module):
    def __init__(self, rounding: ActivationRounding) -> None:
        super().__init__()
        self.scale, self.zero_point = float(rounding.scale), int(rounding.zero_point)

    def forward(self, values: Tensor) -> Tensor:
        return _in_levels(values, self.scale, self.zero_point)


def _in_levels(values: Tensor, scale: float, zero_point: int) -> Tensor:
    how = (scale, zero_point, LOW, HIGH, torch.int8)
    levels = torch.ops.quantized_decomposed.quantize_per_tensor(values, *how)
    rounded: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor(levels, *how)
    return rounded


class _Weights(nn.Module):
    """Weights, and the scale of each of their output channels."""

    scales: Tensor
    zero_points: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        scales = weight_scales(layer.weight.detach())
        self.register_buffer("scales", scales)
        self.register_buffer("zero_points", torch.zeros(len(scales), dtype=torch.int64))

    def rounded(self) -> Tensor:
        how = (self.scales, self.zero_points, 0, -WEIGHT_HIGH, WEIGHT_HIGH, torch.int8)
        levels = torch.ops.quantized_decomposed.quantize_per_channel(self.weight, *how)
        rounded: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(levels, *how)
        return rounded


class _Convolution(_Weights):
    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        self.stride, self.padding, self.dilation, self.groups = (
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.conv2d(
            values, self.rounded(), self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class _Linear(_Weights):
    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.linear(values, self.rounded(), self.bias)

"""Parameters and arithmetic of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Complexity:
    """Cost of one photo; 1 MAC is 2 FLOPs."""

    parameters: int
    macs: int
    flops: int


def complexity(model: nn.Module, image_size: int | tuple[int, int]) -> Complexity:
    """Counts parameters, and the arithmetic of convolutions, linear layers and attention products for one photo.

    Element-wise work (activations, normalisation, pooling) is not counted, as in the published figures.

    Args:
        model: takes `(1, 3, H, W)`; runs on its own device, which may be "meta", and keeps its mode.
        image_size: the side in pixels, or (height, width).

    Example:
        >>> complexity(nn.Conv2d(3, 8, kernel_size=3, padding=1, bias=False), image_size=10)
        Complexity(parameters=216, macs=21600, flops=43200)
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    weight = next(model.parameters())
    photo = torch.zeros(1, 3, height, width, dtype=weight.dtype, device=weight.device)
    modes = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False)
    try:
        model.eval()
        # The counter does not know every fused attention kernel, but the products of the plain one.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(photo)
    finally:
        for module, training in modes.items():
            module.training = training
    flops = int(counter.get_total_flops())
    return Complexity(sum(parameter.numel() for parameter in model.parameters()), flops // 2, flops)

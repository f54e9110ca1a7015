from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from agridistill.models.factory import create_model


@pytest.fixture
def lively_network() -> nn.Module:
    """A network of six classes whose answers differ from photo to photo, as a trained one's do."""
    torch.manual_seed(0)
    network = create_model("mobilenetv3_small_050", 6)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


@pytest.fixture
def patches() -> NDArray[np.uint8]:
    """Six photos of 64 px, patches of colour: noise looks the same to every network."""
    colours = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    return colours.repeat(16, axis=1).repeat(16, axis=2)

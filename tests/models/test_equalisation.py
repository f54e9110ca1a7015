"""Cross-layer equalisation changes weights, never answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from agridistill.models.equalisation import equalise
from agridistill.models.factory import create_model
from agridistill.models.quantised import folded


def unequal(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(name, 4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.01, 10.0)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
    return model.eval()


@pytest.mark.parametrize("name", ["mobilenetv2_035", "resnet10t", "mobilenetv3_small_050"])
@torch.no_grad()
def test_no_answer_changes(name: str) -> None:
    graph = folded(unequal(name))
    photos = torch.randn(2, 3, 64, 64)
    before = graph(photos)
    assert equalise(graph) > 0
    torch.testing.assert_close(graph(photos), before, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_two_convolutions_share_their_range() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1))
    network[0].weight.mul_(torch.logspace(-2, 2, 6).view(-1, 1, 1, 1))
    graph = folded(network)
    photos = torch.randn(2, 3, 8, 8)
    before = graph(photos)
    assert equalise(graph) == 2
    torch.testing.assert_close(graph(photos), before, rtol=1e-4, atol=1e-5)
    first, middle, last = (module for module in graph.modules() if isinstance(module, nn.Conv2d))
    ranges = [
        first.weight.abs().amax(dim=(1, 2, 3)),
        middle.weight.abs().amax(dim=(1, 2, 3)),
        last.weight.abs().amax(dim=(0, 2, 3)),
    ]
    torch.testing.assert_close(ranges[0], ranges[1], rtol=0.02, atol=0)
    torch.testing.assert_close(ranges[1], ranges[2], rtol=0.02, atol=0)


@torch.no_grad()
def test_a_dead_channel_with_a_bias_stays_as_it_is() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    network[0].weight[0] *= 1e-6
    network[0].bias[0] = 0.5
    graph = folded(network)
    equalise(graph)
    first = next(module for module in graph.modules() if isinstance(module, nn.Conv2d))
    assert float(first.bias[0]) == 0.5


def test_depthwise_convolutions_that_multiply_channels_are_left_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 1))
    graph = folded(network)
    photos = torch.randn(2, 3, 8, 8)
    before = graph(photos)
    assert equalise(graph) == 1
    torch.testing.assert_close(graph(photos), before, rtol=1e-4, atol=1e-5)

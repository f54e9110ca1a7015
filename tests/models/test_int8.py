"""The network that computes as its int8 artefact."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from agridistill.errors import ModelError
from agridistill.manifest import Preprocessing
from agridistill.models import create_model, normalise_batch
from agridistill.models.int8 import calibrate, equalise, folded, quantised
from agridistill.models.rounding import ActivationRounding, PhotoLevels, RoundedConv2d, round_weights

PREPROCESSING = Preprocessing(64)
# Normalised as levels are: with these there is nothing to fold.
AS_LEVELS = Preprocessing(64, mean=(128 / 255,) * 3, std=(0.25,) * 3)
NETWORKS = ["mobilenetv3_small_050", "mobilenetv3_small_minimal_100", "resnet10t", "efficientnet_lite0"]


def network(name: str = "mobilenetv3_small_050") -> nn.Module:
    """With batch norm statistics that are not the initial ones: folding has something to fold."""
    torch.manual_seed(0)
    model = create_model(name, 5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def photos(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_folding_batch_norm_changes_no_answer(name: str) -> None:
    model = network(name)
    without_norm = folded(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in without_norm.modules())
    torch.testing.assert_close(without_norm(photos()), model(photos()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_rounding_changes_answers_a_little(name: str) -> None:
    model = network(name)
    rounded = quantised(model, PREPROCESSING)
    calibrate(rounded, [photos()])
    expected, found = model(photos()), rounded(photos())
    assert 0 < (found - expected).std() < 0.25 * expected.std()


@pytest.mark.parametrize("equalised", [True, False])
@torch.no_grad()
def test_before_calibration_only_the_weights_are_rounded(equalised: bool) -> None:
    model = network()
    rounded = quantised(model, AS_LEVELS) if equalised else quantised(model, AS_LEVELS, equalised=False)
    for module in rounded.modules():
        if isinstance(module, ActivationRounding):
            module.observe()
    reference = folded(model)
    if equalised:
        assert equalise(reference) > 0
    for module in reference.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.copy_(round_weights(module.weight))
    torch.testing.assert_close(rounded(photos()), reference(photos()), rtol=1e-4, atol=1e-5)


def test_every_convolution_is_rounded_and_the_original_stays_as_it_was() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    rounded = quantised(model, PREPROCESSING)
    convolutions = [module for module in rounded.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) > 20
    assert all(isinstance(module, RoundedConv2d) for module in convolutions)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_is_restored_from_its_tensors() -> None:
    rounded = quantised(network(), PREPROCESSING)
    calibrate(rounded, [photos()])
    again = quantised(network("mobilenetv3_small_050"), PREPROCESSING)
    again.load_state_dict(rounded.state_dict())
    assert torch.equal(again.eval()(photos()), rounded(photos()))


def test_a_transformer_is_refused() -> None:
    with pytest.raises(ModelError, match="export it in fp32"):
        quantised(create_model("swin_nano_patch4_window4_64", 5, image_size=64), PREPROCESSING)


@torch.no_grad()
def test_the_first_convolution_takes_pixels_as_they_are() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, padding=1)
    pixels = torch.randint(256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    normalised = normalise_batch(pixels, PREPROCESSING)
    expected, weight, bias = conv(normalised), conv.weight.clone(), conv.bias.clone()
    levels = PhotoLevels(PREPROCESSING)
    levels.fold_into(conv)
    photo = levels(normalised)
    torch.testing.assert_close(photo, (pixels - levels.zero_point) * levels.scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(conv(photo)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-5)
    # At the border it sees pixels of one grey, where the float network sees the mean of each channel.
    framed = nn.functional.pad(pixels, (1, 1, 1, 1), value=levels.zero_point)
    unpadded = nn.functional.conv2d(normalise_batch(framed, PREPROCESSING), weight, bias)
    torch.testing.assert_close(conv(photo), unpadded, rtol=1e-4, atol=1e-5)


def test_a_network_that_begins_otherwise_is_refused() -> None:
    with pytest.raises(ModelError, match="begins with one convolution"):
        quantised(nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.ReLU()), PREPROCESSING)


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

"""The attention map as a second output of a network: StageTap's map, whatever form the network has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from agridistill.errors import ModelError
from agridistill.manifest import Preprocessing
from agridistill.models import StageTap, aligned_stride, create_model, with_attention
from agridistill.models.int8 import calibrate, folded, quantised
from agridistill.models.rounding import ActivationRounding

SWIN = "swin_nano_patch4_window4_64"


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(name, 5, image_size=64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def photos() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def reference(model: nn.Module, stride: int) -> tuple[Tensor, Tensor]:
    with StageTap(model, [stride]) as tap:
        logits, found = model(photos()), tap.maps()[stride]
    return logits, torch.stack([each / each.max() for each in found])


@pytest.mark.parametrize(
    ("name", "stride"), [("mobilenetv3_small_050", 16), ("efficientnet_lite0", 32), ("resnet10t", 16), (SWIN, 16)]
)
def test_the_second_output_is_the_stages_map_with_peak_one(name: str, stride: int) -> None:
    model = network(name)
    logits, expected = reference(model, stride)
    forms = [model] if name == SWIN else [model, folded(model)]
    for form in forms:
        with torch.no_grad():
            plain = form(photos())
            found_logits, found = with_attention(form, stride)(photos())
        assert torch.equal(found_logits, plain)
        torch.testing.assert_close(found_logits, logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert found.dtype == torch.float32


def test_an_int8_networks_map_is_that_of_its_rounded_activations() -> None:
    rounded = quantised(network("mobilenetv3_small_050"), Preprocessing(64))
    calibrate(rounded, [photos()])
    tapped = with_attention(rounded, 16)
    assert isinstance(tapped, fx.GraphModule)
    (node,) = (node for node in tapped.graph.nodes if node.target == "stage_attention")
    assert isinstance(tapped.get_submodule(str(node.all_input_nodes[0].target)), ActivationRounding)
    with torch.no_grad():
        logits, found = tapped(photos())
        assert torch.equal(logits, rounded(photos()))
    _, exact = reference(network("mobilenetv3_small_050"), 16)
    assert found.shape == exact.shape
    assert 0 < float((found - exact).abs().mean()) < 0.1


def test_the_network_itself_is_not_changed() -> None:
    model = folded(network("mobilenetv3_small_050"))
    code = model.code
    with_attention(model, 16)
    assert model.code == code
    with pytest.raises(ModelError, match="a timm model with feature_info"):
        StageTap(model, [16])  # its stages are never called, so a tap would wait for ever
    assert isinstance(model(photos()), Tensor)


def test_a_map_of_zeros_stays_zero() -> None:
    class Dark(nn.Module):
        feature_info = ({"reduction": 16, "module": "stage", "num_chs": 3},)

        def __init__(self) -> None:
            super().__init__()
            self.stage = nn.Identity()

        def forward(self, values: Tensor) -> Tensor:
            return self.stage(values).mean(dim=(2, 3))

    _, found = with_attention(Dark(), 16)(torch.zeros(1, 3, 4, 4))
    assert torch.equal(found, torch.zeros(1, 4, 4))


@pytest.mark.parametrize("traced", [False, True])
def test_a_stage_that_the_network_lacks_is_one_line(traced: bool) -> None:
    model = network("mobilenetv3_small_050")
    with pytest.raises(ModelError, match=r"the stride of a stage of .*; got 5; choose one of 2, 4, 8, 16, 32"):
        with_attention(folded(model) if traced else model, 5)


@pytest.mark.parametrize(
    ("recipe", "stride"),
    [
        ("[objective]\nmethod = 'hybrid'\npairs = [{student = 16, teacher = 16}]", 16),
        ("[objective]\nmethod = 'at'\npairs = [{student = 32, teacher = 16}, {student = 8, teacher = 8}]", 32),
        ("[train]\nepochs = 3", 16),
        (None, 16),
    ],
)
def test_the_deepest_stage_that_a_run_aligned(tmp_path: Path, recipe: str | None, stride: int) -> None:
    if recipe is not None:
        (tmp_path / "recipe.toml").write_text(recipe)
    assert aligned_stride(tmp_path) == stride

"""LiteRT files compute what the network computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from agridistill import api
from agridistill.export.litert import to_litert
from agridistill.manifest import ModelManifest, Preprocessing
from agridistill.models.int8 import folded

pytestmark = pytest.mark.slow

pytest.importorskip(
    "litert_torch", reason="needs litert-torch, which is not installed: pip install 'agridistill[litert]'"
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("int8", [False, True])
def test_the_file_computes_what_its_network_computes(
    deployable: Callable[[bool], tuple[Any, ...]], patches: NDArray[np.uint8], tmp_path: Path, int8: bool
) -> None:
    network, manifest, expected, exact = deployable(int8)
    file = tmp_path / "leaf.tflite"
    file.write_bytes(to_litert(network, manifest.preprocessing, int8=int8))
    manifest.with_weights(file).write(file.with_suffix(".json"))
    found = api.load(file).backend.logits(patches)
    if int8:
        assert np.abs(found - expected).std() < np.abs(expected - exact).std()
        assert file.stat().st_size < 1.5 * sum(weight.numel() for weight in network.parameters())
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_another_tool_with_levels_for_logits_gives_logits(
    lively_network: nn.Module, patches: NDArray[np.uint8], tmp_path: Path
) -> None:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    manifest = ModelManifest("mobilenetv3_small_050", tuple("abcdef"), Preprocessing(64), "", "")
    plain, rounded = tmp_path / "plain.tflite", tmp_path / "rounded.tflite"
    plain.write_bytes(to_litert(folded(lively_network), manifest.preprocessing, int8=False))
    (signature, names), *_ = Interpreter(str(plain)).get_signature_list().items()
    tool = quantizer.Quantizer(str(plain))
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    result = tool.calibrate({signature: [{names["inputs"][0]: photo[None]} for photo in patches]})
    tool.quantize(result).export_model(str(rounded))
    for file in (plain, rounded):
        manifest.with_weights(file).write(file.with_suffix(".json"))
    expected = api.load(plain).backend.logits(patches)
    found = api.load(rounded).backend.logits(patches)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9
    assert 0.5 < found.std() / expected.std() < 2

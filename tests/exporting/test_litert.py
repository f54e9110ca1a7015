"""LiteRT files compute what the network computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from agridistill import api
from agridistill.exporting.litert import to_litert
from agridistill.manifest import ModelManifest, Preprocessing
from agridistill.models.normalisation import normalise_batch
from agridistill.models.quantised import calibrate, folded, quantised

pytest.importorskip("litert_torch", reason="needs the litert extra")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("int8", [False, True])
def test_the_file_computes_what_its_network_computes(
    lively_network: nn.Module, patches: NDArray[np.uint8], tmp_path: Path, int8: bool
) -> None:
    network = lively_network
    manifest = ModelManifest("mobilenetv3_small_050", tuple("abcdef"), Preprocessing(64), "", "")
    batch = normalise_batch(torch.from_numpy(patches).permute(0, 3, 1, 2), manifest.preprocessing)
    plain = folded(network)
    converted = plain
    if int8:
        converted = quantised(network)
        calibrate(converted, [batch])
    with torch.no_grad():
        expected, exact = converted(batch).numpy(), plain(batch).numpy()
    file = tmp_path / "leaf.tflite"
    file.write_bytes(to_litert(converted, manifest.preprocessing, int8=int8))
    manifest.with_weights(file).write(file.with_suffix(".json"))
    found = api.load(file).backend.logits(patches)
    if int8:
        assert np.abs(found - expected).std() < np.abs(expected - exact).std()
        assert file.stat().st_size < 1.5 * sum(weight.numel() for weight in network.parameters())
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

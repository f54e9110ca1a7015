"""LiteRT files compute what the network computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agridistill import api
from agridistill.exporting.litert import to_litert
from agridistill.models.normalisation import normalise_batch
from agridistill.models.quantised import calibrate, folded, quantised
from agridistill.models.saved import load_network

pytest.importorskip("litert_torch", reason="needs the litert extra")

PHOTOS = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("int8", [False, True])
def test_the_file_computes_what_its_network_computes(student_run: Path, tmp_path: Path, int8: bool) -> None:
    network, manifest = load_network(student_run)
    batch = normalise_batch(torch.from_numpy(PHOTOS).permute(0, 3, 1, 2), manifest.preprocessing)
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
    found = api.load(file).backend.logits(PHOTOS)
    if int8:
        assert np.abs(found - expected).std() < 0.7 * np.abs(expected - exact).std()
        assert file.stat().st_size < 0.5 * (student_run / "model.safetensors").stat().st_size
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

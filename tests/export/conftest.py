from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from agridistill.manifest import ModelManifest, Preprocessing
from agridistill.models import create_model, normalise_batch
from agridistill.models.int8 import calibrate, folded, quantised


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


@pytest.fixture
def deployable(lively_network: nn.Module, patches: NDArray[np.uint8]) -> Callable[[bool], tuple[Any, ...]]:
    """Told whether to round to int8: a network to export, its manifest, its logits of `patches` and the float one's."""

    def made(int8: bool) -> tuple[Any, ...]:
        manifest = ModelManifest("mobilenetv3_small_050", tuple("abcdef"), Preprocessing(64), "", "")
        batch = normalise_batch(torch.from_numpy(patches).permute(0, 3, 1, 2), manifest.preprocessing)
        network = plain = folded(lively_network)
        if int8:
            network = quantised(lively_network, manifest.preprocessing)
            calibrate(network, [batch])
        with torch.no_grad():
            return network, manifest, network(batch).numpy(), plain(batch).numpy()

    return made


@pytest.fixture(scope="session")
def fp32(student_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from agridistill.export.artefact import export

    out = tmp_path_factory.mktemp("fp32") / "leaf.onnx"
    export(student_run, out, force=True)
    return out


@pytest.fixture(scope="session")
def int8(student_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from agridistill.export.artefact import export

    out = tmp_path_factory.mktemp("int8") / "leaf.onnx"
    export(student_run, out, precision="int8", force=True)
    return out

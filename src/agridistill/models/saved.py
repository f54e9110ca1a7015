"""A finished run's network, ready to compute: what `load` gives for a run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agridistill.manifest import MANIFEST_NAME, ModelManifest, read_manifest
from agridistill.models.attention import StageTap
from agridistill.models.factory import create_model, load_weights
from agridistill.models.normalisation import normalise_batch
from agridistill.models.quantised import quantised
from agridistill.preprocess import Pixels

# As `PairSettings` aligns, and as reports show.
ATTENTION_STRIDE = 16


class TorchBackend:
    """Computes logits with torch, behind the same interface as the exported formats."""

    def __init__(self, model: nn.Module, manifest: ModelManifest, device: torch.device | None = None) -> None:
        self.manifest = manifest
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Logits of a batch.

        Args:
            pixels: `(N, S, S, 3)` uint8 RGB.

        Returns:
            `(N, K)` float32.
        """
        batch = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        logits: torch.Tensor = self.model(normalise_batch(batch, self.manifest.preprocessing))
        return logits.float().cpu().numpy()

    @torch.inference_mode()
    def attention(self, pixels: Pixels) -> NDArray[np.float32]:
        """Attention of a batch: squared activations of the stage that distillation aligns by default.

        Args:
            pixels: `(N, S, S, 3)` uint8 RGB.

        Returns:
            `(N, H, W)` float32, one value for each 16 px.

        Raises:
            ModelError: the network has no stage of stride 16 that keeps height and width.
        """
        with StageTap(self.model, strides=[ATTENTION_STRIDE]) as tap:
            self.logits(pixels)
            return tap.maps()[ATTENTION_STRIDE].cpu().numpy()


def load_network(folder: Path) -> tuple[nn.Module, ModelManifest]:
    """Rebuilds the network of a finished run.

    Raises:
        ModelError: no finished run, or weights that its manifest does not describe.
    """
    manifest = read_manifest(folder / MANIFEST_NAME)
    return network_of(manifest, folder), manifest


def network_of(manifest: ModelManifest, folder: Path) -> nn.Module:
    """Rebuilds the network that a manifest describes.

    Raises:
        ModelError: weights that are not there, or not those of the manifest.
    """
    weights = manifest.verified_weights(folder)
    model = create_model(manifest.model, len(manifest.classes), image_size=manifest.preprocessing.image_size)
    if manifest.precision == "int8":
        model = quantised(model, manifest.preprocessing)
    load_weights(model, weights)
    return model


def load_backend(folder: Path) -> TorchBackend:
    """The network of a finished run as a backend.

    Raises:
        ModelError: no finished run, or weights that its manifest does not describe.
    """
    model, manifest = load_network(folder)
    return TorchBackend(model, manifest)

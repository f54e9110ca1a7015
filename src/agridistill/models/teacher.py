"""Runs the network of a finished run in torch: as the backend of a predictor, and as the teacher of a distillation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agridistill.manifest import MANIFEST_NAME, ModelManifest, Preprocessing, read_manifest
from agridistill.models.factory import create_model
from agridistill.models.int8.graph import quantised
from agridistill.models.taps import StageTap
from agridistill.models.weights import load_weights
from agridistill.preprocess import Pixels

# Version of the computation of logits and maps; increase it when the results change, to invalidate old caches.
OUTPUTS_VERSION = 2

# The teacher's output besides logits: attention maps of one of two kinds, or feature maps.
TeacherKind = Literal["activation", "window", "features"]

# Reports show attention at this stride.
_ATTENTION_STRIDE = 16
# Rounding of matrix products depends on their shape, so a fixed batch size gives each photo the same result always.
_BATCH_SIZE = 32


def normalise_batch(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Normalises a batch of photos by mean and standard deviation; `preprocess.normalise` does it for one photo.

    Args:
        pixels: `(B, 3, H, W)` uint8 or float, values from 0 to 255.
        preprocessing: holds mean and standard deviation.

    Returns:
        `(B, 3, H, W)` float32 in the same memory format.
    """
    mean = torch.tensor(preprocessing.mean, device=pixels.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=pixels.device).view(1, 3, 1, 1) * 255
    return (pixels.float() - mean) / std


def network_of(manifest: ModelManifest, folder: Path) -> nn.Module:
    """Creates the network that a manifest describes, with the weights in `folder`.

    Raises:
        ModelError: the weights are missing, or the manifest has another checksum.
    """
    weights = manifest.verified_weights(folder)
    model = create_model(manifest.model, len(manifest.classes), image_size=manifest.preprocessing.image_size)
    if manifest.precision == "int8":
        model = quantised(model, manifest.preprocessing)
    load_weights(model, weights)
    return model


def load_network(folder: Path) -> tuple[nn.Module, ModelManifest]:
    """Creates the network of a finished run and returns it with its manifest.

    Raises:
        ModelError: `folder` holds no finished run, or the weights do not match its manifest.
    """
    manifest = read_manifest(folder / MANIFEST_NAME)
    return network_of(manifest, folder), manifest


def load_backend(folder: Path) -> TorchBackend:
    """Creates a backend that runs the network of a finished run; raises the errors of `load_network`."""
    return TorchBackend(*load_network(folder))


class TorchBackend:
    """Runs a network in torch, with the same interface as the backends of exported files.

    `device` is where it runs; None takes a GPU if there is one, otherwise the processor.
    """

    def __init__(self, model: nn.Module, manifest: ModelManifest, device: torch.device | None = None) -> None:
        self.manifest = manifest
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes logits `(N, K)` float32 for RGB photos `(N, S, S, 3)` uint8."""
        batch = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        logits: Tensor = self.model(normalise_batch(batch, self.manifest.preprocessing))
        return logits.float().cpu().numpy()

    @torch.inference_mode()
    def attention(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes attention maps `(N, H, W)` float32 for RGB photos `(N, S, S, 3)` uint8, one value for each 16 px.

        Raises:
            ModelError: the network has no stage of stride 16 that keeps height and width.
        """
        with StageTap(self.model, strides=[_ATTENTION_STRIDE]) as tap:
            self.logits(pixels)
            return tap.maps()[_ATTENTION_STRIDE].cpu().numpy()


class HasPixels(Protocol):
    """A batch that a teacher can use: it has pixels."""

    @property
    def pixels(self) -> Tensor:
        """The photos, `(B, 3, H, W)` uint8."""
        ...


class LiveTeacher:
    """Runs the teacher's network, frozen and in eval mode, on the photos that the student sees.

    Args:
        model: the teacher's network with its classifier; it is frozen and put into eval mode.
        preprocessing: the teacher's input size, mean and standard deviation, which may differ from the student's.
        strides: strides of the stages whose maps are returned; may be empty.
        kind: "activation" or "window" returns attention maps, "features" returns feature maps.
        per_head: returns one map for each head of window attention; otherwise the mean over the heads.
        bf16: computes in bf16 by autocast, as the teacher was trained.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        *,
        strides: Sequence[int],
        kind: TeacherKind = "activation",
        per_head: bool = False,
        bf16: bool = False,
    ) -> None:
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.preprocessing, self.strides = preprocessing, tuple(strides)
        self.kind, self.per_head, self.bf16 = kind, per_head, bf16
        self._tap = StageTap(self.model, self.strides, "window" if kind == "window" else "activation")

    def map_counts(self) -> dict[int, int]:
        """Returns the number of maps of each photo in `outputs` by stride: 1, the number of heads, or of channels."""
        if self.kind == "features":
            return {stride: self._tap.channels(stride) for stride in self.strides}
        return {stride: self._tap.map_count(stride) if self.per_head else 1 for stride in self.strides}

    def to(self, device: torch.device) -> None:
        """Moves the network to a device."""
        self.model.to(device)

    def example(self, count: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Returns the outputs for `count` black photos, to find out shapes."""
        size = self.preprocessing.image_size
        device = next(self.model.parameters()).device
        return self._forward(torch.zeros(count, 3, size, size, device=device))

    def outputs(self, batch: HasPixels) -> tuple[Tensor, dict[int, Tensor]]:
        """Returns logits `(B, K)` float32, and maps by stride: `(B, H, W)`, `(B, heads, H, W)` or `(B, C, H, W)`.

        The outputs for a photo do not depend on the other photos of its batch; on CPUs they are bit-identical.
        """
        count = len(batch.pixels)
        parts = [self._forward(_padded(part).float()) for part in torch.split(batch.pixels, _BATCH_SIZE)]
        logits = torch.cat([part for part, _ in parts])[:count]
        maps = {stride: torch.cat([each[stride] for _, each in parts])[:count] for stride in self.strides}
        return logits, maps

    @torch.no_grad()
    def _forward(self, pixels: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        size = self.preprocessing.image_size
        if pixels.shape[-2:] != (size, size):
            # The student may train at another image size; the teacher gets the same view in its own size.
            pixels = nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(normalise_batch(pixels, self.preprocessing))
        if self.kind == "features":
            return logits.float(), {stride: features.float() for stride, features in self._tap.features().items()}
        maps = self._tap.maps()
        if self.kind == "window" and not self.per_head:
            maps = {stride: heads.mean(1) for stride, heads in maps.items()}
        return logits.float(), maps


def _padded(pixels: Tensor) -> Tensor:
    missing = _BATCH_SIZE - len(pixels)
    return torch.cat([pixels, pixels[:1].expand(missing, -1, -1, -1)]) if missing else pixels

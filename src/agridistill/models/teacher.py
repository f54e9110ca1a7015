"""Runs the network of a finished run in torch: as the backend of a predictor, and as the teacher of a distillation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agridistill.manifest import MANIFEST_NAME, ModelManifest, Preprocessing, read_manifest
from agridistill.models.attention import ATTENTION_STRIDE, aligned_stride, with_attention
from agridistill.models.factory import create_model
from agridistill.models.int8 import quantised
from agridistill.models.taps import StageTap
from agridistill.models.weights import load_weights
from agridistill.preprocess import Pixels

# Version of the computation of logits and maps; increase it when the results change, to invalidate old caches.
OUTPUTS_VERSION = 2

# The teacher's output besides logits: attention maps of one of two kinds, or feature maps.
TeacherKind = Literal["activation", "window", "features"]

# Rounding of matrix products depends on their shape, so a fixed batch size gives each photo the same result always.
_BATCH_SIZE = 32


def normalise_batch(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Subtracts the mean of each RGB channel from a batch of photos, and divides by its standard deviation.

    Args:
        pixels: `(B, 3, H, W)` uint8 or float, values from 0 to 255.
        preprocessing: has mean and standard deviation, each for values from 0 to 1.

    Returns:
        `(B, 3, H, W)` float32 in the same memory format.
    """
    mean = torch.tensor(preprocessing.mean, device=pixels.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=pixels.device).view(1, 3, 1, 1) * 255
    return (pixels.float() - mean) / std


def network_of(manifest: ModelManifest, folder: Path) -> nn.Module:
    """Creates the network that a manifest describes, and loads its weights from the run folder `folder`.

    Raises:
        ModelError: the weights are missing, or their sha256 is not that of the manifest.
    """
    weights = manifest.verified_weights(folder)
    model = create_model(manifest.model, len(manifest.classes), image_size=manifest.preprocessing.image_size)
    if manifest.precision == "int8":
        model = quantised(model, manifest.preprocessing)
    load_weights(model, weights)
    return model


def load_network(folder: Path) -> tuple[nn.Module, ModelManifest]:
    """Loads the network of the finished run in `folder`, and returns it with its manifest.

    Raises:
        ModelError: `folder` holds no finished run, or the weights' sha256 is not that of the manifest.
    """
    manifest = read_manifest(folder / MANIFEST_NAME)
    return network_of(manifest, folder), manifest


def load_backend(folder: Path) -> TorchBackend:
    """Loads the network of the finished run in `folder` as a backend; raises the errors of `load_network`."""
    network, manifest = load_network(folder)
    return TorchBackend(network, manifest, attention_stride=aligned_stride(folder))


class TorchBackend:
    """Runs a network in torch, with the same methods as the backends that run exported files.

    With `device` None, it runs on a GPU if there is one, otherwise on the processor. `attention_stride` selects the
    stage whose attention `attention` returns.
    """

    def __init__(
        self,
        model: nn.Module,
        manifest: ModelManifest,
        device: torch.device | None = None,
        *,
        attention_stride: int = ATTENTION_STRIDE,
    ) -> None:
        self.manifest, self.attention_stride = manifest, attention_stride
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes logits `(N, K)` float32 for RGB photos `(N, S, S, 3)` uint8."""
        logits: Tensor = self.model(self._normalised(pixels))
        return logits.float().cpu().numpy()

    @torch.inference_mode()
    def attention(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes attention maps `(N, H, W)` float32, each with largest value 1, for photos `(N, S, S, 3)` uint8.

        H and W are S / `attention_stride`.

        Raises:
            ModelError: the network has no stage of this stride whose output keeps height and width.
        """
        _, attention = with_attention(self.model, self.attention_stride)(self._normalised(pixels))
        found: NDArray[np.float32] = attention.cpu().numpy()
        return found

    def _normalised(self, pixels: Pixels) -> Tensor:
        batch = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        return normalise_batch(batch, self.manifest.preprocessing)


class LiveTeacher:
    """Runs the teacher's network on the augmented photos of a batch, for the training of a student.

    Args:
        model: the teacher's network with its classifier; it is frozen and put into eval mode.
        preprocessing: the teacher's input size, mean and standard deviation, which may differ from the student's.
        strides: strides of the stages whose maps are returned, in input pixels; may be empty.
        kind: what the maps are. "activation": attention as mean square of the activations; "window": Swin's window
            attention; "features": the feature maps themselves.
        per_head: for "window", whether each attention head gives its own map instead of the mean over heads.
        bf16: whether to compute in bfloat16 by autocast, as in the teacher's training.
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
        """Returns how many maps `outputs` gives for each photo, by stride: 1, or the number of heads or channels."""
        if self.kind == "features":
            return {stride: self._tap.channels(stride) for stride in self.strides}
        return {stride: self._tap.map_count(stride) if self.per_head else 1 for stride in self.strides}

    def to(self, device: torch.device) -> None:
        """Moves the teacher's network to a device."""
        self.model.to(device)

    def example(self, count: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Returns the outputs for `count` black photos, from which callers learn the shapes."""
        size = self.preprocessing.image_size
        device = next(self.model.parameters()).device
        return self._forward(torch.zeros(count, 3, size, size, device=device))

    def outputs(self, pixels: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Returns the logits `(B, K)` and the maps by stride for photos `(B, 3, H, W)` uint8, as float32.

        Maps are `(B, H, W)`, with `per_head` `(B, heads, H, W)`, and of the kind "features" `(B, C, H, W)`. The outputs
        for a photo do not depend on the other photos of the batch; on CPUs they are bit-identical.
        """
        count = len(pixels)
        parts = [self._forward(_padded(part).float()) for part in torch.split(pixels, _BATCH_SIZE)]
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

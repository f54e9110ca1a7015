"""Runs the network of a finished run in torch: as the backend of a predictor, and as the teacher of a distillation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agridistill.manifest import MANIFEST_NAME, ModelManifest, Preprocessing, read_manifest
from agridistill.models.factory import create_model
from agridistill.models.int8 import quantised
from agridistill.models.taps import ATTENTION_STRIDE, StageTap, aligned_stride, with_attention
from agridistill.models.weights import load_weights
from agridistill.preprocess import Pixels

# Version of the computation of logits and maps; increase it when the results change, to invalidate old caches.
OUTPUTS_VERSION = 2

# How the teacher's attention maps are computed.
TeacherKind = Literal["activation", "window"]

# Rounding of matrix products depends on their shape, so a fixed batch size gives each photo the same result always.
_BATCH_SIZE = 32


class TeacherOutputs(NamedTuple):
    """The outputs of a teacher for a batch of B photos."""

    logits: Tensor  # `(B, K)` float32
    maps: dict[int, Tensor]  # attention maps by stride, `(B, H, W)` or `(B, M, H, W)` float32
    features: dict[int, Tensor]  # feature maps by stride, `(B, C, H, W)` float32


def normalise_batch(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Normalises photos `(B, 3, H, W)`, uint8 or float from 0 to 255, to float32 in the same memory format."""
    mean = torch.tensor(preprocessing.mean, device=pixels.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=pixels.device).view(1, 3, 1, 1) * 255
    return (pixels.float() - mean) / std


def network_of(manifest: ModelManifest, folder: Path) -> nn.Module:
    """Creates the network that a manifest describes, and loads its verified weights from the run folder `folder`."""
    weights = manifest.verified_weights(folder)
    model = create_model(manifest.model, len(manifest.classes), image_size=manifest.preprocessing.image_size)
    if manifest.precision == "int8":
        model = quantised(model, manifest.preprocessing)
    load_weights(model, weights)
    return model


def load_network(folder: Path) -> tuple[nn.Module, ModelManifest]:
    """Loads the network of the finished run in `folder`, and returns it with its manifest.

    Raises a ModelError if there is no finished run, or the weights' sha256 is not that of the manifest.
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

        H and W are S / `attention_stride`. Raises a ModelError if the network has no stage of this stride whose output
        keeps height and width.
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
        strides: strides of the stages whose attention maps are returned, in input pixels; may be empty.
        kind: how attention maps are computed; see `StageTap`.
        per_head: for "window", whether each attention head gives its own map instead of the mean over heads.
        features: strides of the stages whose feature maps are returned; may be empty.
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
        features: Sequence[int] = (),
        bf16: bool = False,
    ) -> None:
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.preprocessing, self.strides = preprocessing, tuple(strides)
        self.kind, self.per_head, self.bf16 = kind, per_head, bf16
        self._tap = StageTap(self.model, self.strides, kind)
        self.features, self._features = tuple(features), StageTap(self.model, features)

    def map_counts(self) -> dict[int, int]:
        """Returns how many attention maps `outputs` gives for each photo, by stride: 1, or the number of heads."""
        return {stride: self._tap.map_count(stride) if self.per_head else 1 for stride in self.strides}

    def feature_counts(self) -> dict[int, int]:
        """Returns the number of channels of the feature maps that `outputs` gives, by stride."""
        return {stride: self._features.channels(stride) for stride in self.features}

    def to(self, device: torch.device) -> None:
        """Moves the network to a device."""
        self.model.to(device)

    def example(self, count: int) -> TeacherOutputs:
        """Returns the outputs for `count` black photos, from which callers learn the shapes."""
        size = self.preprocessing.image_size
        device = next(self.model.parameters()).device
        return self._forward(torch.zeros(count, 3, size, size, device=device))

    def outputs(self, pixels: Tensor) -> TeacherOutputs:
        """Returns the teacher's outputs for photos `(B, 3, H, W)` uint8; with `per_head`, M is the number of heads.

        Photos of another size than the teacher's are resampled, which costs accuracy; better draw them in its size.
        The outputs for a photo do not depend on the other photos of the batch; on CPUs they are bit-identical.
        """
        parts = [self._forward(_padded(part).float()) for part in torch.split(pixels, _BATCH_SIZE)]
        logits, maps, features = zip(*parts, strict=True)

        def joined(parts: Sequence[dict[int, Tensor]]) -> dict[int, Tensor]:
            return {stride: torch.cat([part[stride] for part in parts])[: len(pixels)] for stride in parts[0]}

        return TeacherOutputs(torch.cat(logits)[: len(pixels)], joined(maps), joined(features))

    @torch.no_grad()
    def _forward(self, pixels: Tensor) -> TeacherOutputs:
        size = self.preprocessing.image_size
        if pixels.shape[-2:] != (size, size):
            # Only photos that mixup or CutMix has changed: other views are drawn in the teacher's image size.
            pixels = nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(normalise_batch(pixels, self.preprocessing))
        features = {stride: values.float() for stride, values in self._features.features().items()}
        maps = self._tap.maps()
        if self.kind == "window" and not self.per_head:
            maps = {stride: heads.mean(1) for stride, heads in maps.items()}
        return TeacherOutputs(logits.float(), maps, features)


def _padded(pixels: Tensor) -> Tensor:
    missing = _BATCH_SIZE - len(pixels)
    return torch.cat([pixels, pixels[:1].expand(missing, -1, -1, -1)]) if missing else pixels

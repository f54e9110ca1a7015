"""The live teacher: frozen, in eval mode, on the very pixels that the student sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from agridistill.manifest import Preprocessing
from agridistill.models.attention import StageTap
from agridistill.models.normalisation import normalise_batch

# Counts the ways in which a batch became logits and maps: a cache of another way says something else.
OUTPUTS_VERSION = 2

# Photos in a forward pass, always: matrix products round by their shape, so one size gives one answer for a photo,
# whatever else is in its batch.
_BATCH_SIZE = 32


# What a teacher says beside its logits: attention of either kind, or whole features.
TeacherKind = Literal["activation", "window", "features"]


class HasPixels(Protocol):
    """A batch, seen from the teacher."""

    @property
    def pixels(self) -> Tensor:
        """`(B, 3, H, W)` uint8."""
        ...


class LiveTeacher:
    """Runs the teacher on each batch.

    Args:
        model: with the task's head; it is frozen and put into eval mode here.
        preprocessing: the teacher's own size, mean and standard deviation.
        strides: stages whose attention maps are wanted; may be empty.
        kind: "activation" or "window" attention, or the "features" themselves.
        bf16: runs under autocast, as the teacher was trained.
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
        self.preprocessing = preprocessing
        self.bf16 = bf16
        self.per_head = per_head
        self.strides = tuple(strides)
        self.kind = kind
        self._tap = (
            StageTap(self.model, tuple(strides), "window" if kind == "window" else "activation") if strides else None
        )

    def map_counts(self) -> dict[int, int]:
        """How many maps `outputs` gives at each stride: 1, the number of heads, or of channels."""
        if self._tap is None:
            return {}
        if self.kind == "features":
            return {stride: self._tap.channels(stride) for stride in self.strides}
        return {stride: self._tap.map_count(stride) if self.per_head else 1 for stride in self.strides}

    def to(self, device: torch.device) -> None:
        """Moves the network."""
        self.model.to(device)

    def example(self, count: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Outputs for empty photos."""
        size = self.preprocessing.image_size
        device = next(self.model.parameters()).device
        return self._forward(torch.zeros(count, 3, size, size, device=device))

    def outputs(self, batch: HasPixels) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits `(B, K)` float32, and the maps of each stride: `(B, H, W)`, `(B, heads, H, W)` or `(B, C, H, W)`.

        A photo's do not depend on the rest of its batch, on processors to the last bit.
        """
        count = len(batch.pixels)
        parts = [self._forward(_filled_up(part).float()) for part in torch.split(batch.pixels, _BATCH_SIZE)]
        logits = torch.cat([part for part, _ in parts])[:count]
        maps = {stride: torch.cat([each[stride] for _, each in parts])[:count] for stride in parts[0][1]}
        return logits, maps

    @torch.no_grad()
    def _forward(self, pixels: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        size = self.preprocessing.image_size
        if pixels.shape[-1] != size or pixels.shape[-2] != size:
            # The student may train at another size: the teacher sees the same view at its own.
            pixels = nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(normalise_batch(pixels, self.preprocessing))
        if self._tap is not None and self.kind == "features":
            return logits.float(), {stride: features.float() for stride, features in self._tap.features().items()}
        maps = self._tap.maps() if self._tap is not None else {}
        if not self.per_head:
            maps = {stride: map_.mean(1) if map_.ndim == 4 else map_ for stride, map_ in maps.items()}
        return logits.float(), maps


def _filled_up(pixels: Tensor) -> Tensor:
    missing = _BATCH_SIZE - len(pixels)
    return torch.cat([pixels, pixels[:1].expand(missing, -1, -1, -1)]) if missing else pixels

"""The figures of the paper, to stand beside measured ones: published by others, never measured here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PAPER = "arXiv 2504.16128"


@dataclass(frozen=True)
class PublishedResult:
    """One model as the paper reports it.

    Attributes:
        model: the paper's name for it.
        device: on which its time was taken; None where no time is given.
        accuracy: on PlantVillage's tomato leaves (18,160 photos), 0 to 1.
        macs: for one photo; the paper calls them FLOPs.
        size_bytes: the paper calls it memory; None where not given.
        latency_ms: of one photo; the paper does not say whether mean or median. None where not given.
    """

    model: str
    device: str | None
    accuracy: float
    macs: int
    size_bytes: int | None = None
    latency_ms: float | None = None

    @property
    def flops(self) -> int:
        """Floating-point operations for one photo: 1 MAC is 2 FLOPs."""
        return 2 * self.macs

    def to_json(self) -> dict[str, Any]:
        """Every figure, marked as published."""
        return {
            "source": "published",
            "paper": PAPER,
            "model": self.model,
            "device": self.device,
            "accuracy": self.accuracy,
            "size_bytes": self.size_bytes,
            "macs": self.macs,
            "flops": self.flops,
            "latency_ms": self.latency_ms,
        }


_STUDENT = "distilled MobileNetV3"
PUBLISHED: tuple[PublishedResult, ...] = (
    PublishedResult("Swin-L", None, accuracy=0.959, macs=34_100_000_000),
    PublishedResult(_STUDENT, "PC", accuracy=0.924, macs=220_000_000, size_bytes=13_000_000, latency_ms=23),
    PublishedResult(_STUDENT, "smartphone", accuracy=0.924, macs=220_000_000, size_bytes=13_000_000, latency_ms=86),
)

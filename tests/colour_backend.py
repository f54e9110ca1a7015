"""A classifier without a network, and photos for it: green against red leaves, told apart by their mean colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agridistill.manifest import ModelManifest, Preprocessing

COLOURS = {"green": (60, 160, 60), "red": (160, 60, 60)}


class ColourBackend:
    """Its logits are the mean green and the mean red, 10 for the brightest."""

    def __init__(self, manifest: ModelManifest) -> None:
        self.manifest = manifest
        self.batch_sizes: list[int] = []

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = self.manifest.preprocessing.image_size
        assert pixels.shape[1:] == (size, size, 3)
        assert pixels.dtype == np.uint8
        self.batch_sizes.append(len(pixels))
        return (pixels.mean(axis=(1, 2))[:, [1, 0]] / 25.5).astype(np.float32)


def colour_backend(**changes: Any) -> ColourBackend:
    """A ColourBackend; keyword arguments change its manifest."""
    fields: dict[str, Any] = {
        "model": "mean_colour",
        "classes": ("green", "red"),
        "preprocessing": Preprocessing(16),
        "weights_file": "none",
        "weights_sha256": "0" * 64,
    }
    return ColourBackend(ModelManifest(**(fields | changes)))


def colour_photo(path: Path, colour: str, seed: int = 0) -> Path:
    """Writes a patterned 40 x 32 photo with a green or a red cast."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pattern = np.random.default_rng(seed).integers(-50, 50, (4, 5, 1)).repeat(8, axis=0).repeat(8, axis=1)
    Image.fromarray((np.array(COLOURS[colour]) + pattern).astype(np.uint8)).save(path, quality=95)
    return path

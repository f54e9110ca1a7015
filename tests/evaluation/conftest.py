"""A small real classifier and photos for it: green against red leaves, told apart by their mean colour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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


def make_backend(**changes: Any) -> ColourBackend:
    """A ColourBackend; keyword arguments change its manifest."""
    fields: dict[str, Any] = {
        "model": "mean_colour",
        "classes": ("green", "red"),
        "preprocessing": Preprocessing(16),
        "weights_file": "none",
        "weights_sha256": "0" * 64,
    }
    return ColourBackend(ModelManifest(**(fields | changes)))


def write_photo(path: Path, colour: str, seed: int = 0) -> Path:
    """Writes a patterned 40 x 32 photo with a green or a red cast."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pattern = np.random.default_rng(seed).integers(-50, 50, (4, 5, 1)).repeat(8, axis=0).repeat(8, axis=1)
    Image.fromarray((np.array(COLOURS[colour]) + pattern).astype(np.uint8)).save(path, quality=95)
    return path


@pytest.fixture
def colour_backend() -> Callable[..., ColourBackend]:
    """Makes a backend; keyword arguments change its manifest."""
    return make_backend


@pytest.fixture
def colour_photo() -> Callable[..., Path]:
    """Writes a photo: path, colour, seed."""
    return write_photo


@pytest.fixture
def colour_folder(tmp_path: Path) -> Path:
    """A data folder of ten green and ten red photos, each of a leaf of its own."""
    for number in range(10):
        write_photo(tmp_path / "data" / "green" / f"{number}.jpg", "green", seed=number)
        write_photo(tmp_path / "data" / "red" / f"{number}.jpg", "red", seed=100 + number)
    return tmp_path / "data"

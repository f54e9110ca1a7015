"""Small photos that differ in what they show, and folders of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PhotoWriter = Callable[[Path, int], Path]
FolderWriter = Callable[[Path, Mapping[str, int]], Path]


def _photo(seed: int, side: int = 48, blobs: int = 6) -> Image.Image:
    """Smooth blobs: perceptual hashes of different seeds are far apart, and scaling keeps them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (blobs, blobs, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def write_photo() -> PhotoWriter:
    """Writes the photo of a seed, in the format of the path's suffix."""

    def write(path: Path, seed: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        _photo(seed).save(path)
        return path

    return write


@pytest.fixture
def write_pose() -> PhotoWriter:
    """Writes a photo whose perceptual hash is near that of another seed's pose, and which is no copy of it."""

    def write(path: Path, seed: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.blend(_photo(50), _photo(seed, blobs=24), 0.02).save(path)
        return path

    return write


@pytest.fixture
def write_folder(write_photo: PhotoWriter) -> FolderWriter:
    """Writes class folders of different photos: {"rust": 3} gives rust/00.png to rust/02.png."""

    def write(root: Path, counts: Mapping[str, int]) -> Path:
        seed = 0
        for name, count in counts.items():
            for number in range(count):
                write_photo(root / name / f"{number:02}.png", seed)
                seed += 1
        return root

    return write

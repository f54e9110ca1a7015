"""Photos and a classifier that tells them apart by colour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.colour_backend import ColourBackend
from tests.colour_backend import colour_backend as backend_of
from tests.colour_backend import colour_photo as photo_of


@pytest.fixture
def colour_backend() -> Callable[..., ColourBackend]:
    """Makes a backend; keyword arguments change its manifest."""
    return backend_of


@pytest.fixture
def colour_photo() -> Callable[..., Path]:
    """Writes a photo: path, colour, seed."""
    return photo_of


@pytest.fixture
def colour_folder(tmp_path: Path) -> Path:
    """A data folder of ten green and ten red photos, each of a leaf of its own."""
    for number in range(10):
        photo_of(tmp_path / "data" / "green" / f"{number}.jpg", "green", seed=number)
        photo_of(tmp_path / "data" / "red" / f"{number}.jpg", "red", seed=100 + number)
    return tmp_path / "data"

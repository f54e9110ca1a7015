"""Views that are drawn once: whoever sees a view again reads its pixels instead of drawing them.

A view is a function of the photo, its seed and the augmentation, so a kept one is the very same pixels, and no result
depends on whether views are kept.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from agridistill.data.kept import Kept
from agridistill.data.views import Augmentation, plain_settings
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import Pixels

# So much of the disk stays free: a run has checkpoints and a teacher cache to write.
SPARE_BYTES = 2 << 30
# What file systems round the size of a file up to.
_DISK_BLOCK = 4096


class KeptViews:
    """The views of one data folder that have been drawn, in the user's cache folder.

    Args:
        root: the data folder.
        preprocessing: size and resize rule of the views.
        augmentation: how far they differ from their photos.
    """

    def __init__(self, root: Path, preprocessing: Preprocessing, augmentation: Augmentation) -> None:
        self._shape = (preprocessing.image_size, preprocessing.image_size, 3)
        seen = f"{preprocessing.image_size} {preprocessing.resize} {plain_settings(augmentation)}"
        self._kept = Kept("views", root, f"{seen} numpy {np.__version__}")
        self.folder = self._kept.folder

    @property
    def view_bytes(self) -> int:
        """What a view takes on the disk, with its checksum."""
        return (int(np.prod(self._shape)) // _DISK_BLOCK + 1) * _DISK_BLOCK

    def get(self, path: str, seed: int, draw: Callable[[], Pixels]) -> Pixels:
        """The view of a photo that belongs to a seed: kept, or drawn and then kept if there is room.

        Args:
            path: of the photo, relative to the data folder.
            seed: of the view.
            draw: draws it.

        Returns:
            `(size, size, 3)` uint8; may be read-only.

        Raises:
            PhotoError: the photo is gone, or cannot be read.
        """
        place = self._place(path, seed)
        content = self._kept.read(place)
        if content is not None and len(content) == np.prod(self._shape):
            return np.frombuffer(content, np.uint8).reshape(self._shape)
        pixels = draw()
        if self.room_bytes() > 0:
            self._kept.write(place, pixels.tobytes())
        return pixels

    def room_bytes(self) -> int:
        """How much of the disk may be filled with views; 0 where their folder cannot be used."""
        try:
            existing = next(above for above in (self.folder, *self.folder.parents) if above.is_dir())
            free = shutil.disk_usage(existing).free if os.access(existing, os.W_OK) else 0
        except OSError:
            free = 0
        return max(0, free - SPARE_BYTES)

    def count(self, views: Iterable[tuple[str, int]]) -> int:
        """How many of these views are kept already.

        Args:
            views: path of the photo, and seed.
        """
        return sum(self._holds(path, seed) for path, seed in views)

    def _holds(self, path: str, seed: int) -> bool:
        try:
            return self._place(path, seed).exists()
        except (OSError, PhotoError):
            return False

    def _place(self, path: str, seed: int) -> Path:
        return self._kept.place(path, f" view {seed}")

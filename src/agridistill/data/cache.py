"""Derived files in the user's cache folder: drawn views and small copies of large photos.

A derived file is a function of the photo, of how it is made, and of the libraries that make it; its path names all of
them, and it carries a checksum. The cache only saves time: where it cannot be written, all works without.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, features

from agridistill.data.views import VIEWS_VERSION, Augmentation, plain_settings
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import Pixels, photo_size, read_photo, to_pixels
from agridistill.storage import replacing, user_cache

logger = logging.getLogger(__name__)

_CHECKSUM_BYTES = 4
# Free disk space that the cache leaves: a run has checkpoints and a teacher cache to write.
SPARE_BYTES = 2 << 30
# File systems round the size of a file up to this.
_DISK_BLOCK = 4096
# Below this ratio of the sides, decoding the photo itself costs little more than decoding the copy.
_WORTH_A_COPY = 2
_JPEG_QUALITY = 95


class DerivedCache:
    """Files made from the photos of one data folder.

    Args:
        name: of the folder in the user's cache.
        root: the data folder.
        recipe: how a file is made, beside the version of our views and the libraries.
    """

    def __init__(self, name: str, root: Path, recipe: str) -> None:
        self.root = root
        makers = f"version {VIEWS_VERSION}, Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"
        self.folder = user_cache() / name / _digest(f"{os.fsdecode(root.resolve())} {recipe} {makers}", 16)

    def path_for(self, photo: str, part: str = "") -> Path:
        """Where the derived file belongs; a changed photo gives another path.

        Args:
            photo: relative to the data folder.
            part: which of several files that are made from it.

        Raises:
            PhotoError: there is no such photo.
        """
        full = self.root / photo
        try:
            stat = full.stat()
        except OSError as error:
            raise PhotoError("a readable photo", f"'{full}' ({error.strerror})", "replace or remove the file") from None
        digest = _digest(f"{photo} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}{part}", 32)
        return self.folder / digest[:2] / digest

    def read(self, path: Path) -> bytes | None:
        """The content; None where there is none, or a damaged one."""
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        content = stored[_CHECKSUM_BYTES:]
        # The checksum of empty content is zero, as in a file of zeros.
        return content if content and _checksum(content) == stored[:_CHECKSUM_BYTES] else None

    def write(self, path: Path, content: bytes) -> None:
        """Writes the content; a disk error is logged only."""
        try:
            # The checksum recognises what a power cut left half-written.
            with replacing(path, durable=False) as temporary:
                temporary.write_bytes(_checksum(content) + content)
        except OSError:
            logger.debug("nothing cached in '%s'", path, exc_info=True)


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")


def _digest(text: str, digits: int) -> str:
    # A file name need not be UTF-8.
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:digits]


class KeptViews:
    """Drawn views of one data folder.

    Args:
        root: the data folder.
        preprocessing: size and resize rule of the views.
        augmentation: how far they differ from their photos.
    """

    def __init__(self, root: Path, preprocessing: Preprocessing, augmentation: Augmentation) -> None:
        self._shape = (preprocessing.image_size, preprocessing.image_size, 3)
        settings = f"{preprocessing.image_size} {preprocessing.resize} {plain_settings(augmentation)}"
        self._cache = DerivedCache("views", root, f"{settings} numpy {np.__version__}")
        self.folder = self._cache.folder

    @property
    def view_bytes(self) -> int:
        """Size of a view on the disk, with its checksum."""
        return (int(np.prod(self._shape)) // _DISK_BLOCK + 1) * _DISK_BLOCK

    def get(self, path: str, seed: int, draw: Callable[[], Pixels]) -> Pixels:
        """The view of a photo that belongs to a seed: cached, or drawn and then cached if there is room.

        Args:
            path: of the photo, relative to the data folder.
            seed: of the view.
            draw: draws it.

        Returns:
            `(size, size, 3)` uint8; may be read-only.

        Raises:
            PhotoError: the photo is gone, or cannot be read.
        """
        file = self._cache.path_for(path, f" view {seed}")
        content = self._cache.read(file)
        if content is not None and len(content) == np.prod(self._shape):
            return np.frombuffer(content, np.uint8).reshape(self._shape)
        pixels = draw()
        if self.room_bytes() > 0:
            self._cache.write(file, pixels.tobytes())
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
        """How many of these views, each a photo's path and a seed, are cached already."""
        found = 0
        for path, seed in views:
            with contextlib.suppress(OSError, PhotoError):
                found += self._cache.path_for(path, f" view {seed}").exists()
        return found


class SmallCopies:
    """Reads the photos of one data folder, large ones through small copies: 12 megapixels are decoded once.

    A copy has just the pixels which the closest view needs. A photo that is hardly larger than its copy is read itself.

    Args:
        root: the data folder.
        preprocessing: of the model's input.
        augmentation: of the views; None for photos as they are.
    """

    def __init__(self, root: Path, preprocessing: Preprocessing, augmentation: Augmentation | None) -> None:
        self.root, self.preprocessing, self.augmentation = root, preprocessing, augmentation
        scale = augmentation.min_scale if augmentation is not None else 1.0
        self.side = math.ceil(preprocessing.image_size / math.sqrt(scale))
        kind = f"view {self.side}" if augmentation is not None else f"{preprocessing.resize} {self.side}"
        self._cache = DerivedCache("small-copies", root, kind)

    def read(self, path: str) -> Image.Image:
        """The photo, or its copy where it is large: RGB.

        Raises:
            PhotoError: the photo cannot be read.
        """
        full = self.root / path
        if min(photo_size(full)) < _WORTH_A_COPY * self.side:
            return read_photo(full)
        file = self._cache.path_for(path)
        content = self._cache.read(file)
        if content is not None:
            with contextlib.suppress(PhotoError):
                return read_photo(content)
        content = self._small(read_photo(full))
        self._cache.write(file, content)
        return read_photo(content)

    def _small(self, image: Image.Image) -> bytes:
        stream = io.BytesIO()
        if self.augmentation is None:
            # Lossless: the model is measured on these pixels.
            Image.fromarray(to_pixels(image, self.preprocessing)).save(stream, "PNG", compress_level=1)
        else:
            ratio = self.side / min(image.size)
            size = (max(self.side, round(image.width * ratio)), max(self.side, round(image.height * ratio)))
            smaller = image.resize(size, Image.Resampling.LANCZOS)
            smaller.save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return stream.getvalue()

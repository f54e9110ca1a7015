"""What is made from a photo and kept in the user's cache folder, because making it again takes longer.

It is a function of the photo, of how we make it and of the libraries that do; its place names all of them, and it
carries a checksum. That it is kept only saves time: where it cannot be, all goes on without.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, features

from agridistill.data.inspection import PhotoRecord
from agridistill.data.views import VIEWS_VERSION, Augmentation, plain_settings
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import Pixels, photo_size, read_photo, to_pixels
from agridistill.storage import replacing, user_cache, write_json

logger = logging.getLogger(__name__)

_CHECKSUM_BYTES = 4


class Kept:
    """What was made from the photos of one data folder.

    Args:
        name: of the folder in the user's cache.
        root: the data folder.
        way: how it is made, beside the version of our views and the libraries.
    """

    def __init__(self, name: str, root: Path, way: str) -> None:
        self.root = root
        makers = f"version {VIEWS_VERSION}, Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"
        self.folder = user_cache() / name / _digest(f"{os.fsdecode(root.resolve())} {way} {makers}", 16)

    def place(self, path: str, part: str = "") -> Path:
        """Where it lies: a photo that was changed has another place.

        Args:
            path: of the photo, relative to the data folder.
            part: which of several things that are made from it.

        Raises:
            PhotoError: there is no such photo.
        """
        full = self.root / path
        try:
            stat = full.stat()
        except OSError as error:
            raise PhotoError("a readable photo", f"'{full}' ({error.strerror})", "replace or remove the file") from None
        digest = _digest(f"{path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}{part}", 32)
        return self.folder / digest[:2] / digest

    def read(self, place: Path) -> bytes | None:
        """What lies there; None where nothing does, or a damaged thing."""
        try:
            stored = place.read_bytes()
        except OSError:
            return None
        content = stored[_CHECKSUM_BYTES:]
        # The checksum of nothing is that of a file of zeros.
        return content if content and _checksum(content) == stored[:_CHECKSUM_BYTES] else None

    def write(self, place: Path, content: bytes) -> None:
        """Keeps it there, if the disk lets us."""
        try:
            # The checksum tells what a power cut has left half-written.
            with replacing(place, durable=False) as temporary:
                temporary.write_bytes(_checksum(content) + content)
        except OSError:
            logger.debug("nothing kept in '%s'", place, exc_info=True)


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")


def _digest(text: str, digits: int) -> str:
    # A file name need not be UTF-8.
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:digits]


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


# Below this ratio of the sides, decoding the photo itself costs little more than decoding the copy.
_WORTH_A_COPY = 2
_JPEG_QUALITY = 95


class SmallCopies:
    """Reads the photos of one data folder, large ones through their copies.

    Args:
        root: the data folder.
        preprocessing: of the model's input.
        augmentation: of the views; None for photos as they are.
    """

    def __init__(self, root: Path, preprocessing: Preprocessing, augmentation: Augmentation | None) -> None:
        self.root, self.preprocessing = root, preprocessing
        scale = augmentation.min_scale if augmentation is not None else 1.0
        self.side = math.ceil(preprocessing.image_size / math.sqrt(scale))
        self._make = self._for_views if augmentation is not None else self._as_it_is
        kind = f"view {self.side}" if augmentation is not None else f"{preprocessing.resize} {self.side}"
        self._kept = Kept("small-copies", root, kind)

    def read(self, path: str) -> Image.Image:
        """The photo, or its copy where it is large: RGB.

        Raises:
            PhotoError: the photo cannot be read.
        """
        full = self.root / path
        if min(photo_size(full)) < _WORTH_A_COPY * self.side:
            return read_photo(full)
        place = self._kept.place(path)
        content = self._kept.read(place)
        if content is not None:
            with contextlib.suppress(PhotoError):
                return read_photo(content)
        content = self._make(read_photo(full))
        self._kept.write(place, content)
        return read_photo(content)

    def _for_views(self, image: Image.Image) -> bytes:
        ratio = self.side / min(image.size)
        size = (max(self.side, round(image.width * ratio)), max(self.side, round(image.height * ratio)))
        return _encoded(image.resize(size, Image.Resampling.LANCZOS), "JPEG", quality=_JPEG_QUALITY, subsampling=0)

    def _as_it_is(self, image: Image.Image) -> bytes:
        # Without any loss: these pixels are what the model is measured on.
        return _encoded(Image.fromarray(to_pixels(image, self.preprocessing)), "PNG", compress_level=1)


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


# Also counts the ways in which a photo is read: looks and errors of another way are not ours.
FORMAT_VERSION = 3
# A photo that changed within the clock tick in which it was read would look unchanged.
_SETTLED_NS = 2_000_000_000


class InspectionStore:
    """Records of the photos of one data folder.

    Args:
        root: the data folder.
        max_pixels: the limit that the photos were read with.
    """

    def __init__(self, root: Path, max_pixels: int) -> None:
        name = sha256(json.dumps([os.fsdecode(root.resolve()), max_pixels]).encode()).hexdigest()[:16]
        self._path = user_cache() / "photos" / f"{name}.json"
        self._root = f"{root}{os.sep}"
        self._known = self._read()
        self._seen: dict[str, list[Any]] = {}
        self._states: dict[str, list[int]] = {}
        self._changed = False

    def find(self, path: str) -> PhotoRecord | None:
        """The record of a photo that has not changed since; None where it must be read."""
        try:
            # Before the photo is read: a change during the reading must not pass for what was read.
            state = _state(self._root + path)
        except OSError:
            return None
        row = self._known.get(path)
        # Nine values, or of a damaged store.
        if isinstance(row, list) and row[:-6] == state:
            self._seen[path] = row
            digest, width, height, phash, look, turned = row[-6:]
            return PhotoRecord(digest, width, height, phash, None, look, tuple(turned))
        self._states[path] = state
        return None

    def add(self, path: str, record: PhotoRecord) -> None:
        """Keeps the record of a photo that was read. Bad photos are read every time: their cause may have gone."""
        state = self._states.pop(path, None)
        if record.error is None and state is not None and time.time_ns() - max(state[1:]) > _SETTLED_NS:
            found = (record.digest, record.width, record.height, record.phash, record.look, record.turned_phashes)
            self._seen[path] = [*state, *found]
            self._changed = True

    def save(self) -> None:
        """Writes the records of the photos that are there now."""
        if not self._changed and self._seen.keys() == self._known.keys():
            return
        try:
            write_json(self._path, {"format": FORMAT_VERSION, "photos": self._seen})
        except (OSError, ValueError):
            logger.debug("no photo records in '%s'", self._path, exc_info=True)

    def _read(self) -> Mapping[str, list[Any]]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            photos = document["photos"] if document["format"] == FORMAT_VERSION else {}
            return photos if isinstance(photos, dict) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def _state(path: str) -> list[int]:
    stat = os.stat(path)  # noqa: PTH116 - asked of every photo at every start: a Path would cost more than the answer
    # The time of the last change of its state cannot be set back, as the time of the last writing can.
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]

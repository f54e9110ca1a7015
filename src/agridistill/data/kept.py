"""What is made from a photo and kept in the user's cache folder, because making it again takes longer.

It is a function of the photo, of how we make it and of the libraries that do; its place names all of them, and it
carries a checksum. That it is kept only saves time: where it cannot be, all goes on without.
"""

from __future__ import annotations

import logging
import os
import zlib
from hashlib import sha256
from pathlib import Path

import PIL
from PIL import features

from agridistill.data.views import VIEWS_VERSION
from agridistill.errors import PhotoError
from agridistill.storage import replacing, user_cache

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

"""Small copies of large photos: a photo of 12 megapixels is decoded once, not in every epoch.

A view of a large photo is drawn from a copy that has just the pixels which the closest view needs. The copy is a
function of the photo, of how we make it and of the libraries that do; its place names all of them, and it carries a
checksum. That it is kept, in the user's cache folder, only saves time. A photo that is hardly larger than its copy
would be is used itself.
"""

from __future__ import annotations

import io
import logging
import math
import os
import zlib
from hashlib import sha256
from pathlib import Path

import PIL
from PIL import Image, features

from agridistill.data.views import VIEWS_VERSION, Augmentation
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import photo_size, read_photo, to_pixels
from agridistill.storage import replacing, user_cache

logger = logging.getLogger(__name__)

# Below this ratio of the sides, decoding the photo itself costs little more than decoding the copy.
_WORTH_A_COPY = 2
_JPEG_QUALITY = 95
_CHECKSUM_BYTES = 4


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
        name = f"{os.fsdecode(root.resolve())} {kind} {_makers()}"
        digest = sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self._folder = user_cache() / "small-copies" / digest

    def read(self, path: str) -> Image.Image:
        """The photo, or its copy where it is large: RGB.

        Raises:
            PhotoError: the photo cannot be read.
        """
        full = self.root / path
        if min(photo_size(full)) < _WORTH_A_COPY * self.side:
            return read_photo(full)
        kept = self._place(full, path)
        try:
            return read_photo(_checked(kept.read_bytes()))
        except (OSError, PhotoError):
            content = self._make(read_photo(full))
        try:
            with replacing(kept) as temporary:
                temporary.write_bytes(zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little") + content)
        except OSError:
            logger.debug("no small copy in '%s'", kept, exc_info=True)
        return read_photo(content)

    def _place(self, full: Path, path: str) -> Path:
        try:
            stat = full.stat()
        except OSError as error:
            raise PhotoError("a readable photo", f"'{full}' ({error.strerror})", "replace or remove the file") from None
        state = f"{path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        digest = sha256(state.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return self._folder / digest[:2] / digest

    def _for_views(self, image: Image.Image) -> bytes:
        ratio = self.side / min(image.size)
        size = (max(self.side, round(image.width * ratio)), max(self.side, round(image.height * ratio)))
        return _encoded(image.resize(size, Image.Resampling.LANCZOS), "JPEG", quality=_JPEG_QUALITY, subsampling=0)

    def _as_it_is(self, image: Image.Image) -> bytes:
        # Without any loss: these pixels are what the model is measured on.
        return _encoded(Image.fromarray(to_pixels(image, self.preprocessing)), "PNG", compress_level=1)


def _makers() -> str:
    """What the pixels of a copy depend on beside the photo: our way of making it, and the libraries."""
    return f"version {VIEWS_VERSION}, Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"


def _checked(stored: bytes) -> bytes:
    """The copy without its checksum.

    Raises:
        PhotoError: they do not belong together.
    """
    checksum, content = stored[:_CHECKSUM_BYTES], stored[_CHECKSUM_BYTES:]
    if zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise PhotoError("a whole small copy", "a damaged one", "delete it; it is made anew")
    return content


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()

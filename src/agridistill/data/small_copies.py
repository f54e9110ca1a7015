"""Small copies of large photos: a photo of 12 megapixels is decoded once, not in every epoch.

A view of a large photo is drawn from a copy that has just the pixels which the closest view needs. A photo that is
hardly larger than its copy would be is used itself.
"""

from __future__ import annotations

import contextlib
import io
import math
from pathlib import Path

from PIL import Image

from agridistill.data.kept import Kept
from agridistill.data.views import Augmentation
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import photo_size, read_photo, to_pixels

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

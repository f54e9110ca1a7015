"""Views: random augmentations of a photo, each a function of a 4-byte seed; and their files in the user's cache folder.

The same seed gives the same pixels in any process, with any number of workers, in any order. Geometry is one resampling
of the photo (no second interpolation) and lossless turns.

A cached file, a drawn view or a small copy of a large photo, is a function of the photo, of how it is made, and of the
libraries that make it; its path names all of them, and it carries a checksum. The cache only saves time: where it
cannot be written, all works without.
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
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import numpy as np
import PIL
from PIL import Image, ImageEnhance, ImageFilter, features
from pydantic import Field

from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import Pixels, photo_size, read_photo, to_pixels
from agridistill.storage import replacing, user_cache

logger = logging.getLogger(__name__)

# To be raised when a photo and a seed give other pixels, also through a small copy: it is part of the caches' keys.
# 2: colour profiles, bits and bands are read (`preprocess.read_photo`).
VIEWS_VERSION = 2
# Free disk space that the cache leaves: a run has checkpoints and a teacher cache to write.
SPARE_BYTES = 2 << 30

# Keeps the draws of corruptions independent: with or without them, the rest of a view is the same.
_CORRUPTION = 1
_CORRUPTED_SHARE = 1 / 3
_CHECKSUM_BYTES = 4
# File systems round the size of a file up to this.
_DISK_BLOCK = 4096
# Below this ratio of the sides, decoding the photo itself costs little more than decoding the copy.
_WORTH_A_COPY = 2
_JPEG_QUALITY = 95

_Change = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Augmentation:
    """How far a view may differ from its photo.

    Attributes:
        min_scale: smallest share of the photo's area that a view shows, 0 to 1.
        max_aspect: largest ratio between the sides of the part shown.
        flip: mirrors at random (leaves have no left and right).
        turn: turns by 0, 90, 180 or 270 degrees at random.
        brightness: largest relative change of brightness.
        contrast: largest relative change of contrast.
        saturation: largest relative change of saturation.
        cast: largest relative change of one colour channel, as a wrong white balance makes it.
        min_size: smallest scale of the picture, 0 to 1: a leaf further away, on the colour of its rim; 1 is off.
        blur: largest deviation of a Gaussian blur, as out of focus; a share of the side.
        noise: largest deviation of a Gaussian noise in every channel, as of a sensor in poor light; levels of 255.
        jpeg: lowest quality of a second JPEG, libjpeg's scale from 1 to 100; 100 is off.

    Each of the last four acts on a third of the views.
    """

    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.5
    max_aspect: Annotated[float, Field(ge=1, le=4)] = 1.25
    flip: bool = True
    turn: bool = True
    brightness: _Change = 0.2
    contrast: _Change = 0.2
    saturation: _Change = 0.2
    cast: _Change = 0.05
    min_size: Annotated[float, Field(ge=0.1, le=1)] = 1.0
    blur: Annotated[float, Field(ge=0, le=0.2)] = 0.0
    noise: Annotated[float, Field(ge=0, le=128)] = 0.0
    jpeg: Annotated[int, Field(ge=1, le=100)] = 100

    @property
    def corrupts(self) -> bool:
        """Whether views have corruptions of the field, beside geometry and colour."""
        return self.min_size < 1 or self.blur > 0 or self.noise > 0 or self.jpeg < 100


def plain_settings(augmentation: Augmentation) -> dict[str, bool | float]:
    """The settings by name, for cache keys: 1 and 1.0 are one setting."""
    return {name: value if isinstance(value, bool) else float(value) for name, value in asdict(augmentation).items()}


def view_seed(seed: int, view: int, path: str) -> int:
    """The seed of one of a photo's views, 0 to 2**32 - 1.

    Args:
        seed: of all views.
        view: its number, from 0.
        path: of the photo, relative to the data folder.
    """
    # `fsencode`: a file name need not be UTF-8.
    # A CRC instead of the photo's index: a photo more or less in the folder changes no other photo's views.
    state = np.random.SeedSequence((seed, view, zlib.crc32(os.fsencode(path)))).generate_state(1, np.uint32)
    return int(state[0])


def render_view(image: Image.Image, seed: int, augmentation: Augmentation, preprocessing: Preprocessing) -> Pixels:
    """Draws the view of a photo (RGB) that belongs to a seed: `(size, size, 3)` uint8, RGB, C-contiguous."""
    rng = np.random.Generator(np.random.PCG64(seed))
    box = _draw_box(rng, image.width, image.height, augmentation, preprocessing)
    size = preprocessing.image_size
    seen = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    seen = _change_colours(seen, rng, augmentation)
    if augmentation.corrupts:
        seen = _corrupt(seen, np.random.default_rng((seed, _CORRUPTION)), augmentation)
    pixels = np.asarray(seen)
    flip, turns = rng.random() < 0.5, int(rng.integers(4))
    if augmentation.flip and flip:
        pixels = pixels[:, ::-1]
    if augmentation.turn:
        pixels = np.rot90(pixels, turns)
    return np.ascontiguousarray(pixels)


def _draw_box(
    rng: np.random.Generator, width: int, height: int, augmentation: Augmentation, preprocessing: Preprocessing
) -> tuple[float, float, float, float]:
    scale = rng.uniform(augmentation.min_scale, 1)
    aspect = np.exp(rng.uniform(-1, 1) * np.log(augmentation.max_aspect))
    side = min(width, height)
    base_width, base_height = (side, side) if preprocessing.resize == "crop" else (width, height)
    box_width = min(float(width), base_width * float(np.sqrt(scale * aspect)))
    box_height = min(float(height), base_height * float(np.sqrt(scale / aspect)))
    left = rng.random() * (width - box_width)
    top = rng.random() * (height - box_height)
    # Clamped: rounding may move the box over the border, which Pillow refuses.
    return left, top, min(left + box_width, float(width)), min(top + box_height, float(height))


def _change_colours(image: Image.Image, rng: np.random.Generator, augmentation: Augmentation) -> Image.Image:
    gain = 1 + rng.uniform(-1, 1) * augmentation.brightness
    contrast = 1 + rng.uniform(-1, 1) * augmentation.contrast
    saturation = 1 + rng.uniform(-1, 1) * augmentation.saturation
    channels = gain * (1 + rng.uniform(-1, 1, 3) * augmentation.cast)
    if augmentation.saturation:
        image = ImageEnhance.Color(image).enhance(saturation)
    if not (augmentation.brightness or augmentation.contrast or augmentation.cast):
        return image
    # Brightness, contrast and cast act on each channel by itself: one table look-up does all three.
    levels = np.arange(256)
    table = [np.clip((levels * channel - 128) * contrast + 128, 0, 255).astype(np.uint8) for channel in channels]
    return image.point(np.concatenate(table).tolist())


def _corrupt(image: Image.Image, rng: np.random.Generator, augmentation: Augmentation) -> Image.Image:
    """Corruptions of the field, in their order there: distance, focus, sensor, storage."""
    # All drawn first: one setting changes neither whether another acts nor how strongly.
    acts, amounts = rng.random(4) < _CORRUPTED_SHARE, rng.random(4)
    if acts[0] and augmentation.min_size < 1:
        image = _move_away(image, 1 - float(amounts[0]) * (1 - augmentation.min_size), rng)
    if acts[1] and augmentation.blur:
        image = image.filter(ImageFilter.GaussianBlur(float(amounts[1]) * augmentation.blur * image.width))
    if acts[2] and augmentation.noise:
        levels = rng.standard_normal((image.height, image.width, 3), np.float32) * (amounts[2] * augmentation.noise)
        image = Image.fromarray(np.clip(np.rint(levels + np.asarray(image)), 0, 255).astype(np.uint8))
    if acts[3] and augmentation.jpeg < 100:
        held = io.BytesIO()
        image.save(held, "JPEG", quality=round(100 - amounts[3] * (100 - augmentation.jpeg)))
        image = Image.open(held).convert("RGB")
    return image


def _move_away(image: Image.Image, factor: float, rng: np.random.Generator) -> Image.Image:
    """The whole image smaller, at a random place on the colour of its rim."""
    pixels = np.asarray(image)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    side = max(1, round(factor * image.width))
    left, top = (int(place) for place in rng.integers(0, image.width - side + 1, 2))
    ground = Image.new("RGB", image.size, tuple(int(level) for level in np.median(rim, axis=0)))
    ground.paste(image.resize((side, side), Image.Resampling.BICUBIC), (left, top))
    return ground


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
        """Where the file belongs that is made from a photo, `part` of several; a changed photo gives another path.

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
    """Drawn views of one data folder, kept in the cache."""

    def __init__(self, root: Path, preprocessing: Preprocessing, augmentation: Augmentation) -> None:
        self._shape = (preprocessing.image_size, preprocessing.image_size, 3)
        settings = f"{preprocessing.image_size} {preprocessing.resize} {plain_settings(augmentation)}"
        self._cache = DerivedCache("views", root, f"{settings} numpy {np.__version__}")
        self.folder = self._cache.folder

    @property
    def view_bytes(self) -> int:
        """Size of a view on the disk, with its checksum."""
        return (math.prod(self._shape) // _DISK_BLOCK + 1) * _DISK_BLOCK

    def get(self, path: str, seed: int, draw: Callable[[], Pixels]) -> Pixels:
        """The view of a photo that belongs to a seed: cached, or drawn and then cached if there is room.

        Returns:
            `(size, size, 3)` uint8; may be read-only.

        Raises:
            PhotoError: the photo is gone, or cannot be read.
        """
        file = self._path_for(path, seed)
        content = self._cache.read(file)
        if content is not None and len(content) == math.prod(self._shape):
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
                found += self._path_for(path, seed).exists()
        return found

    def _path_for(self, path: str, seed: int) -> Path:
        return self._cache.path_for(path, f" view {seed}")


class SmallCopies:
    """Reads the photos of one data folder, large ones through small copies: 12 megapixels are decoded once.

    A copy has just the pixels which the closest view needs; without an augmentation, those of the photo as it is. A
    photo that is hardly larger than its copy is read itself.
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
        if content is None:
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

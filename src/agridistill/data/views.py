"""Draws views, which are randomly augmented copies of a photo, and caches views and small copies of large photos.

A view depends only on the photo, the settings and a 4-byte seed: the same seed gives the same pixels in any process,
with any number of workers, in any order. The photo is resampled only once; turns by 90 degrees lose nothing.

The path of a cached file depends on the photo, the settings and the versions of the libraries; the file contains a
checksum. The cache only saves time: without it, all views are the same.
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

# Part of the keys of all caches: raise it if the same photo and seed give other pixels, directly or by a small copy.
# 2: colour profiles, bit depths and bands are read (`preprocess.read_photo`).
VIEWS_VERSION = 2
# Disk space in bytes that the cache leaves free, because a run also writes checkpoints and a teacher cache.
SPARE_BYTES = 2 << 30

# Seeds the draws of corruptions separately, so that the rest of a view is the same with or without corruptions.
_CORRUPTION = 1
_CORRUPTED_SHARE = 1 / 3
_CHECKSUM_BYTES = 4
# File systems round the size of a file up to a multiple of this.
_DISK_BLOCK = 4096
# A copy is made only of a photo whose shorter side is larger by this factor; for others it would save little time.
_WORTH_A_COPY = 2
_JPEG_QUALITY = 95

_Change = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Augmentation:
    """Settings that limit how far a view may differ from its photo.

    Attributes:
        min_scale: smallest share of the photo's area that a view shows, 0 to 1.
        max_aspect: largest ratio between the sides of the part that a view shows.
        flip: mirrors half of the views (leaves have no left and right).
        turn: turns each view by 0, 90, 180 or 270 degrees at random.
        brightness: largest relative change of brightness, from 0 to below 1.
        contrast: largest relative change of contrast, from 0 to below 1.
        saturation: largest relative change of saturation, from 0 to below 1.
        cast: largest relative change of one colour channel, from 0 to below 1, as by a wrong white balance.
        min_size: smallest scale of the picture, 0.1 to 1, as if the leaf were further away; the median colour of the
            picture's border fills the remaining area. 1 switches it off.
        blur: largest standard deviation of a Gaussian blur, as if out of focus, as a share of the side; 0 is off.
        noise: largest standard deviation of Gaussian noise in each channel, as of a sensor in poor light, in levels
            of 255; 0 is off.
        jpeg: lowest quality of a second JPEG compression, on libjpeg's scale from 1 to 100; 100 switches it off.

    The last four are corruptions; each of them acts on a third of the views.
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
        """Whether some views get a corruption, as in field photos: smaller leaves, blur, noise or JPEG compression."""
        return self.min_size < 1 or self.blur > 0 or self.noise > 0 or self.jpeg < 100


def plain_settings(augmentation: Augmentation) -> dict[str, bool | float]:
    """Returns the settings as a dict for cache keys, with all numbers as floats, so that 1 and 1.0 give one key."""
    return {name: value if isinstance(value, bool) else float(value) for name, value in asdict(augmentation).items()}


def view_seed(seed: int, view: int, path: str) -> int:
    """Computes the seed, from 0 to 2**32 - 1, of the view with a number from 0 of the photo at a path."""
    # `fsencode` also accepts file names that are not UTF-8. The checksum of the path is used instead of the photo's
    # number, so that adding or removing a photo does not change the views of others.
    state = np.random.SeedSequence((seed, view, zlib.crc32(os.fsencode(path)))).generate_state(1, np.uint32)
    return int(state[0])


def render_view(image: Image.Image, seed: int, augmentation: Augmentation, preprocessing: Preprocessing) -> Pixels:
    """Draws a view: a randomly cropped, turned and recoloured copy of an RGB photo. Equal seeds give equal pixels.

    `seed` is the result of `view_seed`. Returns `(size, size, 3)` uint8, RGB, C-contiguous.
    """
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
    # Keep the box inside the photo: rounding may move it over the border, which Pillow refuses.
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
    # Brightness, contrast and cast change each channel independently, so that one lookup table does all three.
    levels = np.arange(256)
    table = [np.clip((levels * channel - 128) * contrast + 128, 0, 255).astype(np.uint8) for channel in channels]
    return image.point(np.concatenate(table).tolist())


def _corrupt(image: Image.Image, rng: np.random.Generator, augmentation: Augmentation) -> Image.Image:
    """Adds the corruptions in the order in which they occur in a camera: distance, focus, sensor, storage."""
    # All random numbers are drawn first, so that changing one setting does not change the other corruptions.
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
    """Scales the image down and puts it at a random place on an image filled with the colour of its border."""
    pixels = np.asarray(image)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    side = max(1, round(factor * image.width))
    left, top = (int(place) for place in rng.integers(0, image.width - side + 1, 2))
    ground = Image.new("RGB", image.size, tuple(int(level) for level in np.median(rim, axis=0)))
    ground.paste(image.resize((side, side), Image.Resampling.BICUBIC), (left, top))
    return ground


class DerivedCache:
    """A disk cache for files that are computed from the photos of a data folder: the folder `name` in the user's cache.

    `recipe` is a text with all settings that the files depend on; the versions of the libraries are added.
    """

    def __init__(self, name: str, root: Path, recipe: str) -> None:
        self.root = root
        makers = f"version {VIEWS_VERSION}, Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"
        self.folder = user_cache() / name / _digest(f"{os.fsdecode(root.resolve())} {recipe} {makers}", 16)

    def path_for(self, photo: str, part: str = "") -> Path:
        """Returns the path of a photo's cached file, which depends on the photo's size and times on the disk.

        `part` is a text that differs between several cached files of one photo. Raises a PhotoError if there is no
        such photo.
        """
        full = self.root / photo
        try:
            stat = full.stat()
        except OSError as error:
            got = f"'{full}' ({error.strerror})"
            raise PhotoError("a readable photo", got, "put the file back or correct its permissions") from None
        digest = _digest(f"{photo} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}{part}", 32)
        return self.folder / digest[:2] / digest

    def read(self, path: Path) -> bytes | None:
        """Returns the content of a cached file; None if the file does not exist or is damaged."""
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        content = stored[_CHECKSUM_BYTES:]
        # Empty content is refused: its checksum is zero, so that a damaged file of four zeros would be accepted.
        return content if content and _checksum(content) == stored[:_CHECKSUM_BYTES] else None

    def write(self, path: Path, content: bytes) -> None:
        """Writes a cached file atomically; a disk error is only logged, at debug level."""
        try:
            # The checksum detects a file that a power cut has left incomplete.
            with replacing(path, durable=False) as temporary:
                temporary.write_bytes(_checksum(content) + content)
        except OSError:
            logger.debug("the cache file '%s' was not written", path, exc_info=True)


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")


def _digest(text: str, digits: int) -> str:
    # `surrogateescape` allows file names that are not UTF-8.
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:digits]


class KeptViews:
    """A disk cache for the views (augmented copies) of the photos of the data folder `root`."""

    def __init__(self, root: Path, preprocessing: Preprocessing, augmentation: Augmentation) -> None:
        self._shape = (preprocessing.image_size, preprocessing.image_size, 3)
        settings = f"{preprocessing.image_size} {preprocessing.resize} {plain_settings(augmentation)}"
        self._cache = DerivedCache("views", root, f"{settings} numpy {np.__version__}")
        self.folder = self._cache.folder

    @property
    def view_bytes(self) -> int:
        """Number of bytes that one cached view occupies on the disk."""
        return (math.prod(self._shape) // _DISK_BLOCK + 1) * _DISK_BLOCK

    def get(self, path: str, seed: int, draw: Callable[[], Pixels]) -> Pixels:
        """Returns a view `(size, size, 3)` uint8 RGB from the cache, maybe read-only.

        If it is not there, it is drawn by `draw`, and cached if there is enough disk space. Raises a PhotoError if the
        photo no longer exists or cannot be read.
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
        """Returns the free disk space for views in bytes, less `SPARE_BYTES`; 0 if the cache cannot be written."""
        try:
            existing = next(above for above in (self.folder, *self.folder.parents) if above.is_dir())
            free = shutil.disk_usage(existing).free if os.access(existing, os.W_OK) else 0
        except OSError:
            free = 0
        return max(0, free - SPARE_BYTES)

    def count(self, views: Iterable[tuple[str, int]]) -> int:
        """Counts the views that are already cached; each is given as (path of the photo, seed of the view)."""
        found = 0
        for path, seed in views:
            with contextlib.suppress(OSError, PhotoError):
                found += self._path_for(path, seed).exists()
        return found

    def _path_for(self, path: str, seed: int) -> Path:
        return self._cache.path_for(path, f" view {seed}")


class SmallCopies:
    """Reads the photos of one data folder, and caches small copies of large photos, which are read faster.

    A copy is just large enough for the view that shows the smallest part of the photo; without augmentation, it is the
    model's input. A photo is read directly if its shorter side is less than twice that of a copy. `augmentation` is
    None if the photos are not augmented.
    """

    def __init__(self, root: Path, preprocessing: Preprocessing, augmentation: Augmentation | None) -> None:
        self.root, self.preprocessing, self.augmentation = root, preprocessing, augmentation
        scale = augmentation.min_scale if augmentation is not None else 1.0
        self.side = math.ceil(preprocessing.image_size / math.sqrt(scale))
        kind = f"view {self.side}" if augmentation is not None else f"{preprocessing.resize} {self.side}"
        self._cache = DerivedCache("small-copies", root, kind)

    def read(self, path: str) -> Image.Image:
        """Returns an RGB image of a photo, or of its small copy if it is large; raises a PhotoError for damage."""
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
            # Saved without loss, because evaluation uses these pixels.
            Image.fromarray(to_pixels(image, self.preprocessing)).save(stream, "PNG", compress_level=1)
        else:
            ratio = self.side / min(image.size)
            size = (max(self.side, round(image.width * ratio)), max(self.side, round(image.height * ratio)))
            smaller = image.resize(size, Image.Resampling.LANCZOS)
            smaller.save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return stream.getvalue()

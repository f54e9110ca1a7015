"""Views: random augmentations of a photo, each a function of a 4-byte seed.

The same seed gives the same pixels in any process, with any number of workers, in any order. Geometry is one resampling
of the photo (no second interpolation) and lossless turns.
"""

from __future__ import annotations

import io
import os
import zlib
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from agridistill.errors import ConfigError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import Pixels


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

    min_scale: float = 0.5
    max_aspect: float = 1.25
    flip: bool = True
    turn: bool = True
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    cast: float = 0.05
    min_size: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = 100

    def __post_init__(self) -> None:
        ranges = {
            "min_scale": ("above 0 and at most 1", 0 < self.min_scale <= 1),
            "max_aspect": ("from 1 to 4", 1 <= self.max_aspect <= 4),
            "brightness": ("from 0 to below 1", 0 <= self.brightness < 1),
            "contrast": ("from 0 to below 1", 0 <= self.contrast < 1),
            "saturation": ("from 0 to below 1", 0 <= self.saturation < 1),
            "cast": ("from 0 to below 1", 0 <= self.cast < 1),
            "min_size": ("from 0.1 to 1", 0.1 <= self.min_size <= 1),
            "blur": ("from 0 to 0.2", 0 <= self.blur <= 0.2),
            "noise": ("from 0 to 128", 0 <= self.noise <= 128),
            "jpeg": ("from 1 to 100", 1 <= self.jpeg <= 100),
        }
        for name, (allowed, holds) in ranges.items():
            if not holds:
                raise ConfigError(f"augmentation.{name} {allowed}", str(getattr(self, name)), "correct it")

    @property
    def corrupts(self) -> bool:
        """Whether views have corruptions of the field, beside geometry and colour."""
        return self.min_size < 1 or self.blur > 0 or self.noise > 0 or self.jpeg < 100


def plain_settings(augmentation: Augmentation) -> dict[str, bool | float]:
    """The settings by name, for cache keys: 1 and 1.0 are one setting."""
    return {name: value if isinstance(value, bool) else float(value) for name, value in asdict(augmentation).items()}


# To be raised when a photo and a seed give other pixels, also through a small copy: it is part of the caches' keys.
# 2: colour profiles, bits and bands are read (`preprocess.read_photo`).
VIEWS_VERSION = 2

# Keeps the draws of corruptions independent: without them, views stay as in earlier versions.
_CORRUPTION = 1
_CORRUPTED_SHARE = 1 / 3


def view_seed(seed: int, view: int, path: str) -> int:
    """The seed of one of a photo's views.

    Args:
        seed: of all views.
        view: its number, from 0.
        path: of the photo, relative to the data folder.

    Returns:
        0 to 2**32 - 1.
    """
    # `fsencode`: a file name need not be UTF-8.
    # A CRC instead of the photo's index: a photo more or less in the folder changes no other photo's views.
    state = np.random.SeedSequence((seed, view, zlib.crc32(os.fsencode(path)))).generate_state(1, np.uint32)
    return int(state[0])


def render_view(image: Image.Image, seed: int, augmentation: Augmentation, preprocessing: Preprocessing) -> Pixels:
    """Draws the view of a photo that belongs to a seed.

    Args:
        image: RGB.
        seed: 0 to 2**32 - 1.

    Returns:
        `(size, size, 3)` uint8, RGB, C-contiguous.
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
    if preprocessing.resize == "crop":
        side = min(width, height)
        base_width, base_height = float(side), float(side)
    else:
        base_width, base_height = float(width), float(height)
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

"""Views: a photo seen anew, replayed exactly from a 4-byte seed.

A view is drawn from its seed alone, so the same seed gives the same pixels in any process, with any number of
workers, in any order. Geometry is one resampling of the photo (no second interpolation) and lossless turns.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

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
    """

    min_scale: float = 0.5
    max_aspect: float = 1.25
    flip: bool = True
    turn: bool = True
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    cast: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.min_scale <= 1:
            raise ConfigError("augmentation.min_scale above 0 and at most 1", str(self.min_scale), "correct it")
        if not 1 <= self.max_aspect <= 4:
            raise ConfigError("augmentation.max_aspect from 1 to 4", str(self.max_aspect), "correct it")
        for name in ("brightness", "contrast", "saturation", "cast"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"augmentation.{name} from 0 to below 1", str(getattr(self, name)), "correct it")


# Counts the ways in which a photo and a seed became a view, by way of a small copy too: a teacher cache or a copy of
# another way is of other pixels.
VIEWS_VERSION = 1


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
    # Clamped: rounding must not carry the box a hair over the border, which Pillow refuses.
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

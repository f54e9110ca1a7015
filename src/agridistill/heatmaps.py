"""A map of values drawn over a picture; needs only Pillow and numpy, so that a device can draw it."""

from __future__ import annotations

import re
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

_STRENGTH = 0.55
# Cividis (Nunez, Anderton and Renslow 2018), the same to colour-blind readers, at 17 even steps.
_COLOURS = (
    *((0, 34, 78), (0, 46, 106), (26, 56, 111), (50, 67, 109), (67, 78, 108), (83, 90, 109), (97, 101, 111)),
    *((111, 112, 115), (125, 124, 120), (140, 136, 120), (155, 148, 118), (171, 160, 114), (188, 174, 108)),
    *((205, 187, 99), (222, 201, 88), (240, 216, 70), (254, 232, 56)),
)

_NAME = re.compile(r"-explained(-\d+)?\.png", re.IGNORECASE)
_MARK_KEY, _MARK = "Software", "AgriDistill: where a model looked"


def explanation_mark() -> PngInfo:
    """The metadata of an explanation PNG, by which it is recognised and never read as a photo."""
    mark = PngInfo()
    mark.add_text(_MARK_KEY, _MARK)
    return mark


def is_explanation(path: str | PathLike[str]) -> bool:
    """Whether `predict --explain` wrote a file; only files with such a name are opened."""
    if not _NAME.search(str(path)):
        return False
    try:
        with Image.open(path) as picture:
            return picture.info.get(_MARK_KEY) == _MARK
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # reading it as a photo reports the error


def coloured(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Colours of values: blue for 0, grey between, yellow for 1.

    Args:
        values: `(H, W)`; clipped to 0 to 1.

    Returns:
        `(H, W, 3)` uint8, RGB.
    """
    steps = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(values, steps, [colour[channel] for colour in _COLOURS]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def overlaid(
    picture: Image.Image, values: NDArray[Any], *, low: float | None = None, high: float | None = None
) -> Image.Image:
    """A picture with a map over it: yellow where the values are high, blue where they are low.

    Args:
        picture: RGB.
        values: `(H, W)` of any size and scale; enlarged to the picture.
        low: value that is blue; the smallest where None.
        high: value that is yellow; the largest where None.

    Returns:
        RGB, of the picture's size.
    """
    values = np.asarray(values, np.float32)
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    smooth = np.array(Image.fromarray(scaled).resize(picture.size, Image.Resampling.BICUBIC))
    return Image.blend(picture, Image.fromarray(coloured(smooth)), _STRENGTH)

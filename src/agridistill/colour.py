"""What the pixels of a file stand for, and their conversion to 8-bit sRGB, in which models see.

Bits, bands and transparency first (`to_plain`), where wrong guesses of Pillow are corrected or refused; then the
photo's own colour profile (`to_srgb`): phones store Display P3, cameras often Adobe RGB, too pale when read as sRGB.
And a map of values drawn over a picture (`overlaid`). Needs only Pillow and numpy.
"""

from __future__ import annotations

import functools
import io
import logging
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

logger = logging.getLogger(__name__)

# Tags of TIFF, and their values.
_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANES, _MAX_SAMPLE, _EXTRA_SAMPLES = 258, 259, 262, 284, 281, 338
_UNCOMPRESSED, _WHITE_IS_ZERO, _SEPARATE, _ASSOCIATED = 1, 0, 2, 1
# 16-bit values that are all lower have fewer bits, as of cameras with 10, 12 or 14, or are nearly black.
_FEWER_BITS = 1 << 14
_OPAQUE, _VISIBLE = 250, 6
_AS_8_BITS = "save it as RGB with 8 bits"
# Profiles of printers, the largest, have 0.5 to 3 MB.
_MAX_PROFILE_BYTES = 4_000_000
# One place and one kind of camera have few profiles; some of them may be large.
_CACHED_TRANSFORMS = 8
# Profiles of sRGB differ by rounding.
_SAME_LEVELS = 2
_SPACE = slice(16, 20)
_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}

_STRENGTH = 0.55
# Cividis (Nunez, Anderton and Renslow 2018), the same to colour-blind readers, at 17 even steps.
_COLOURS = (
    *((0, 34, 78), (0, 46, 106), (26, 56, 111), (50, 67, 109), (67, 78, 108), (83, 90, 109), (97, 101, 111)),
    *((111, 112, 115), (125, 124, 120), (140, 136, 120), (155, 148, 118), (171, 160, 114), (188, 174, 108)),
    *((205, 187, 99), (222, 201, 88), (240, 216, 70), (254, 232, 56)),
)


class PixelFormatError(ValueError):
    """Pixels whose meaning is unknown, or that Pillow reads wrongly."""

    def __init__(self, reason: str, remedy: str = _AS_8_BITS) -> None:
        super().__init__(reason)
        self.remedy = remedy


class StoredForm(NamedTuple):
    """How a file stores its pixels, beyond Pillow's mode."""

    bits: int = 8  # of a value, before Pillow makes 8 of them
    # Of TIFF alone; its fourth band may be anything.
    tiff: bool = False
    declared_max: int = 0  # largest value; 0 where the file names none
    white_is_zero: bool = False
    associated: bool = False  # colours are multiplied by the alpha


def stored_form(image: Image.Image) -> StoredForm:
    """The form of an opened image before it is decoded: decoding forgets it.

    Raises:
        PixelFormatError: Pillow would decode it wrongly.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        # Older Pillows open a 16-bit PNG as "I".
        deep = deep or image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
        return StoredForm(bits=16 if deep else 8)

    def number(tag: int, default: int) -> int:
        return int(np.max(tags.get(tag, default)))

    bits = number(_BITS, 8)
    if bits == 16 and number(_PLANES, 1) == _SEPARATE and number(_COMPRESSION, 1) == _UNCOMPRESSED:
        # Pillow (13 and before) takes each byte for a value.
        raise PixelFormatError("a TIFF of 16 bits in separate planes without compression, which is read wrongly")
    return StoredForm(
        bits,
        tiff=True,
        declared_max=number(_MAX_SAMPLE, 0),
        white_is_zero=number(_PHOTOMETRIC, 1) == _WHITE_IS_ZERO,
        associated=_ASSOCIATED in np.atleast_1d(tags.get(_EXTRA_SAMPLES, ())),
    )


def to_plain(image: Image.Image, stored: StoredForm) -> Image.Image:
    """Any mode to 8-bit RGB, L or CMYK in the photo's own colours; transparent pixels become white.

    Raises:
        PixelFormatError: values of an unknown range, or a fourth band that is mixed into the colours.
        ValueError: a mode that Pillow cannot convert.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and stored.bits == 16 and not stored.tiff):
        return _from_16_bits(image, stored)
    if image.mode in ("I", "F"):
        raise PixelFormatError("32-bit grey, whose range is unknown")
    if stored.bits == 16 and image.mode in ("RGB", "RGBA", "LA"):
        # Of 16 bits Pillow keeps the upper 8.
        ranges = image.getextrema()[: 1 if image.mode == "LA" else 3]
        if np.max(ranges) < _FEWER_BITS >> 8:
            raise _too_few_bits()
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _on_white(image if image.mode == "RGBA" else image.convert("RGBA"), stored)
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")


def _too_few_bits() -> PixelFormatError:
    return PixelFormatError(
        f"16-bit values that all lie below {_FEWER_BITS:,}: of fewer bits, or nearly black",
        f"{_AS_8_BITS}, or spread its values over 16 bits",
    )


def _on_white(rgba: Image.Image, stored: StoredForm) -> Image.Image:
    if stored.tiff:
        counts = rgba.getchannel("A").histogram()
        # What is visible in a photo is mostly opaque: otherwise the band is something else, such as near infrared.
        if 2 * sum(counts[_VISIBLE:_OPAQUE]) >= sum(counts[_VISIBLE:]):
            if stored.associated:
                reason = "a TIFF whose fourth band is marked as alpha, and is none"
                raise PixelFormatError(reason, "save its colours alone")
            return rgba.convert("RGB")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba)
    return white


def _from_16_bits(image: Image.Image, stored: StoredForm) -> Image.Image:
    """Scales grey by the range of its bits; Pillow would clip it at 255, and leave white at 0 where a TIFF has it."""
    values = np.asarray(image)
    bits = stored.bits
    if bits == 16 and (highest := int(values.max())) < _FEWER_BITS:
        # Some files declare the brightest value of the photo; only a number of all ones gives the number of bits.
        bits = (stored.declared_max + 1).bit_length() - 1
        if stored.declared_max + 1 != 1 << bits or stored.declared_max < max(highest, 255):
            raise _too_few_bits()
    levels = np.rint(np.linspace(0, 255, 1 << bits)).astype(np.uint8)
    if stored.white_is_zero:
        levels = levels[::-1].copy()
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels[transparent] = 255
    return Image.fromarray(levels[values])


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts to sRGB, black to black and white to white (relative colorimetric).

    Without a usable profile (broken, above 4 MB, or of other channels) colours are taken as sRGB, inks as their
    complements.

    Args:
        image: RGB, L or CMYK; an RGB image is changed itself.
        profile: ICC, as the file holds it.

    Returns:
        8-bit RGB.
    """
    transform = None
    if profile and len(profile) <= _MAX_PROFILE_BYTES:
        mode = _MODES.get(profile[_SPACE])
        if mode == "RGB" and image.mode == "L":
            image = image.convert("RGB")  # a grey that keeps the profile of the colours that it was made from
        if mode == image.mode:
            transform = _transform(bytes(profile), mode)
    if transform is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "RGB":
        transform.apply_in_place(image)
        return image
    return transform.apply(image)


@functools.lru_cache(maxsize=_CACHED_TRANSFORMS)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None where the pixels stay as they are: sRGB itself, or an unusable profile."""
    if not features.check("littlecms2"):
        logger.warning("colour profiles are left out: this Pillow was built without Little CMS")
        return None
    try:
        transform = ImageCms.ImageCmsTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (OSError, ValueError) as error:
        logger.debug("a colour profile of %d bytes is left out: %s", len(profile), error)
        return None
    if mode != "RGB":
        return transform
    # Colours all over the cube that stay as they are, but for rounding, are sRGB's.
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    converted = np.asarray(transform.apply(Image.fromarray(colours)))
    return None if np.abs(converted.astype(int) - colours).max() <= _SAME_LEVELS else transform


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

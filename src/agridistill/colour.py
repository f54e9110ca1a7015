"""Converts the pixels of any photo file to 8-bit sRGB, the colours that models expect.

`to_plain` handles bit depths, bands and transparency; it corrects what Pillow reads wrongly, or refuses the file.
`to_srgb` then applies the colour profile of the photo: phones store Display P3 and cameras often Adobe RGB, which look
too pale if they are read as sRGB. `overlaid` draws a map of values over a picture. Only Pillow and numpy are needed.
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

# Numbers of TIFF tags, and values of these tags.
_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANES, _EXTRA_SAMPLES = 258, 259, 262, 284, 338
_UNCOMPRESSED, _WHITE_IS_ZERO, _SEPARATE, _ASSOCIATED = 1, 0, 2, 1
# If all values of a 16-bit photo are lower, it comes from a camera with 10, 12 or 14 bits, or is nearly black.
_FEWER_BITS = 1 << 14
_OPAQUE, _VISIBLE = 250, 6
_AS_8_BITS = "save it as RGB with 8 bits"
# The largest colour profiles, those of printers, have 0.5 to 3 MB.
_MAX_PROFILE_BYTES = 4_000_000
# The photos of one site use few different profiles; the number is limited because some profiles are large.
_CACHED_TRANSFORMS = 8
# Profiles that all mean sRGB differ by up to this many levels, because of rounding.
_SAME_LEVELS = 2
_SPACE = slice(16, 20)
_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}

_STRENGTH = 0.55
# The colour map cividis (Nunez, Anderton and Renslow 2018) at 17 even steps; colour-blind readers see it equally.
_COLOURS = (
    *((0, 34, 78), (0, 46, 106), (26, 56, 111), (50, 67, 109), (67, 78, 108), (83, 90, 109), (97, 101, 111)),
    *((111, 112, 115), (125, 124, 120), (140, 136, 120), (155, 148, 118), (171, 160, 114), (188, 174, 108)),
    *((205, 187, 99), (222, 201, 88), (240, 216, 70), (254, 232, 56)),
)


class PixelFormatError(ValueError):
    """The meaning of a file's pixel values is unknown, or Pillow reads them wrongly."""

    def __init__(self, reason: str, remedy: str = _AS_8_BITS) -> None:
        super().__init__(reason)
        self.remedy = remedy


class StoredForm(NamedTuple):
    """Properties of the pixels in a file that Pillow's mode does not contain."""

    bits: int = 8  # bits of one value in the file; Pillow converts them to 8
    tiff: bool = False  # only TIFF sets the fields below; the fourth band of a TIFF may hold anything
    white_is_zero: bool = False
    associated: bool = False  # the colours are multiplied by the alpha


def stored_form(image: Image.Image) -> StoredForm:
    """Reads how an opened image stores its pixels; call it before decoding, which discards this information.

    Raises:
        PixelFormatError: Pillow would decode the image wrongly.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        # Older versions of Pillow open a 16-bit PNG with the mode "I".
        deep = deep or image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
        return StoredForm(bits=16 if deep else 8)

    def number(tag: int, default: int) -> int:
        return int(np.max(tags.get(tag, default)))

    bits = number(_BITS, 8)
    if bits == 16 and number(_PLANES, 1) == _SEPARATE and number(_COMPRESSION, 1) == _UNCOMPRESSED:
        # Pillow (13 and before) reads each byte as a value.
        raise PixelFormatError("a TIFF with 16 bits and uncompressed separate planes, which Pillow reads wrongly")
    return StoredForm(
        bits,
        tiff=True,
        white_is_zero=number(_PHOTOMETRIC, 1) == _WHITE_IS_ZERO,
        associated=_ASSOCIATED in np.atleast_1d(tags.get(_EXTRA_SAMPLES, ())),
    )


def to_plain(image: Image.Image, stored: StoredForm) -> Image.Image:
    """Converts an image of any mode to 8-bit RGB, L or CMYK without changing its colour space.

    Transparent pixels become white. A PixelFormatError reports values of an unknown range, or a fourth band that is
    mixed into the colours but is not transparency.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and stored.bits == 16 and not stored.tiff):
        return _from_16_bits(image, stored)
    if image.mode in ("I", "F"):
        raise PixelFormatError("32-bit grey values, whose range is unknown")
    if stored.bits == 16 and image.mode in ("RGB", "RGBA", "LA"):
        # Pillow keeps the upper 8 of the 16 bits.
        ranges = image.getextrema()[: 1 if image.mode == "LA" else 3]
        if np.max(ranges) < _FEWER_BITS >> 8:
            raise _too_few_bits()
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _on_white(image if image.mode == "RGBA" else image.convert("RGBA"), stored)
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")


def _too_few_bits() -> PixelFormatError:
    return PixelFormatError(
        f"all 16-bit values below {_FEWER_BITS:,}: fewer bits are used, or the photo is nearly black",
        f"{_AS_8_BITS}, or scale its values to the full 16 bits",
    )


def _on_white(rgba: Image.Image, stored: StoredForm) -> Image.Image:
    if stored.tiff:
        counts = rgba.getchannel("A").histogram()
        # In a photo with transparency most visible pixels are opaque. Otherwise the band is something else, such as
        # near infrared.
        if 2 * sum(counts[_VISIBLE:_OPAQUE]) >= sum(counts[_VISIBLE:]):
            if stored.associated:
                reason = "a TIFF whose fourth band is marked as transparency but holds something else"
                raise PixelFormatError(reason, "save the photo with its three colour bands only")
            return rgba.convert("RGB")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba)
    return white


def _from_16_bits(image: Image.Image, stored: StoredForm) -> Image.Image:
    """Scales 16-bit grey values to 8 bits and makes white 255, also for a TIFF in which white is 0.

    Pillow's own conversion would clip all values at 255.
    """
    values = np.asarray(image)
    if stored.bits == 16 and values.max() < _FEWER_BITS:
        raise _too_few_bits()
    levels = np.rint(np.linspace(0, 255, 1 << stored.bits)).astype(np.uint8)
    if stored.white_is_zero:
        levels = levels[::-1].copy()
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels[transparent] = 255
    return Image.fromarray(levels[values])


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts an image of mode RGB, L or CMYK to 8-bit sRGB; black stays black and white stays white.

    The intent is relative colorimetric. Without a usable profile (none, broken, larger than 4 MB, or for other
    channels), RGB and grey are taken as sRGB, and CMYK is converted by Pillow's plain formula. An RGB image is changed
    in place.
    """
    transform = None
    if profile and len(profile) <= _MAX_PROFILE_BYTES:
        mode = _MODES.get(profile[_SPACE])
        if mode == "RGB" and image.mode == "L":
            image = image.convert("RGB")  # a grey copy of a colour photo that has kept the colour photo's profile
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
    """Returns the conversion from a profile to sRGB; None if the profile is sRGB itself or cannot be used."""
    if not features.check("littlecms2"):
        logger.warning("colour profiles of photos are ignored because Pillow was built without Little CMS")
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
        logger.debug("a colour profile of %d bytes is ignored: %s", len(profile), error)
        return None
    if mode != "RGB":
        return transform
    # If colours from the whole RGB cube stay the same, apart from rounding, the profile means sRGB.
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    converted = np.asarray(transform.apply(Image.fromarray(colours)))
    return None if np.abs(converted.astype(int) - colours).max() <= _SAME_LEVELS else transform


def coloured(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Turns values `(H, W)`, clipped to 0 to 1, into RGB `(H, W, 3)` uint8: blue for 0, grey for 0.5, yellow for 1."""
    steps = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(values, steps, [colour[channel] for colour in _COLOURS]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def overlaid(
    picture: Image.Image, values: NDArray[Any], *, low: float | None = None, high: float | None = None
) -> Image.Image:
    """Draws a map `(H, W)` of any size and scale over an RGB picture: yellow for high values, blue for low ones.

    `low` is drawn in blue, `high` in yellow; None takes the smallest and the largest value.
    """
    values = np.asarray(values, np.float32)
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    smooth = np.array(Image.fromarray(scaled).resize(picture.size, Image.Resampling.BICUBIC))
    return Image.blend(picture, Image.fromarray(coloured(smooth)), _STRENGTH)

"""What the pixels of a file stand for: bits, bands, transparency. Wrong guesses of Pillow are put right or refused."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANES, _MAX_SAMPLE, _EXTRA_SAMPLES = 258, 259, 262, 284, 281, 338
_UNCOMPRESSED, _WHITE_IS_ZERO, _SEPARATE, _ASSOCIATED = 1, 0, 2, 1
# 16-bit values that all lie below are of fewer bits, as of cameras with 10, 12 or 14, or nearly black.
_FEWER_BITS = 1 << 14
_OPAQUE, _VISIBLE = 250, 6
_AS_8_BITS = "save it as RGB with 8 bits"


class PixelFormatError(ValueError):
    """Pixels whose meaning is unknown, or that Pillow reads wrongly.

    Args:
        reason: what they are.
        remedy: what to do.
    """

    def __init__(self, reason: str, remedy: str = _AS_8_BITS) -> None:
        super().__init__(reason)
        self.remedy = remedy


class StoredForm(NamedTuple):
    """How a file stores its pixels, as far as their mode does not tell.

    Attributes:
        tiff: a TIFF's fourth band may be anything.
        bits: of a value, before Pillow makes 8 of them.
        declared_max: largest value, where a TIFF names one; 0 where not.
        white_is_zero: grey counts from white down.
        associated: a TIFF's colours are multiplied by its alpha.
    """

    tiff: bool
    bits: int
    declared_max: int
    white_is_zero: bool
    associated: bool


def stored_form(image: Image.Image) -> StoredForm:
    """Reads it from a picture that was opened and not decoded yet: decoding forgets it.

    Raises:
        PixelFormatError: Pillow would decode it wrongly.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        # Older Pillows open a 16-bit PNG as "I".
        deep = deep or image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
        return StoredForm(False, 16 if deep else 8, 0, False, False)

    def number(tag: int, default: int) -> int:
        return int(np.max(tags.get(tag, default)))

    bits = number(_BITS, 8)
    if bits == 16 and number(_PLANES, 1) == _SEPARATE and number(_COMPRESSION, 1) == _UNCOMPRESSED:
        # Pillow (13 and before) takes each byte for a value.
        raise PixelFormatError("a TIFF of 16 bits in separate planes without compression, which is read wrongly")
    return StoredForm(
        True,
        bits,
        number(_MAX_SAMPLE, 0),
        number(_PHOTOMETRIC, 1) == _WHITE_IS_ZERO,
        _ASSOCIATED in np.atleast_1d(tags.get(_EXTRA_SAMPLES, ())),
    )


def to_plain(image: Image.Image, stored: StoredForm) -> Image.Image:
    """Any mode -> 8-bit RGB, L or CMYK in the photo's own colours; transparent pixels become white.

    Raises:
        PixelFormatError: values of an unknown range, or a fourth band that is mixed into the colours.
        ValueError: a mode that Pillow cannot convert.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and stored.bits == 16 and not stored.tiff):
        return _from_16_bits(image, stored)
    if image.mode in ("I", "F"):
        raise PixelFormatError("32-bit grey, whose range is unknown", _AS_8_BITS)
    if stored.bits == 16 and image.mode in ("RGB", "RGBA", "LA"):
        # Of 16 bits Pillow keeps the upper 8.
        ranges = image.getextrema()[: 1 if image.mode == "LA" else 3]
        if np.max(ranges) < _FEWER_BITS >> 8:
            raise _too_few_bits()
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _on_white(image, stored)
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")


def _too_few_bits() -> PixelFormatError:
    return PixelFormatError(
        f"16-bit values that all lie below {_FEWER_BITS:,}: of fewer bits, or nearly black",
        f"{_AS_8_BITS}, or spread its values over 16 bits",
    )


def _on_white(image: Image.Image, stored: StoredForm) -> Image.Image:
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    if stored.tiff and _is_a_band(rgba.getchannel("A")):
        if stored.associated:
            raise PixelFormatError("a TIFF whose fourth band is marked as alpha, and is none", "save its colours alone")
        return rgba.convert("RGB")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba)
    return white


def _is_a_band(alpha: Image.Image) -> bool:
    """Whether an alpha is something else, such as near infrared: what is visible in a photo is opaque, mostly."""
    counts = alpha.histogram()
    return 2 * sum(counts[_VISIBLE:_OPAQUE]) >= sum(counts[_VISIBLE:])


def _from_16_bits(image: Image.Image, stored: StoredForm) -> Image.Image:
    """Scales grey by the range of its bits; Pillow would clip it at 255, and leave white at 0 where a TIFF has it."""
    values = np.asarray(image)
    bits = stored.bits
    if bits == 16 and (highest := int(values.max())) < _FEWER_BITS:
        # A file may name any number here; that of all ones says how many bits there are.
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

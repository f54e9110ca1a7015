"""Colours by a photo's own profile (ICC) -> sRGB, in which models see.

Phones store Display P3, cameras often Adobe RGB: read as sRGB their colours are too pale.
"""

from __future__ import annotations

import functools
import io
import logging

import numpy as np
from PIL import Image, ImageCms, features

logger = logging.getLogger(__name__)

# Profiles of printers, the largest, have 0.5 to 3 MB.
_MAX_PROFILE_BYTES = 4_000_000
# Of one place and one kind of camera there are few; some of them may be large.
_KEPT_TRANSFORMS = 8
# Profiles of sRGB differ by rounding.
_SAME_LEVELS = 2
_SPACE = slice(16, 20)
_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts a picture to sRGB, black to black and white to white (relative colorimetric).

    A profile that is broken, larger than 4 MB or of other channels than the picture counts as absent. Without one
    colours are sRGB's, and inks are taken as their complements.

    Args:
        image: RGB, L or CMYK; an RGB picture is changed itself.
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


@functools.lru_cache(maxsize=_KEPT_TRANSFORMS)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None where the pixels stay as they are: sRGB itself, or a profile that cannot be used."""
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
    return None if mode == "RGB" and _changes_nothing(transform) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether colours all over the cube stay as they are, but for rounding."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    converted = np.asarray(transform.apply(Image.fromarray(colours)))
    return bool(np.abs(converted.astype(int) - colours).max() <= _SAME_LEVELS)

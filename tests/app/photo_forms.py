"""Photos as phones, cameras and messengers make them: one photo in many sizes, orientations, formats and colours."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from tests.icc import encode, grey_profile, rgb_profile

TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "BMP": "image/bmp"}
File = tuple[bytes, str]
"""A file's bytes and its type."""


def stored(image: Image.Image, kind: str = "JPEG", **options: Any) -> File:
    held = io.BytesIO()
    image.save(held, kind, **({"quality": 92} if kind == "JPEG" else {}) | options)
    return held.getvalue(), TYPES[kind]


def scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS)


def shaped(image: Image.Image, ratio: float) -> Image.Image:
    """The photo with a border of its own mirror image, so that it is no square."""
    wide = np.asarray(image)
    extra = round(image.width * (ratio - 1) / 2)
    return Image.fromarray(np.pad(wide, ((0, 0), (extra, extra), (0, 0)), mode="reflect"))


def oriented(image: Image.Image, orientation: int, **options: Any) -> File:
    """A file whose pixels are turned, and whose EXIF says how to turn them back."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    turned = image.transpose(Image.Transpose(back[orientation])) if orientation > 1 else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    return stored(turned, exif=exif.tobytes(), **options)


def in_space(image: Image.Image, space: str, kind: str) -> File:
    pixels = encode(np.asarray(image) / 255, space)
    return stored(Image.fromarray(pixels), kind, icc_profile=rgb_profile(space))


def forms(random: np.random.Generator) -> dict[str, Callable[[Image.Image], File]]:
    """Name -> function from an RGB photo to a file's bytes and type."""

    def factor(low: float, high: float) -> float:
        return float(random.uniform(low, high))

    return {
        "as it is": lambda image: stored(image, quality=95),
        "smaller": lambda image: stored(scaled(image, factor(0.4, 0.9))),
        "larger": lambda image: stored(scaled(image, factor(1.2, 2))),
        "large enough to be decoded smaller": lambda image: stored(scaled(image, factor(4, 8))),
        "12 megapixels": lambda image: stored(shaped(scaled(image, 3000 / image.height), 4 / 3)),
        "4:3": lambda image: stored(shaped(scaled(image, factor(1, 4)), 4 / 3)),
        "16:9 upright": lambda image: stored(shaped(scaled(image, factor(1, 4)), 16 / 9).transpose(2)),
        **{
            f"EXIF orientation {number}": lambda image, number=number: oriented(
                shaped(scaled(image, factor(0.8, 3)), 4 / 3), number
            )
            for number in range(1, 9)
        },
        "PNG": lambda image: stored(scaled(image, factor(0.6, 3)), "PNG"),
        "PNG with 256 colours": lambda image: stored(image.quantize(256), "PNG"),
        "PNG with transparency": lambda image: stored(transparent(image), "PNG"),
        "PNG, EXIF orientation 6": lambda image: oriented(shaped(image, 4 / 3), 6, kind="PNG"),
        "BMP": lambda image: stored(scaled(image, factor(0.6, 1.5)), "BMP"),
        "WebP": lambda image: stored(scaled(image, factor(0.6, 3)), "WEBP", quality=85),
        "WebP, lossless": lambda image: stored(scaled(image, factor(0.6, 2)), "WEBP", lossless=True),
        "JPEG, quality 30": lambda image: stored(scaled(image, factor(0.8, 3)), quality=30),
        "JPEG, progressive": lambda image: stored(scaled(image, factor(0.8, 3)), progressive=True),
        "JPEG, 4:4:4": lambda image: stored(scaled(image, factor(0.8, 3)), subsampling=0),
        "JPEG, Display P3": lambda image: in_space(scaled(image, factor(0.8, 3)), "display-p3", "JPEG"),
        "JPEG, Adobe RGB": lambda image: in_space(scaled(image, factor(0.8, 3)), "adobe-rgb", "JPEG"),
        "JPEG, ProPhoto RGB": lambda image: in_space(scaled(image, factor(0.8, 3)), "prophoto", "JPEG"),
        "PNG, Display P3": lambda image: in_space(scaled(image, factor(0.8, 3)), "display-p3", "PNG"),
        "JPEG, sRGB": lambda image: stored(scaled(image, factor(0.8, 3)), icc_profile=rgb_profile("srgb")),
        "grey": lambda image: stored(ImageOps.grayscale(scaled(image, factor(0.8, 3)))),
        "grey with a profile": lambda image: stored(
            ImageOps.grayscale(scaled(image, factor(0.8, 3))), icc_profile=grey_profile(2.2)
        ),
        "dark": lambda image: stored(image.point(lambda level: level // 5)),
        "blurred": lambda image: stored(image.filter(ImageFilter.GaussianBlur(6))),
    }


def transparent(image: Image.Image) -> Image.Image:
    """The photo with a soft transparent corner."""
    height, width = image.height, image.width
    alpha = np.clip(np.add.outer(np.arange(height), np.arange(width)) * 4 - 200, 0, 255).astype(np.uint8)
    return Image.merge("RGBA", (*image.split(), Image.fromarray(alpha)))

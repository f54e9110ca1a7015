"""From a photo to the model's input: the only definition, used by training's evaluation, export, runtime and edge.

Reading (`read_photo`) and resizing (`to_pixels`) use Pillow; `normalise` is plain arithmetic, which an exported
graph repeats.
"""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing

# Pillow refuses more by itself (twice its MAX_IMAGE_PIXELS); above it a file is an attack or an accident.
MAX_PIXELS = 178_956_970
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
# Pillow's JPEG reader opens the two-photo JPEGs of phones (MPO) as well.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")

# Odd metadata says nothing about the pixels, and the size is checked here. Not `catch_warnings` around each photo:
# it swaps the filters of the whole process, and threads that read photos would leave them switched off.
warnings.filterwarnings("ignore", module=r"PIL\.")

Pixels = NDArray[np.uint8]


def read_photo(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes a photo to upright 8-bit RGB.

    EXIF orientation is applied; grey, palette, CMYK and 16-bit photos are converted; transparent pixels become white.

    Args:
        source: a file's path, or the file's bytes.
        max_pixels: photos with more are refused before they are decoded.

    Raises:
        PhotoError: not an image, damaged, cut off, or too large.
    """
    name = f"'{source}'" if isinstance(source, Path) else f"{len(source)} bytes"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise _too_large(f"{name} with {image.width} x {image.height}", max_pixels)
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except PhotoError:
        raise
    except FileNotFoundError:
        raise PhotoError("a photo", f"{name}, which does not exist", "check the path") from None
    except Image.DecompressionBombError:
        raise _too_large(f"{name} with more", max_pixels) from None
    except Exception as error:
        # Pillow's decoders raise many types on damaged files (OSError, SyntaxError, struct.error, ValueError, …).
        raise PhotoError("a readable photo", f"{name} ({_reason(error)})", "replace or remove the file") from None


def photo_size(path: Path) -> tuple[int, int]:
    """Width and height of a photo as they are stored, before it is turned upright; only the header is read.

    Raises:
        PhotoError: not an image.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return image.size
    except FileNotFoundError:
        raise PhotoError("a photo", f"'{path}', which does not exist", "check the path") from None
    except Exception as error:
        raise PhotoError("a readable photo", f"'{path}' ({_reason(error)})", "replace or remove the file") from None


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """Resizes an RGB photo by the manifest's rule.

    Returns:
        `(size, size, 3)` uint8, RGB, writable (torch takes no other arrays).
    """
    size = preprocessing.image_size
    box: tuple[float, float, float, float] | None = None
    if preprocessing.resize == "crop":
        side = min(image.width, image.height)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def normalise(pixels: Pixels, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Scales to 0..1, subtracts the mean and divides by the standard deviation.

    Args:
        pixels: `(..., H, W, 3)` uint8.

    Returns:
        `(..., 3, H, W)` float32.
    """
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """Class probabilities.

    Args:
        logits: `(..., K)`.
        temperature: divides the logits; above 1 softens.

    Returns:
        `(..., K)` float64, each row sums to 1.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    scaled = np.asarray(logits, np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float64)


def _too_large(got: str, max_pixels: int) -> PhotoError:
    return PhotoError(f"a photo of at most {max_pixels:,} pixels", got, "scale it down")


def _reason(error: Exception) -> str:
    """Why, without the file's name, which Pillow and the system repeat."""
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, BMP or TIFF image"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    # Older Pillows open a 16-bit PNG as "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # Pillow clips 16-bit grey at 255 instead of scaling it.
        grey = (np.asarray(image, np.uint32) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit grey, whose range is unknown")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")

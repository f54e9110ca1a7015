"""Converts a photo to the input of a model; evaluation, export, prediction and the agent all use this module.

Reading (`read_photo`) and resizing (`to_pixels`) use Pillow.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import logging
import math
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from agridistill.colour import PixelFormatError, StoredForm, stored_form, to_plain, to_srgb
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.photo_files import INSTALL_HEIC, READS_HEIC, heic_pixels, is_heic

# Pillow's own limit (twice its MAX_IMAGE_PIXELS); a file with more pixels is an attack or an accident.
MAX_PIXELS = 178_956_970
# The limit of the JPEG format. The memory for resizing grows with the longer side: 100 million pixels would need 3 GB.
MAX_SIDE = 65_535
# A photo with more pixels than this must have at least one byte for each _MAX_PIXELS_A_BYTE pixels. Files of cameras
# have 4 to 50 pixels for each byte, files that are made to exhaust memory ("decompression bombs") far more.
LARGE_PIXELS = 25_000_000
_MAX_PIXELS_A_BYTE = 100
# A JPEG is decoded at no less than twice the size of the input. The pixels differ by half a level (of 255) on average
# from those of full decoding, which would take three times as long.
_SPARE = 2
# Photos with more pixels that had to be decoded at full size are scaled down immediately, because a device holds three
# photos in memory at a time.
_WHOLE_PIXELS = 4_000_000
# The WebP decoder holds several copies of a photo: 18 bytes for each pixel; other decoders need at most 10.
_WEBP_COPIES = 2
# System errors that a damaged file causes (by an impossible offset). All other system errors may be temporary.
_FILE_ERRORS = frozenset({errno.EINVAL, errno.EOVERFLOW})
# The decoder draws a progressive JPEG again for each scan in it. Files of cameras have about 10 scans, files that are
# made to waste time have thousands.
_MAX_DRAWN_PIXELS = 5_000_000_000
_START_OF_SCAN = b"\xff\xda"
# The JPEG reader of Pillow also opens MPO files, the JPEGs with two photos that phones write.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", *(("HEIF",) if READS_HEIC else ()))

# Pillow warns about unusual metadata, which does not change pixels, and about the size, which is checked here.
# `catch_warnings` around each photo is not possible: it changes the filters of the whole process, and with several
# threads the wrong filters may stay.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Libraries log damaged files without naming them; they also raise an error, which is enough.
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(OSError, AttributeError):  # some builds of Pillow do not export this function of libtiff
    ctypes.CDLL(vars(Image)["core"].__file__).TIFFSetErrorHandler(None)

Pixels = NDArray[np.uint8]


class UnreachablePhotoError(PhotoError):
    """A photo cannot be opened now (permissions, disk, network, memory) but may be readable later."""


class HeicPhotoError(PhotoError):
    """The photo is in HEIC, and the extra `heic`, which reads this format, is not installed."""


class PhotoCost(NamedTuple):
    """The size of a photo, and the memory that decoding it takes."""

    # In pixels as stored, before the photo is turned upright.
    width: int
    height: int
    # The memory, as a number of pixels of at most 10 bytes each.
    held_pixels: int


def read_photo(source: Path | bytes, *, shorter_side: int | None = None, own_colours: bool = False) -> Image.Image:
    """Decodes a photo to an upright RGB image in 8-bit sRGB.

    The EXIF orientation is applied. Colours with a profile (such as Display P3, Adobe RGB or CMYK) are converted to
    sRGB, and so are grey, palette and 16-bit photos. Transparent pixels become white; a fourth band that is not
    transparency is dropped. If a file holds several photos, the first is read.

    Args:
        source: a file's path, or the file's bytes.
        shorter_side: the length of the shorter side, in pixels, that the caller needs. To save time, a larger JPEG is
            decoded at 1/2, 1/4 or 1/8 of its size, but not smaller than this; other photos of more than 4 million
            pixels are scaled down, but not below twice this. None decodes at full size.
        own_colours: ignores the colour profile, for callers that only need shapes: converting the colours of a phone
            photo takes longer than decoding it.

    Raises:
        UnreachablePhotoError: the file cannot be opened now (permissions, disk, network, memory).
        PhotoError: the file is not an image, is damaged, cut off or too large, would exhaust memory or time, or has
            pixel values of an unknown range.
    """
    name = _name(source)
    with _photo_errors(name):
        size = _file_size(source)
        with _opened(source) as image:
            _require_size(image, name)
            _refuse_bomb(image, name, source, size)
            stored = stored_form(image)
            if shorter_side is not None:
                image.draft(None, (shorter_side, shorter_side))
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image, stored, shorter_side, own_colours=own_colours)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Converts an opened Pillow image as `read_photo` converts a file; returns a new RGB image of the full size."""
    name = f"a Pillow image of mode {image.mode}"
    with _photo_errors(name):
        if not (image.width and image.height):
            raise ValueError("without pixels")
        _require_size(image, name)
        stored = stored_form(image)
        return _to_rgb(ImageOps.exif_transpose(image), stored)


def photo_size(source: Path | bytes) -> tuple[int, int]:
    """Returns (width, height) of a photo in pixels, before it is turned upright; errors as in `photo_cost`."""
    width, height, _ = photo_cost(source)
    return width, height


def photo_cost(source: Path | bytes, *, shorter_side: int | None = None) -> PhotoCost:
    """Estimates, without decoding the photo, the memory that `read_photo` with this `shorter_side` will need.

    Raises:
        UnreachablePhotoError: the file cannot be opened now (permissions, disk, network, memory).
        PhotoError: the file is not an image.
    """
    with _photo_errors(_name(source)):
        _file_size(source)
        with _opened(source) as image:
            width, height = image.size
            # The decoder holds a whole progressive JPEG in memory until its last scan.
            if shorter_side is not None and not image.info.get("progressive"):
                image.draft(None, (shorter_side, shorter_side))
            pixels = image.width * image.height
            if image.format == "HEIF":
                pixels = max(pixels, heic_pixels(source))
            return PhotoCost(width, height, pixels * (_WEBP_COPIES if image.format == "WEBP" else 1))


def enough_pixels(preprocessing: Preprocessing) -> int:
    """Returns the `shorter_side` for `read_photo` (twice the input size) that keeps the result of `to_pixels` sharp."""
    return _SPARE * preprocessing.image_size


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """Resizes an RGB photo to the input size of a model, by the rule "crop" or "stretch" of its manifest.

    Returns:
        `(size, size, 3)` uint8, RGB, writable (torch warns about arrays that are not).
    """
    size = preprocessing.image_size
    box: tuple[float, float, float, float] | None = None
    if preprocessing.resize == "crop":
        side = min(image.width, image.height)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """Computes class probabilities `(..., K)` float64 from logits; a temperature above 1 makes them more equal.

    Raises:
        ValueError: the temperature is not a positive finite number.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    scaled = np.asarray(logits, np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float64)


def _name(source: Path | bytes) -> str:
    return f"'{source}'" if isinstance(source, Path) else f"{len(source)} bytes"


@contextlib.contextmanager
def _photo_errors(name: str) -> Iterator[None]:
    try:
        yield
    except PhotoError:
        raise
    except Image.DecompressionBombError:
        raise _too_many_pixels(f"{name} with more pixels") from None
    except FileNotFoundError:
        raise PhotoError("a photo", f"{name}, which does not exist", "check the path") from None
    except UnidentifiedImageError:
        formats = f"not a JPEG, PNG, WebP, BMP{', TIFF or HEIC' if READS_HEIC else ' or TIFF'} image"
        raise PhotoError("a readable photo", f"{name} ({formats})", "replace or remove the file") from None
    except Exception as error:
        # Pillow's decoders raise many types on damaged files (OSError, SyntaxError, struct.error, ValueError, …).
        code = error.errno if isinstance(error, OSError) else None
        # The text of a system error repeats the file name: take only its reason.
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        got = f"{name} ({reason})"
        if (code and code not in _FILE_ERRORS) or isinstance(error, MemoryError):
            raise UnreachablePhotoError("a readable photo", got, "check its permissions and the disk") from None
        remedy = error.remedy if isinstance(error, PixelFormatError) else "replace or remove the file"
        raise PhotoError("a readable photo", got, remedy) from None


def _opened(source: Path | bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
    except UnidentifiedImageError:
        if READS_HEIC or not is_heic(source):
            raise
        expected = "a JPEG, PNG, WebP, BMP or TIFF photo"
        got = f"{_name(source)} (a HEIC photo, which needs {INSTALL_HEIC})"
        raise HeicPhotoError(expected, got, "install this, or save the photo as JPEG") from None


def _file_size(source: Path | bytes) -> int:
    """Returns the size in bytes; refuses a pipe or a device, because opening or reading one may never end."""
    if isinstance(source, bytes):
        size, is_file = len(source), True
    else:
        found = source.stat()
        size, is_file = found.st_size, stat.S_ISREG(found.st_mode)
        if not (is_file or stat.S_ISDIR(found.st_mode)):
            raise ValueError("a pipe, socket or device")
    if is_file and not size:
        # Frequent after an interrupted copy; the error "not a JPEG" would suggest that the format is wrong.
        raise ValueError("an empty file")
    return size


def _require_size(image: Image.Image, name: str) -> None:
    got = f"{name} with {image.width} x {image.height} pixels"
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels(got)
    if max(image.size) > MAX_SIDE:
        raise PhotoError(f"a photo of at most {MAX_SIDE:,} pixels a side", got, "scale it down")


def _too_many_pixels(got: str) -> PhotoError:
    return PhotoError(f"a photo of at most {MAX_PIXELS:,} pixels", got, "scale it down")


def _refuse_bomb(image: Image.Image, name: str, source: Path | bytes, size: int) -> None:
    pixels, got = image.width * image.height, f"{name} with {image.width} x {image.height} pixels"
    if image.format == "HEIF" and (hidden := heic_pixels(source)) > pixels:
        pixels, got = hidden, f"{name} with {hidden:,} pixels"
        if pixels > MAX_PIXELS:
            raise _too_many_pixels(got)
    if pixels > LARGE_PIXELS and pixels > size * _MAX_PIXELS_A_BYTE:
        raise _bomb(f"{got} in {size:,} bytes")
    if image.info.get("progressive") and pixels * size > _MAX_DRAWN_PIXELS:
        scans = (source if isinstance(source, bytes) else source.read_bytes()).count(_START_OF_SCAN)
        if pixels * scans > _MAX_DRAWN_PIXELS:
            raise _bomb(f"{got} in {scans:,} scans")


def _bomb(got: str) -> PhotoError:
    return PhotoError("a photo", f"{got}, a decompression bomb", "replace or remove the file")


def _to_rgb(
    image: Image.Image, stored: StoredForm, shorter_side: int | None = None, *, own_colours: bool = False
) -> Image.Image:
    plain = to_plain(image, stored)
    if shorter_side is not None and plain.width * plain.height > _WHOLE_PIXELS:
        # Scale down before the colours are converted, so that fewer pixels are converted. This plain mean loses more
        # sharpness than the scaling in a JPEG decoder: therefore keep twice as many pixels on each side.
        scale = 2 * shorter_side / min(plain.size)
        if scale < 1:
            plain = plain.resize((round(plain.width * scale), round(plain.height * scale)), Image.Resampling.BOX)
    rgb = to_srgb(plain, None if own_colours else image.info.get("icc_profile"))
    # The profile no longer fits the pixels: a later conversion or a saved copy must not use it.
    rgb.info.pop("icc_profile", None)
    return rgb

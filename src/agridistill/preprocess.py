"""From a photo to the model's input: the only definition, used by training's evaluation, export, runtime and edge.

Reading (`read_photo`) and resizing (`to_pixels`) use Pillow; `normalise` is plain arithmetic, which an exported
graph repeats.
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

# Pillow refuses more by itself (twice its MAX_IMAGE_PIXELS); above it a file is an attack or an accident.
MAX_PIXELS = 178_956_970
# JPEG's own limit. Resizing takes memory by the longer side: a row of 100 million pixels would take 3 GB.
MAX_SIDE = 65_535
# Above this, a file has to have some content for its pixels: cameras give 4 to 50 pixels a byte, bombs far more.
LARGE_PIXELS = 25_000_000
_MAX_PIXELS_A_BYTE = 100
# A JPEG is decoded at no less than twice the size of the input: half a level off on average, a third of the time.
_SPARE = 2
# A larger photo that had to be decoded whole is scaled down at once: a device holds three of them at a time.
_WHOLE_PIXELS = 4_000_000
# WebP's decoder holds several copies: 18 bytes a pixel, others 10 at most.
_WEBP_COPIES = 2
# Errors that a damaged file causes, by an offset that no file has. All other errors of the system may pass.
_FILE_ERRORS = frozenset({errno.EINVAL, errno.EOVERFLOW})
# A progressive JPEG is drawn again with each of its scans: 10 in a camera's, thousands in a bomb.
_MAX_DRAWN_PIXELS = 5_000_000_000
_START_OF_SCAN = b"\xff\xda"
# Pillow's JPEG reader opens the two-photo JPEGs of phones (MPO) as well.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", *(("HEIF",) if READS_HEIC else ()))

# Odd metadata does not matter for pixels, and the size is checked here. Not `catch_warnings` around each photo: it
# changes the filters of the whole process, and threads that read photos would leave them switched off.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Libraries log damaged files without their names, and raise an error as well.
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(OSError, AttributeError):  # a build of Pillow that hides libtiff
    ctypes.CDLL(vars(Image)["core"].__file__).TIFFSetErrorHandler(None)

Pixels = NDArray[np.uint8]


class UnreachablePhotoError(PhotoError):
    """The system refuses a photo now (rights, disk, network, memory) and may give it later."""


class HeicPhotoError(PhotoError):
    """A photo in HEIC, which this installation cannot read."""


class PhotoCost(NamedTuple):
    """What decoding a photo takes."""

    # As stored, before the photo is turned upright.
    width: int
    height: int
    # Pixels of a plain BMP that takes the same memory, at most 10 bytes each.
    held_pixels: int


def read_photo(
    source: Path | bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    shorter_side: int | None = None,
    own_colours: bool = False,
) -> Image.Image:
    """Decodes a photo to upright 8-bit sRGB.

    EXIF orientation is applied; colours with a profile of their own (Display P3, Adobe RGB, CMYK, grey) are converted
    to sRGB; grey, palette and 16-bit photos are converted; transparent pixels become white, and a fourth band that is
    no transparency is left out. Of several photos in one file the first is read.

    Args:
        source: a file's path, or the file's bytes.
        max_pixels: photos with more are refused before they are decoded.
        shorter_side: as many pixels are enough: a larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size, but not below
            this; other photos of more than 4 million pixels are scaled down to no less than twice this. None
            decodes all.
        own_colours: leaves colours as the file has them, for work on shapes alone: converting all pixels of a phone's
            photo takes longer than decoding them.

    Raises:
        UnreachablePhotoError: the system refuses it for now.
        PhotoError: not an image, damaged, cut off, too large, made to exhaust memory or time, or of values whose range
            is unknown.
    """
    name = _name(source)
    with _photo_errors(name, max_pixels):
        size = _file_size(source)
        with _opened(source) as image:
            _require_size(image, name, max_pixels)
            _refuse_bomb(image, name, source, size, max_pixels)
            stored = stored_form(image)
            if shorter_side is not None:
                image.draft(None, (shorter_side, shorter_side))
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image, stored, shorter_side, own_colours=own_colours)


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened Pillow image of any mode as `read_photo` gives a file, of the whole size; the image is not changed.

    Raises:
        PhotoError: it cannot be decoded or converted, is empty or too large.
    """
    name = f"a Pillow image of mode {image.mode}"
    with _photo_errors(name, MAX_PIXELS):
        if not (image.width and image.height):
            raise ValueError("without pixels")
        _require_size(image, name, MAX_PIXELS)
        stored = stored_form(image)
        return _to_rgb(ImageOps.exif_transpose(image), stored)


def photo_size(source: Path | bytes) -> tuple[int, int]:
    """Width and height of a photo as stored, before it is turned upright; reads and raises as `photo_cost`."""
    width, height, _ = photo_cost(source)
    return width, height


def photo_cost(source: Path | bytes, *, shorter_side: int | None = None) -> PhotoCost:
    """What `read_photo` with this `shorter_side` will take; only the header is read.

    Raises:
        UnreachablePhotoError: the system refuses it for now.
        PhotoError: not an image.
    """
    with _photo_errors(_name(source), MAX_PIXELS):
        _file_size(source)
        with _opened(source) as image:
            width, height = image.size
            # All of a progressive JPEG is held until its last scan.
            if shorter_side is not None and not image.info.get("progressive"):
                image.draft(None, (shorter_side, shorter_side))
            pixels = image.width * image.height
            if image.format == "HEIF":
                pixels = max(pixels, heic_pixels(source))
            return PhotoCost(width, height, pixels * (_WEBP_COPIES if image.format == "WEBP" else 1))


def enough_pixels(preprocessing: Preprocessing) -> int:
    """The shorter side, for `read_photo`, from which `to_pixels` loses nothing visible."""
    return _SPARE * preprocessing.image_size


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


def _name(source: Path | bytes) -> str:
    return f"'{source}'" if isinstance(source, Path) else f"{len(source)} bytes"


@contextlib.contextmanager
def _photo_errors(name: str, max_pixels: int) -> Iterator[None]:
    try:
        yield
    except PhotoError:
        raise
    except Image.DecompressionBombError:
        raise _too_many_pixels(f"{name} with more", max_pixels) from None
    except FileNotFoundError:
        raise PhotoError("a photo", f"{name}, which does not exist", "check the path") from None
    except UnidentifiedImageError:
        formats = f"not a JPEG, PNG, WebP, BMP{', TIFF or HEIC' if READS_HEIC else ' or TIFF'} image"
        raise PhotoError("a readable photo", f"{name} ({formats})", "replace or remove the file") from None
    except Exception as error:
        # Pillow's decoders raise many types on damaged files (OSError, SyntaxError, struct.error, ValueError, …).
        code = error.errno if isinstance(error, OSError) else None
        # Not `str` of a system's error: it repeats the file's name.
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        got = f"{name} ({reason})"
        if (code and code not in _FILE_ERRORS) or isinstance(error, MemoryError):
            raise UnreachablePhotoError("a readable photo", got, "check its rights and the disk") from None
        remedy = error.remedy if isinstance(error, PixelFormatError) else "replace or remove the file"
        raise PhotoError("a readable photo", got, remedy) from None


def _opened(source: Path | bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
    except UnidentifiedImageError:
        if READS_HEIC or not is_heic(source):
            raise
        raise HeicPhotoError(
            "a JPEG, PNG, WebP, BMP or TIFF photo",
            f"{_name(source)} (a HEIC photo, which is read after {INSTALL_HEIC})",
            "install this, or save the photo as JPEG",
        ) from None


def _file_size(source: Path | bytes) -> int:
    """In bytes. A pipe or a device is refused: opening or reading one may never end."""
    if isinstance(source, bytes):
        size, is_file = len(source), True
    else:
        found = source.stat()
        size, is_file = found.st_size, stat.S_ISREG(found.st_mode)
        if not (is_file or stat.S_ISDIR(found.st_mode)):
            raise ValueError("a pipe, socket or device")
    if is_file and not size:
        # Common where a copy was cut off; "not a JPEG" would suggest another format.
        raise ValueError("an empty file")
    return size


def _require_size(image: Image.Image, name: str, max_pixels: int) -> None:
    got = f"{name} with {image.width} x {image.height}"
    if image.width * image.height > max_pixels:
        raise _too_many_pixels(got, max_pixels)
    if max(image.size) > MAX_SIDE:
        raise PhotoError(f"a photo of at most {MAX_SIDE:,} pixels a side", got, "scale it down")


def _too_many_pixels(got: str, max_pixels: int) -> PhotoError:
    return PhotoError(f"a photo of at most {max_pixels:,} pixels", got, "scale it down")


def _refuse_bomb(image: Image.Image, name: str, source: Path | bytes, size: int, max_pixels: int) -> None:
    pixels, got = image.width * image.height, f"{name} with {image.width} x {image.height}"
    if image.format == "HEIF" and (hidden := heic_pixels(source)) > pixels:
        pixels, got = hidden, f"{name} with {hidden:,} pixels"
        if pixels > max_pixels:
            raise _too_many_pixels(got, max_pixels)
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
        # Before colours are converted: fewer pixels. A plain mean costs more sharpness than a JPEG's own scaling: twice
        # as many pixels a side make up for it.
        scale = 2 * shorter_side / min(plain.size)
        if scale < 1:
            plain = plain.resize((round(plain.width * scale), round(plain.height * scale)), Image.Resampling.BOX)
    rgb = to_srgb(plain, None if own_colours else image.info.get("icc_profile"))
    # A later conversion or a saved copy must not find the profile of other colours with it.
    rgb.info.pop("icc_profile", None)
    return rgb

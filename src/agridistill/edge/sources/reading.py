"""Reading photos within the memory of a small device, also those that end the agent whenever it reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agridistill.edge.sources.source import Attempts, SourceSettings
from agridistill.errors import OutboxError, PhotoError
from agridistill.preprocess import PhotoCost, photo_cost, read_photo

# To write down each attempt would cost every photo two commits: only what may end the agent is worth them.
_LARGE_PIXELS, _LARGE_BYTES = 4_000_000, 3_000_000
_MOST_ENDS = 2
# Where a JPEG's data ends too early, its decoder paints the rest in exactly this grey, and Pillow does not report it.
_JPEG, _GREY, _REST = b"\xff\xd8", 128, (slice(-2, None), slice(-8, None))


class PhotoReader:
    """Decodes photos.

    Args:
        settings: limit and size.
        attempts: None remembers none.
    """

    def __init__(self, settings: SourceSettings, attempts: Attempts | None = None) -> None:
        self._settings, self._attempts = settings, attempts

    def read(self, source: Path | bytes, identity: str = "") -> NDArray[np.uint8]:
        """The photo upright, `(H, W, 3)` uint8 RGB, with no more pixels than the settings find enough.

        Args:
            source: a file's path, or the file's bytes.
            identity: of the photo, under which its attempts are remembered; "" remembers none.

        Raises:
            UnreachablePhotoError: the system refuses it for now.
            PhotoError: no photo, damaged, too large, or the agent ended twice while reading it.
        """
        cost = photo_cost(source, shorter_side=self._settings.shorter_side)
        name = f"'{source}'" if isinstance(source, Path) else f"{len(source):,} bytes"
        if cost.held_pixels > self._settings.max_pixels:
            raise _too_large(name, cost, self._settings.max_pixels)
        if not identity or not _is_large(source, cost):
            return self._decoded(source)
        if self._begin(identity) >= _MOST_ENDS:
            got = f"{name}: the agent ended twice while reading it"
            raise PhotoError("a photo that can be read", got, "scale it down and put it in again")
        try:
            return self._decoded(source)
        finally:
            self._end(identity)

    def _decoded(self, source: Path | bytes) -> NDArray[np.uint8]:
        pixels = np.asarray(read_photo(source, shorter_side=self._settings.shorter_side))
        if _lacks_data(pixels) and _is_jpeg(source):
            name = f"'{source}'" if isinstance(source, Path) else f"{len(source):,} bytes"
            raise PhotoError(
                "a whole photo", f"{name}, which lost some of its data", "check the camera and the way here"
            )
        return pixels

    # What the disk refuses to remember is no reason to leave a photo out.

    def _begin(self, identity: str) -> int:
        try:
            return self._attempts.begin(identity) if self._attempts is not None else 0
        except OutboxError:
            return 0

    def _end(self, identity: str) -> None:
        try:
            if self._attempts is not None:
                self._attempts.end(identity)
        except OutboxError:
            pass


def _lacks_data(pixels: NDArray[np.uint8]) -> bool:
    """Whether the end is the grey of a decoder that ran out of data, also when what is missing lay before the end.

    None of 13,707 photos of two data sets ends so (docs/field.md).
    """
    end = pixels[_REST].astype(np.int16)
    return bool((np.abs(end - _GREY) <= 1).all()) and bool(np.ptp(pixels) > 2)


def _is_jpeg(source: Path | bytes) -> bool:
    if isinstance(source, bytes):
        return source.startswith(_JPEG)
    with source.open("rb") as file:
        return file.read(len(_JPEG)) == _JPEG


def _is_large(source: Path | bytes, cost: PhotoCost) -> bool:
    if cost.width * cost.height > _LARGE_PIXELS:
        return True
    try:
        return (len(source) if isinstance(source, bytes) else source.stat().st_size) > _LARGE_BYTES
    except OSError:  # reading it tells why
        return False


def _too_large(name: str, cost: PhotoCost, most: int) -> PhotoError:
    got = f"{name} with {cost.width} x {cost.height}"
    if cost.held_pixels > cost.width * cost.height:
        got += f", a WebP, which takes the memory of {cost.held_pixels:,}"
    return PhotoError(
        f"a photo that takes the memory of at most {most:,} pixels",
        got,
        "scale it down, or save it as a JPEG that is not progressive",
    )

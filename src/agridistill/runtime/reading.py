"""Finds and reads the photos to predict; threads read the next batch while the model computes."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agridistill.arguments import described
from agridistill.errors import DataError, PhotoError
from agridistill.manifest import Preprocessing
from agridistill.photo_files import counts_by_suffix, files_below, how_to_read, is_explanation, is_photo, passed_over
from agridistill.preprocess import LARGE_PIXELS, Pixels, enough_pixels, photo_size, read_photo, to_pixels, upright_rgb

logger = logging.getLogger(__name__)

PhotoSource = Path | str | bytes | NDArray[Any] | Image.Image
"""A file's path, a file's bytes, an upright RGB photo `(H, W, 3)` uint8, or a Pillow image of any mode."""
ReadPhoto = tuple[PhotoSource, Pixels | PhotoError]

# More threads are hardly faster than the model, and each holds a whole decoded photo in memory.
_MAX_READERS = 4


def expand(paths: Iterable[Path]) -> list[Path]:
    """Returns the photos to predict: each file of `paths`, and in place of each folder its photos, sorted by path.

    Subfolders are searched as well. A warning gives the number of files in the folders that are not photos.

    Raises:
        DataError: a path does not exist, a folder has no photos, or a folder cannot be read.
    """
    photos: list[Path] = []
    others: list[str] = []
    for path in paths:
        if path.is_dir():
            photos += _photos_below(path, others)
        elif path.exists():
            photos.append(path)
        else:
            raise DataError("photos or folders of photos", f"'{path}', which does not exist", "check the path")
    if others:
        logger.warning("ignored %s", passed_over(sorted(others)))
    return photos


def _photos_below(folder: Path, others: list[str]) -> list[Path]:
    """Returns the photos below a folder, sorted, and adds the paths of other files to `others`."""

    def refuse(error: OSError) -> None:
        raise DataError("a folder that can be read", f"'{error.filename}' ({error.strerror})", "change its permissions")

    files = [folder / f"{inside}{name}" for inside, names in files_below(folder, refuse) for name in names]
    non_photos = [str(file) for file in files if not is_photo(file.name)]
    images = [file for file in files if is_photo(file.name)]
    explanations = {file for file in images if is_explanation(file)}
    if explanations:
        first = min(file.name for file in explanations)
        logger.warning("ignored %d files that --explain wrote to '%s', such as '%s'", len(explanations), folder, first)
    photos = sorted(file for file in images if file not in explanations)
    if not photos:
        held = f" (it contains {counts_by_suffix(non_photos)})" if non_photos else ""
        remedy = how_to_read(non_photos, otherwise="pass another folder, or the photo files")
        raise DataError("a folder with photos", f"'{folder}' without photos{held}", remedy)
    others += non_photos
    return photos


def read_pixels(source: PhotoSource, preprocessing: Preprocessing) -> Pixels:
    """Reads one photo as the model's input, `(S, S, 3)` uint8, RGB.

    Raises:
        PhotoError: the photo cannot be read, or `source` has the wrong type or shape.
    """
    return to_pixels(read_source(source, shorter_side=enough_pixels(preprocessing)), preprocessing)


def read_source(source: object, *, shorter_side: int | None = None) -> Image.Image:
    """Reads one photo as an upright 8-bit RGB image.

    Args:
        source: a path, the bytes of a file, an array or a Pillow image (`PhotoSource`).
        shorter_side: number of pixels that the caller needs on the shorter side: large files are decoded at a reduced
            size to save time (see `read_photo`). None reads the full size. Arrays and Pillow images keep their size.

    Raises:
        PhotoError: the photo cannot be read, the array is not `(H, W, 3)` uint8, or `source` has another type.
    """
    if isinstance(source, np.ndarray):
        if source.ndim == 3 and source.shape[2] == 3 and source.dtype == np.uint8 and source.size:
            return Image.fromarray(source)
        got = f"{source.shape} {source.dtype}"
        raise PhotoError("an RGB array of shape (H, W, 3) and dtype uint8", got, _conversion(source))
    if isinstance(source, Image.Image):
        return upright_rgb(source)
    if isinstance(source, bytes | str | Path):
        if source == "":
            raise PhotoError("a photo's path", "an empty string", "pass the path of a file")
        return read_photo(source if isinstance(source, bytes) else Path(source), shorter_side=shorter_side)
    several = isinstance(source, list | tuple | set)
    raise PhotoError(
        "a photo as a path (str or Path), a file's bytes, an RGB array or a Pillow image",
        described(source),
        "pass several photos to predict_many" if several else "pass one of these",
    )


def _conversion(array: NDArray[Any]) -> str:
    """Returns the remedy for an array that is no RGB photo: the code that converts it, if its shape tells."""
    if not array.size:
        return "pass an array with pixels"
    if array.ndim == 4:
        return "pass several photos to predict_many, or a single one as photos[0]"
    if array.ndim == 2:
        return "repeat the grey channel: np.stack([photo] * 3, axis=-1)"
    if array.ndim == 3 and array.shape[2] != 3 and array.shape[0] == 3:
        return "move the channels to the end: np.moveaxis(photo, 0, -1)"
    if array.ndim == 3 and array.shape[2] == 4:
        return "leave alpha out: photo[..., :3]"
    if array.ndim == 3 and array.shape[2] == 3 and np.issubdtype(array.dtype, np.floating):
        return "scale to 0..255 and convert: (255 * photo).astype(np.uint8) for values from 0 to 1"
    return "convert it to this shape and dtype"


def read_batches(
    sources: Iterable[PhotoSource], preprocessing: Preprocessing, *, batch_size: int
) -> Iterator[list[ReadPhoto]]:
    """Reads photos and yields lists of up to `batch_size` pairs (source, pixels), in the order of `sources`.

    `pixels` is `(S, S, 3)` uint8, or the PhotoError of a photo that cannot be read. At most two batches are in memory:
    the one in use and the next. Only one photo of more than 25 million pixels is decoded at a time.
    """
    one_large = threading.Lock()

    def read(source: PhotoSource) -> ReadPhoto:
        try:
            with one_large if _is_large(source) else contextlib.nullcontext():
                return source, read_pixels(source, preprocessing)
        except PhotoError as error:
            return source, error

    def read_ahead() -> Iterator[ReadPhoto]:
        waiting: deque[Future[ReadPhoto]] = deque()
        pool = ThreadPoolExecutor(min(_MAX_READERS, os.cpu_count() or 1), thread_name_prefix="photo-reader")
        try:
            for source in sources:
                waiting.append(pool.submit(read, source))
                if len(waiting) > batch_size:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    photos = read_ahead()
    while batch := list(itertools.islice(photos, batch_size)):
        yield batch


def _is_large(source: PhotoSource) -> bool:
    if not isinstance(source, bytes | str | Path):
        return False
    try:
        width, height = photo_size(source if isinstance(source, bytes) else Path(source))
    except PhotoError:
        return False  # reading it raises the error
    return width * height > LARGE_PIXELS

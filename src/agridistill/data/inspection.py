"""Reads every photo once: whether it can be read, its size, its content and its look."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import imagehash
import numpy as np
from PIL import Image

from agridistill.data.folder import PhotoFolder, Sample
from agridistill.data.likeness import look_of
from agridistill.errors import DataError, PhotoError
from agridistill.preprocess import MAX_PIXELS, HeicPhotoError, read_photo
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import user_cache, write_json

logger = logging.getLogger(__name__)

MAX_BAD_SHARE = 0.05
_MAX_WORKERS = 8
_BATCH = 1024
# A decoded photo of this many pixels takes 120 MB; larger ones are decoded one at a time, to bound the memory.
_LARGE_PIXELS = 40_000_000
_HASH_SIDE = 128
_large_photo = threading.Lock()
# Of the store; to be raised also when photos are read in another way: looks and errors of another way differ.
FORMAT_VERSION = 4
# A photo that changed within the clock tick in which it was read would look unchanged.
_SETTLED_NS = 2_000_000_000


class PhotoRecord(NamedTuple):
    """What one file holds."""

    digest: str  # blake2b-128 of the file's bytes, as hex; empty where the bytes cannot be read
    width: int  # in pixels, upright; 0 where unknown
    height: int
    phash: int | None  # 64-bit perceptual hash; None for an unreadable photo
    error: str | None  # why the photo cannot be used; None for a good one
    look: str | None = None  # see `data.likeness`; None for an unreadable photo and for one of a single colour
    turned_phashes: tuple[int, ...] = ()  # of its seven other turns and flips; empty for an unreadable photo


Inspection = Mapping[str, PhotoRecord]
"""The records of all photos, by `Sample.path`."""


class InspectionStore:
    """Records of one data folder's photos in the user's cache: a photo of the same size and time is not read again.

    Photos that were read with another limit have records of their own.
    """

    def __init__(self, root: Path, max_pixels: int) -> None:
        name = hashlib.sha256(json.dumps([os.fsdecode(root.resolve()), max_pixels]).encode()).hexdigest()[:16]
        self._path = user_cache() / "photos" / f"{name}.json"
        self._root = f"{root}{os.sep}"
        # Size and times of a photo, then its record.
        self._known: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads(self._path.read_text(encoding="utf-8"))
            if document["format"] == FORMAT_VERSION:
                self._known = document["photos"]
        self._seen: dict[str, list[Any]] = {}
        self._states: dict[str, list[int]] = {}

    def find(self, path: str) -> PhotoRecord | None:
        """The record of a photo that has not changed since; None where it must be read."""
        try:
            # Before the photo is read: a change meanwhile must not count as read.
            # os.stat, once for every photo at every start: a Path costs more than the call.
            stat = os.stat(self._root + path)  # noqa: PTH116
        except OSError:
            return None
        # Unlike the time of the last write, that of the last change of state cannot be set back.
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        row = self._known.get(path)
        if row is not None and row[:3] == state:
            self._seen[path] = row
            return PhotoRecord._make([*row[3:-1], tuple(row[-1])])
        self._states[path] = state
        return None

    def add(self, path: str, record: PhotoRecord) -> None:
        """Keeps the record of a readable photo. Bad photos are read every time: the cause may be gone."""
        state = self._states.pop(path, None)
        if record.error is None and state is not None and time.time_ns() - max(state[1:]) > _SETTLED_NS:
            self._seen[path] = [*state, *record]

    def save(self) -> None:
        """Writes the records of the photos that are there now, unless nothing has changed."""
        if self._seen == self._known:
            return
        try:
            write_json(self._path, {"format": FORMAT_VERSION, "photos": self._seen})
        except (OSError, ValueError):
            logger.debug("no photo records in '%s'", self._path, exc_info=True)


def inspect_photos(
    folder: PhotoFolder,
    *,
    max_pixels: int = MAX_PIXELS,
    store: InspectionStore | None = None,
    progress: ProgressCallback = silent,
) -> Inspection:
    """Reads and decodes every photo of a folder, in threads; only the records stay in memory.

    Args:
        folder: the scanned folder.
        max_pixels: photos with more pixels get an error and are not decoded.
        store: records of earlier readings; None reads every photo.
        progress: called with (done, total), from the calling thread.

    Returns:
        A record of every sample; that of an unreadable photo has an error.
    """
    paths = [sample.path for sample in folder.samples]
    found = {path: store.find(path) for path in paths} if store is not None else {}
    records = {path: record for path, record in found.items() if record is not None}
    unread = [path for path in paths if path not in records]
    workers = min(_MAX_WORKERS, os.cpu_count() or 1)
    with _own_pixel_limit(), ThreadPoolExecutor(workers, thread_name_prefix="inspect") as pool:
        try:
            for start in range(0, len(unread), _BATCH):
                batch = unread[start : start + _BATCH]
                read = pool.map(inspect_photo, (folder.root / path for path in batch), repeat(max_pixels))
                for path, record in zip(batch, read, strict=True):
                    records[path] = record
                    if store is not None:
                        store.add(path, record)
                    progress(len(records), len(paths))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if store is not None:
        store.save()
        progress(len(paths), len(paths))
    return records


def inspect_photo(path: Path, max_pixels: int = MAX_PIXELS) -> PhotoRecord:
    """Reads and decodes one photo; an unreadable one gives a record with an error."""
    try:
        if not path.is_file():
            return PhotoRecord("", 0, 0, None, "a broken link" if path.is_symlink() else "not a regular file")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            size = file.tell()
            width, height = _header_size(file)
    except OSError as error:
        return PhotoRecord("", 0, 0, None, error.strerror or type(error).__name__)
    if size == 0:
        return PhotoRecord(digest, 0, 0, None, "empty file")
    if width * height > max_pixels:
        return PhotoRecord(digest, width, height, None, f"{width} x {height} pixels, more than {max_pixels:,}")
    try:
        with _large_photo if width * height > _LARGE_PIXELS else nullcontext():
            return _decoded_record(path, digest, max_pixels)
    except PhotoError as error:
        if width == 0 and not isinstance(error, HeicPhotoError):
            return PhotoRecord(digest, width, height, None, "not a photo")
        # "'path' (reason)": the path is shown beside the reason anyway.
        _, found, reason = error.got.partition("' (")
        return PhotoRecord(digest, width, height, None, reason.removesuffix(")") if found else error.got)


def usable_samples(
    folder: PhotoFolder, inspection: Inspection
) -> tuple[tuple[Sample, ...], tuple[tuple[str, str], ...]]:
    """Separates the readable photos from the others.

    Returns:
        The readable samples, and (path, reason) of each skipped one.

    Raises:
        DataError: more than 5 % of the photos are unreadable, or all of one class.
    """
    errors = {sample.path: inspection[sample.path].error for sample in folder.samples}
    good = tuple(sample for sample in folder.samples if errors[sample.path] is None)
    bad = tuple((path, reason) for path, reason in errors.items() if reason is not None)
    if len(bad) > MAX_BAD_SHARE * len(folder.samples):
        path, reason = bad[0]
        raise DataError(
            f"at most {MAX_BAD_SHARE:.0%} unreadable photos",
            f"{len(bad)} of {len(folder.samples)} in '{folder.root}', the first '{path}' ({reason})",
            f"list them with 'agridistill data check {folder.root}' and replace or remove them",
        )
    counts = Counter(sample.label for sample in good)
    for label, name in enumerate(folder.classes):
        if not counts[label]:
            raise DataError(
                "readable photos of every class",
                f"none of '{name}' in '{folder.root}'",
                f"list the reasons with 'agridistill data check {folder.root}'",
            )
    return good, bad


def fingerprint(classes: Sequence[str], samples: Iterable[Sample], inspection: Inspection) -> str:
    """Names the data: sha256 over the classes and each photo's path, label and content, in any order of samples."""
    rows = sorted((sample.path, sample.label, inspection[sample.path].digest) for sample in samples)
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for row in rows:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def digests_of_photos(samples: Iterable[Sample], inspection: Inspection) -> dict[str, str]:
    """The digest of each photo's content, by `Sample.path`."""
    return {sample.path: inspection[sample.path].digest for sample in samples}


def phashes_of(samples: Iterable[Sample], inspection: Inspection) -> dict[str, int]:
    """The 64-bit perceptual hash of each readable photo, by `Sample.path`."""
    paths = [sample.path for sample in samples]
    return {path: phash for path in paths if (phash := inspection[path].phash) is not None}


def turned_phashes_of(samples: Iterable[Sample], inspection: Inspection) -> dict[str, tuple[int, ...]]:
    """The 64-bit perceptual hashes of each readable photo, first as it is, then turned; by `Sample.path`."""
    return {path: (phash, *inspection[path].turned_phashes) for path, phash in phashes_of(samples, inspection).items()}


def looks_of(samples: Iterable[Sample], inspection: Inspection) -> dict[str, str]:
    """The look of each photo that has one (`data.likeness`), by `Sample.path`."""
    paths = [sample.path for sample in samples]
    return {path: look for path in paths if (look := inspection[path].look) is not None}


@contextmanager
def _own_pixel_limit() -> Iterator[None]:
    """Switches Pillow's pixel limit off, which hides the size of larger photos; `max_pixels` takes its place."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _header_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height from the header alone; zeros where Pillow does not know the file."""
    file.seek(0)
    try:
        with Image.open(file) as image:
            return image.size
    except Exception:
        # Pillow's parsers raise many types on damaged files; read_photo gives the reason.
        return 0, 0


def _decoded_record(path: Path, digest: str, max_pixels: int) -> PhotoRecord:
    # In its own colours: learnt photos are recognised by hashes that earlier versions made so.
    image = read_photo(path, max_pixels=max_pixels, own_colours=True)
    tiny = _tiny(image)
    turned = tuple(_phash(tiny.transpose(turn)) for turn in Image.Transpose)
    return PhotoRecord(digest, image.width, image.height, _phash(tiny), None, look_of(tiny), turned)


def _tiny(image: Image.Image) -> Image.Image:
    """Grey, 32 x 32, scaled as imagehash does, which then leaves it as it is."""
    # A box filter first: it is fast, and the hash looks at 32x32 pixels anyway.
    factor = max(1, min(image.size) // _HASH_SIDE)
    return image.convert("L").reduce(factor).resize((32, 32), Image.Resampling.LANCZOS)


def _phash(tiny: Image.Image) -> int:
    """64-bit perceptual hash: signs of the lowest 8x8 cosine coefficients against their median."""
    return int.from_bytes(np.packbits(imagehash.phash(tiny).hash).tobytes(), "big")

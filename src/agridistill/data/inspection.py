"""Reads every photo once and records whether it can be decoded, its size, and hashes of its content and its look."""

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
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fftpack import dct

from agridistill.data.folder import PhotoFolder, Sample
from agridistill.data.likeness import copy_groups, exact_groups, look_of
from agridistill.errors import DataError, PhotoError
from agridistill.host import usable_cores
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
# A JPEG is decoded at a reduced size, but not below this: the hashes need only 32 x 32 pixels. Damage is found as well.
_DECODED_SIDE = 4 * _HASH_SIDE
_large_photo = threading.Lock()
# Version of the stored records; raise it also if photos are read differently, because looks and errors then change.
FORMAT_VERSION = 5
# A photo is recorded only this long after its last change: a change soon after reading may leave its times the same.
_SETTLED_NS = 2_000_000_000


class PhotoRecord(NamedTuple):
    """The result of reading one photo file: its size and hashes, or the reason why it cannot be used."""

    digest: str  # blake2b-128 of the file's bytes, as hex; empty if the bytes cannot be read
    width: int  # in pixels, after the photo was turned upright; 0 if unknown
    height: int  # as width
    phash: int | None  # 64-bit perceptual hash; None for an unreadable photo
    error: str | None  # why the photo cannot be used; None for a usable one
    look: str | None = None  # see `data.likeness`; None for an unreadable photo and for one without contrast
    turned_phashes: tuple[int, ...] = ()  # hashes of its seven other turns and flips; empty for an unreadable photo


Inspection = Mapping[str, PhotoRecord]
"""`Sample.path` -> record, for all photos of a folder."""


class _Store:
    """A file in the user's cache with the records of a data folder's photos, so that these are read only once.

    A photo is read again if its size in bytes, its modification time or its change time (ctime) differs.
    """

    def __init__(self, root: Path) -> None:
        name = hashlib.sha256(json.dumps([os.fsdecode(root.resolve()), MAX_PIXELS]).encode()).hexdigest()[:16]
        self._path = user_cache() / "photos" / f"{name}.json"
        self._root = f"{root}{os.sep}"
        # Path -> size and times of a photo, followed by its record.
        self._known: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads(self._path.read_text(encoding="utf-8"))
            if document["format"] == FORMAT_VERSION:
                self._known = document["photos"]
        self._seen: dict[str, list[Any]] = {}
        self._states: dict[str, list[int]] = {}

    def find(self, path: str) -> PhotoRecord | None:
        """Returns the stored record of a photo; None if there is none or the photo has changed since it was read."""
        try:
            # Size and times are taken before the photo is read, so that a change during reading is noticed.
            # os.stat is called for every photo at every start; creating a Path would take longer than the call.
            stat = os.stat(self._root + path)  # noqa: PTH116
        except OSError:
            return None
        # Programs can set the time of the last write back (st_mtime), but not that of the last change (st_ctime).
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        row = self._known.get(path)
        if row is not None and row[:3] == state:
            self._seen[path] = row
            return PhotoRecord._make([*row[3:-1], tuple(row[-1])])
        self._states[path] = state
        return None

    def add(self, path: str, record: PhotoRecord) -> None:
        """Adds a record, which `save` writes; one with an error is ignored, as its cause may disappear at any time."""
        state = self._states.pop(path, None)
        if record.error is None and state is not None and time.time_ns() - max(state[1:]) > _SETTLED_NS:
            self._seen[path] = [*state, *record]

    def save(self) -> None:
        """Writes the records of the photos that exist now, if any record is new; a disk error is only logged."""
        if self._seen == self._known:
            return
        try:
            write_json(self._path, {"format": FORMAT_VERSION, "photos": self._seen})
        except (OSError, ValueError):
            logger.debug("the photo records '%s' were not written", self._path, exc_info=True)


def inspect_photos(folder: PhotoFolder, *, remember: bool = False, progress: ProgressCallback = silent) -> Inspection:
    """Reads and decodes every photo of a folder, in several threads; only the records stay in memory.

    Photos with more than `MAX_PIXELS` pixels are not decoded; their records have an error. With `remember`, records are
    kept in the user's cache, and photos that have not changed are not read again. `progress` is called in this thread.
    """
    store = _Store(folder.root) if remember else None
    paths = [sample.path for sample in folder.samples]
    found = {path: store.find(path) for path in paths} if store is not None else {}
    records = {path: record for path, record in found.items() if record is not None}
    unread = [path for path in paths if path not in records]
    workers = min(_MAX_WORKERS, usable_cores())
    with _own_pixel_limit(), ThreadPoolExecutor(workers, thread_name_prefix="inspect") as pool:
        try:
            for start in range(0, len(unread), _BATCH):
                batch = unread[start : start + _BATCH]
                read = pool.map(inspect_photo, (folder.root / path for path in batch))
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


def inspect_photo(path: Path) -> PhotoRecord:
    """Reads and decodes one photo; if it cannot be used, the record's `error` is the reason."""
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
    if width * height > MAX_PIXELS:
        return PhotoRecord(digest, width, height, None, f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
    try:
        with _large_photo if width * height > _LARGE_PIXELS else nullcontext():
            return _decoded_record(path, digest, (width, height))
    except PhotoError as error:
        if width == 0 and not isinstance(error, HeicPhotoError):
            return PhotoRecord(digest, width, height, None, "not a photo")
        # The text is "'path' (reason)"; keep only the reason, because messages show the path next to it.
        _, found, reason = error.got.partition("' (")
        return PhotoRecord(digest, width, height, None, reason.removesuffix(")") if found else error.got)


def usable_samples(
    folder: PhotoFolder, inspection: Inspection
) -> tuple[tuple[Sample, ...], tuple[tuple[str, str], ...]]:
    """Returns the readable samples of a folder, and a pair (path, reason) for each unreadable one.

    Raises a DataError if more than 5 % of the photos are unreadable, or a class has no readable photo.
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
                "at least one readable photo in every class",
                f"no readable photo of '{name}' in '{folder.root}'",
                f"list the reasons with 'agridistill data check {folder.root}' and replace the photos",
            )
    return good, bad


def fingerprint(classes: Sequence[str], samples: Iterable[Sample], inspection: Inspection) -> str:
    """Computes a sha256, in hex, over the classes and the path, label and content of each photo, in any order."""
    rows = sorted((sample.path, sample.label, inspection[sample.path].digest) for sample in samples)
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for row in rows:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def identical_groups(samples: Iterable[Sample], inspection: Inspection) -> list[list[str]]:
    """Returns sorted groups of two or more paths of identical files."""
    return exact_groups({sample.path: inspection[sample.path].digest for sample in samples})


def groups_of_copies(samples: Iterable[Sample], inspection: Inspection) -> list[list[str]]:
    """Returns sorted groups of copies of one photo, also flipped, turned, scaled or saved again (`copy_groups`)."""
    paths = [sample.path for sample in samples]
    # Photos that have almost no contrast have no look.
    return copy_groups({path: look for path in paths if (look := inspection[path].look) is not None})


def phashes_of(samples: Iterable[Sample], inspection: Inspection) -> dict[str, int]:
    """Returns `Sample.path` -> 64-bit perceptual hash, without the unreadable photos."""
    paths = [sample.path for sample in samples]
    return {path: phash for path in paths if (phash := inspection[path].phash) is not None}


def turned_phashes_of(samples: Iterable[Sample], inspection: Inspection) -> dict[str, tuple[int, ...]]:
    """Returns `Sample.path` -> 8 perceptual hashes, of the photo as it is and of its 7 other turns and flips."""
    return {path: (phash, *inspection[path].turned_phashes) for path, phash in phashes_of(samples, inspection).items()}


@contextmanager
def _own_pixel_limit() -> Iterator[None]:
    """Switches off Pillow's pixel limit, because it hides the size of larger photos; `MAX_PIXELS` is used instead."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _header_size(file: BinaryIO) -> tuple[int, int]:
    """Reads width and height from the header of a file; (0, 0) if Pillow does not recognise the file."""
    file.seek(0)
    try:
        with Image.open(file) as image:
            return image.size
    except Exception:
        # Pillow raises many types of errors for damaged files; read_photo reports the reason later.
        return 0, 0


def _decoded_record(path: Path, digest: str, stored: tuple[int, int]) -> PhotoRecord:
    # The colour profile is ignored, because earlier versions computed the stored hashes of training photos in this way.
    image = read_photo(path, shorter_side=_DECODED_SIDE, own_colours=True)
    tiny = _tiny(image)
    phash, *turned = _phashes(_turns(np.asarray(tiny)))
    is_wide = image.width > image.height
    width, height = stored if is_wide == (stored[0] > stored[1]) else stored[::-1]
    return PhotoRecord(digest, width, height, phash, None, look_of(tiny), tuple(turned))


def _tiny(image: Image.Image) -> Image.Image:
    """Scales a photo to 32 x 32 grey pixels, as imagehash does, so that imagehash does not scale it again."""
    # A fast box filter comes first, because the hash only uses 32 x 32 pixels.
    factor = max(1, min(image.size) // _HASH_SIDE)
    return image.convert("L").reduce(factor).resize((32, 32), Image.Resampling.LANCZOS)


def _turns(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stacks a square picture `(N, N)` and its seven turns and flips, in the order of `Image.Transpose`: `(8, ...)`."""
    half = grey[::-1, ::-1]
    turned = [grey[:, ::-1], grey[::-1], np.rot90(grey), half, np.rot90(half), grey.T, half.T]
    return np.stack([grey, *turned])


def _phashes(tiny: NDArray[np.uint8]) -> list[int]:
    """Computes 64-bit perceptual hashes: which of the lowest 8 x 8 cosine coefficients are above their median.

    They are those of `imagehash.phash`, for all pictures `(8, 32, 32)` at once, because its calls cost more than the
    arithmetic.
    """
    waves = dct(dct(tiny, axis=1), axis=2)[:, :8, :8].reshape(len(tiny), -1)
    bits = waves > np.median(waves, axis=1, keepdims=True)
    return [int.from_bytes(row.tobytes(), "big") for row in np.packbits(bits, axis=1)]

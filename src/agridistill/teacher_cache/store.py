"""The cache on disk: its key, and its files.

The files hold, for each view of each photo, the view's seed, the teacher's logits and its attention maps: one file of
fixed-size records, view by view; beside it a checksum for each block of photos of a view, and the key. A block counts
once its checksum is written, so a kill loses at most the block in progress.

::

    FOLDER/
      cache.json       format, key, layout
      records.bin      (views, photos) records: seed uint32, logits float16 (K), maps float16 (H, W) or (M, H, W)
      checksums.bin    (views, blocks) uint64: 0 not built yet, else 2^32 + the CRC-32 of the block's records
      lock             held by the process that builds
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import metadata
from io import FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from agridistill.data.loader import Viewing
from agridistill.data.views import VIEWS_VERSION, plain_settings
from agridistill.errors import RunError
from agridistill.manifest import ModelManifest
from agridistill.models import OUTPUTS_VERSION
from agridistill.storage import only_one, write_json

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
BLOCK_PHOTOS = 256
_BUILT = 1 << 32
_DOCUMENT, _RECORDS, _CHECKSUMS, _LOCK = "cache.json", "records.bin", "checksums.bin", "lock"
_DELETE = "delete the folder; it is built again"

Key = Mapping[str, str | int | float | bool]


def cache_key(
    viewing: Viewing,
    teacher: ModelManifest,
    *,
    strides: Sequence[int],
    kind: Literal["activation", "window"],
    per_head: bool,
) -> Key:
    """Everything that the records depend on; two caches of one key hold the same records."""
    photos = sha256(viewing.fingerprint.encode())
    for sample in viewing.samples:
        photos.update(json.dumps(sample.path).encode())
    return {
        "teacher weights": teacher.weights_sha256,
        "teacher model": teacher.model,
        **{f"teacher {name}": str(value) for name, value in asdict(teacher.preprocessing).items()},
        "teacher precision": str(teacher.lineage.get("precision")),
        "photos": photos.hexdigest(),
        "data.image_size": viewing.preprocessing.image_size,
        "data.resize": viewing.preprocessing.resize,
        **{f"augmentation.{name}": value for name, value in plain_settings(viewing.augmentation).items()},
        "views": f"version {VIEWS_VERSION}, seed {viewing.seed}",
        "outputs": f"version {OUTPUTS_VERSION}, format {FORMAT_VERSION}",
        "objective.attention": kind + (", each head" if per_head else ""),
        "objective.pairs at the teacher's strides": ", ".join(str(stride) for stride in strides),
        **{
            f"version of {name}": metadata.version(name).partition("+")[0]
            for name in ("torch", "timm", "Pillow", "numpy")
        },
    }


def digest_of(key: Key) -> str:
    """A short name for a key, 12 hexadecimal digits."""
    return sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:12]


def differences(stored: Mapping[str, Any], current: Key) -> list[str]:
    """Which parts of two keys differ, in words; digests are cut to their beginning."""
    differing = [part for part in sorted(stored.keys() | current.keys()) if stored.get(part) != current.get(part)]
    texts = [f"{part} {stored.get(part)}, here {current.get(part)}" for part in differing]
    return [re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1…", text) for text in texts]


class Block(NamedTuple):
    """The records of the photos `start` to `stop - 1` in one view."""

    number: int  # within the cache, from 0
    view: int
    start: int
    stop: int


@dataclass(frozen=True)
class CacheLayout:
    """Shape of a cache."""

    photos: int  # rows of each view
    num_classes: int
    maps: Mapping[int, tuple[int, ...]]  # shape of the attention map by stride: (H, W), or (M, H, W) for M maps

    @property
    def dtype(self) -> np.dtype[np.void]:
        """One record, without padding: 4 + 2 K + 2 H W bytes (122 for 10 classes and one 7x7 map).

        Fields: "seed" of the view, "logits" `(K,)`, and for each stride a map such as "map_s16".
        """
        fields: list[Any] = [("seed", "<u4"), ("logits", "<f2", (self.num_classes,))]
        fields += [(map_field(stride), "<f2", tuple(shape)) for stride, shape in sorted(self.maps.items())]
        return np.dtype(fields)

    def blank_records(self, count: int) -> NDArray[np.void]:
        """`(count,)` records without outputs, as of photos that cannot be read: their logits are NaN."""
        records = np.zeros(count, self.dtype)
        records["logits"] = np.nan
        return records

    @property
    def blocks_per_view(self) -> int:
        """Blocks of one view; the last may be smaller."""
        return -(-self.photos // BLOCK_PHOTOS)

    def bytes_for(self, views: int) -> int:
        """Size of the records of this number of views."""
        return views * self.photos * self.dtype.itemsize

    def blocks(self, views: int) -> Iterator[Block]:
        """Every block of this number of views, in the order of the file."""
        for number in range(views * self.blocks_per_view):
            view, index = divmod(number, self.blocks_per_view)
            yield Block(number, view, index * BLOCK_PHOTOS, min((index + 1) * BLOCK_PHOTOS, self.photos))


def map_field(stride: int) -> str:
    """Name of a stage's map in a record."""
    return f"map_s{stride}"


def read_document(folder: Path) -> tuple[Mapping[str, Any], CacheLayout] | None:
    """Key and layout of the cache in a folder; None where there is none.

    Raises:
        RunError: a damaged file, or a cache of another format.
    """
    path = folder / _DOCUMENT
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] == FORMAT_VERSION:
            return dict(document["key"]), TypeAdapter(CacheLayout).validate_python(document["layout"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError("a readable teacher cache", f"'{path}' ({type(error).__name__})", _DELETE) from None
    got = f"format {document['format']} in '{folder}'"
    raise RunError(f"a teacher cache of format {FORMAT_VERSION}", got, _DELETE)


@contextlib.contextmanager
def building(folder: Path) -> Iterator[None]:
    """Holds the lock of a cache; a second run waits for it, and then finds the blocks built.

    Raises:
        RunError: the folder cannot be created or written.
    """
    with contextlib.ExitStack() as held:
        with _disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(only_one(folder / _LOCK, "teacher cache"))
            except RunError:
                logger.warning("another run builds the teacher cache '%s': waiting for it", folder)
                held.enter_context(only_one(folder / _LOCK, "teacher cache", wait=True))
        yield


class TeacherCache:
    """A cache that can be read, and built block by block; its folder is created where it does not exist.

    A cache with fewer views of each photo than requested grows, one with more is used as it is.

    Raises:
        RunError: the folder holds a cache with another key or layout, a damaged one, or the disk has no room.
    """

    def __init__(self, folder: Path, key: Key, layout: CacheLayout, views: int) -> None:
        self.folder, self.layout, self.views = folder, layout, views
        stored = read_document(folder)
        if stored is not None:
            differing = differences(stored[0], key)
            if stored[1] != layout:
                differing.append(f"layout {asdict(stored[1])}, here {asdict(layout)}")
            if differing:
                raise RunError(
                    f"a teacher cache for this teacher, data and recipe in '{folder}'",
                    f"one that differs in {'; '.join(differing[:3])}",
                    "delete it or choose another --cache-dir",
                )
        with _disk_errors(folder):
            if stored is None:
                # Before the document is written: records without it are of unknown origin.
                for name in (_RECORDS, _CHECKSUMS):
                    (folder / name).unlink(missing_ok=True)
                write_json(folder / _DOCUMENT, {"format": FORMAT_VERSION, "key": dict(key), "layout": asdict(layout)})
            self._records_file = _open_at_least(folder / _RECORDS, layout.bytes_for(views))
            self._checksums_file = _open_at_least(folder / _CHECKSUMS, 8 * views * layout.blocks_per_view)

    def missing(self, rank: int = 0, world: int = 1) -> list[Block]:
        """The blocks to build: those never written, and (with a warning) those that are damaged.

        Reads every record of this process's share (every `world`-th block) once, without keeping it in memory.
        """
        missing, damaged, size = [], 0, self.layout.dtype.itemsize
        for block in self.layout.blocks(self.views):
            if block.number % world != rank:
                continue
            expected = int.from_bytes(_read_at(self._checksums_file, 8, 8 * block.number), "little")
            content = _read_at(self._records_file, (block.stop - block.start) * size, self._offset(block))
            if expected and expected == _checksum(content):
                continue
            damaged += expected != 0
            missing.append(block)
        if damaged:
            logger.warning("%d blocks of the teacher cache '%s' are damaged and are built again", damaged, self.folder)
        return missing

    def write(self, block: Block, records: NDArray[np.void]) -> None:
        """Writes the records of a block, then its checksum.

        Raises:
            RunError: the disk is full or cannot be written.
        """
        content = records.tobytes()
        with _disk_errors(self.folder):
            _write_at(self._records_file, content, self._offset(block))
            # O_DSYNC keeps this order on the disk: a checksum must never precede its records.
            _write_at(self._checksums_file, _checksum(content).to_bytes(8, "little"), 8 * block.number)

    def read(self, photos: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.void]:
        """The records of B pairs of photo and view, a copy.

        Raises:
            RunError: the file is shorter than it was.
        """
        # No memory map: the system maps up to 2 MB around each record, until the whole file counts as memory in use.
        size = self.layout.dtype.itemsize
        numbers = (views * self.layout.photos + photos).tolist()
        content = bytearray().join(_read_at(self._records_file, size, number * size) for number in numbers)
        if len(content) != size * len(numbers):
            raise RunError("a whole teacher cache", f"'{self.folder / _RECORDS}', cut off", _DELETE)
        return np.frombuffer(content, self.layout.dtype)

    def built(self) -> bool:
        """Whether every block has been written, by any process; `missing` also finds damage."""
        count = self.views * self.layout.blocks_per_view
        checksums = np.frombuffer(_read_at(self._checksums_file, 8 * count, 0), "<u8")
        return len(checksums) == count and bool(checksums.all())

    def forget(self, photos: NDArray[np.int64], views: NDArray[np.int64]) -> None:
        """Marks the blocks of some pairs of photo and view as not built: the next start builds them again."""
        with _disk_errors(self.folder):
            for number in set((views * self.layout.blocks_per_view + photos // BLOCK_PHOTOS).tolist()):
                _write_at(self._checksums_file, bytes(8), 8 * number)

    def close(self) -> None:
        """Closes the files."""
        self._records_file.close()
        self._checksums_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _offset(self, block: Block) -> int:
        return (block.view * self.layout.photos + block.start) * self.layout.dtype.itemsize


def _checksum(content: bytes) -> int:
    return _BUILT + zlib.crc32(content)


def _open_at_least(path: Path, size: int) -> FileIO:
    """Opens a file that is not shorter than `size`, extended by zeros."""

    def opener(name: str, flags: int) -> int:
        # O_DSYNC: a write returns when it is on the disk, and shared file systems then write no more than requested.
        return os.open(name, flags | os.O_CREAT | getattr(os, "O_DSYNC", 0), 0o644)

    file = FileIO(path, "r+", opener=opener)
    try:
        missing = size - os.fstat(file.fileno()).st_size
        if missing > 0:
            # Checked, not reserved: where a file system cannot reserve, the C library writes a byte into every page.
            if shutil.disk_usage(path.parent).free < missing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            file.truncate(size)
    except BaseException:
        file.close()
        raise
    return file


def _read_at(file: FileIO, size: int, offset: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _write_at(file: FileIO, content: bytes, offset: int) -> None:
    file.seek(offset)
    while content:
        content = content[file.write(content) :]


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RunError(
            f"room for the teacher cache in '{folder}'" if full else f"a writable teacher cache in '{folder}'",
            error.strerror or type(error).__name__,
            "free some space and start again: what is built is kept" if full else "choose another --cache-dir",
        ) from None

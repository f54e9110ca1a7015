"""The teacher's knowledge on disk: for each view of each photo its seed, the logits and the attention maps.

One file of records, view by view, each found by arithmetic; beside it one checksum for each block of photos of a view,
and the key: what the records depend on. A block counts once its checksum stands, so a kill loses at most the block in
work.

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
import shutil
import zlib
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from agridistill.errors import RunError
from agridistill.storage import write_json
from agridistill.teacher_cache.layout import (
    BLOCK_PHOTOS,
    Block,
    CacheLayout,
    Key,
    Outputs,
    differences,
    field_of,
)

try:
    import fcntl
except ImportError:  # Windows: no lock; two builders then only repeat each other's work.
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_BUILT = 1 << 32
# What a place that may only be read answers to whoever wants to write.
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_DOCUMENT, _RECORDS, _CHECKSUMS, _LOCK = "cache.json", "records.bin", "checksums.bin", "lock"


def read_layout(folder: Path) -> CacheLayout | None:
    """The layout of the cache in a folder; None where there is none."""
    document = _read_document(folder)
    return None if document is None else document[1]


def read_key(folder: Path) -> Mapping[str, Any] | None:
    """The key of the cache in a folder; None where there is none."""
    document = _read_document(folder)
    return None if document is None else document[0]


@contextlib.contextmanager
def building(folder: Path) -> Iterator[None]:
    """Held by the one run that opens and builds a cache: a second one waits, and then finds the blocks done.

    Raises:
        RunError: the folder cannot be made.
    """
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = (folder / _LOCK).open("ab")
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
            # A whole cache can be read where nothing may be written.
            file = None
    if file is None:
        yield
        return
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.warning("another run builds the teacher cache '%s': waiting for it", folder)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                # A file system without locks: two builders only repeat each other's work.
                logger.debug("no lock on '%s'", folder, exc_info=True)
        yield


class TeacherCache:
    """A cache that can be read, and built block by block.

    Args:
        folder: of the cache; made where it is not there.
        key: what the records depend on.
        layout: shape of the records.
        views: of each photo; a folder with fewer grows, one with more is used as it is.

    Raises:
        RunError: the folder holds a cache with another key or layout, a damaged one, or the disk has no room.
    """

    def __init__(self, folder: Path, key: Key, layout: CacheLayout, views: int) -> None:
        self.folder, self.key, self.layout, self.views = folder, key, layout, views
        self._require_ours()
        with _disk_errors(folder):
            if _read_document(folder) is None:
                # Written first of all: whatever stands here without it belongs to nobody knows what.
                for name in (_RECORDS, _CHECKSUMS):
                    (folder / name).unlink(missing_ok=True)
                write_json(folder / _DOCUMENT, {"format": FORMAT_VERSION, "key": dict(key), "layout": layout.to_json()})
            self._records_file = _open_at_least(folder / _RECORDS, layout.bytes_for(views))
            self._checksums_file = _open_at_least(folder / _CHECKSUMS, 8 * views * layout.blocks_per_view)

    def missing(self, rank: int = 0, world: int = 1) -> list[Block]:
        """The blocks that must be built: those never written, and (with a warning) those that are damaged.

        Reads every record of its share once, without keeping it in memory.

        Args:
            rank: of this process.
            world: number of processes; each looks after every `world`-th block.
        """
        missing, damaged = [], 0
        for block in self.layout.blocks(self.views):
            if block.number % world != rank:
                continue
            expected = self._read_checksum(block)
            if expected and expected == _checksum(self._read_block(block)):
                continue
            damaged += expected != 0
            missing.append(block)
        if damaged:
            logger.warning("%d blocks of the teacher cache '%s' are damaged: built anew", damaged, self.folder)
        return missing

    def write(self, block: Block, outputs: Outputs) -> None:
        """Writes a block, then its checksum.

        Raises:
            RunError: the disk is full or refuses.
        """
        records = np.zeros(block.stop - block.start, self.layout.dtype)
        records["seed"], records["logits"] = outputs.seeds, outputs.logits
        for stride in self.layout.maps:
            records[field_of(stride)] = outputs.maps[stride]
        content = records.tobytes()
        with _disk_errors(self.folder):
            _write_at(self._records_file, content, self._offset(block))
            # In this order on the disk, too (O_DSYNC): a checksum must never stand before its records.
            _write_at(self._checksums_file, _checksum(content).to_bytes(8, "little"), 8 * block.number)

    def read(self, photos: NDArray[np.int64], views: NDArray[np.int64]) -> Outputs:
        """What the teacher said about B pairs of photo and view, a copy in float16.

        Raises:
            RunError: somebody has cut the file off.
        """
        # Not through a memory map: the system maps up to 2 MB around each record, until the whole file counts as this
        # process's memory.
        size = self.layout.dtype.itemsize
        numbers = (views * self.layout.photos + photos).tolist()
        content = bytearray().join(_read_at(self._records_file, size, number * size) for number in numbers)
        if len(content) != size * len(numbers):
            raise RunError(
                "a whole teacher cache", f"'{self.folder / _RECORDS}', cut off", "delete the folder; it is built anew"
            )
        records = np.frombuffer(content, self.layout.dtype)
        return Outputs(
            records["seed"], records["logits"], {stride: records[field_of(stride)] for stride in self.layout.maps}
        )

    def built(self) -> bool:
        """Whether every block has been written, by whomever; damage is what `missing` looks for."""
        count = self.views * self.layout.blocks_per_view
        checksums = np.frombuffer(_read_at(self._checksums_file, 8 * count, 0), "<u8")
        return len(checksums) == count and bool(checksums.all())

    def forget(self, photos: NDArray[np.int64], views: NDArray[np.int64]) -> None:
        """Takes the blocks of some pairs of photo and view out of the cache: the next start builds them anew."""
        with _disk_errors(self.folder):
            for number in set((views * self.layout.blocks_per_view + photos // BLOCK_PHOTOS).tolist()):
                _write_at(self._checksums_file, bytes(8), 8 * number)

    def close(self) -> None:
        """Lets go of the files."""
        self._records_file.close()
        self._checksums_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_ours(self) -> None:
        stored = _read_document(self.folder)
        if stored is None:
            return
        key, layout = stored
        differing = differences(key, self.key)
        if layout != self.layout:
            differing.append(f"layout {layout.to_json()}, here {self.layout.to_json()}")
        if differing:
            raise RunError(
                f"a teacher cache for this teacher, data and recipe in '{self.folder}'",
                f"one that differs in {'; '.join(differing[:3])}",
                "delete it or choose another --cache-dir",
            )

    def _offset(self, block: Block) -> int:
        return (block.view * self.layout.photos + block.start) * self.layout.dtype.itemsize

    def _read_checksum(self, block: Block) -> int:
        return int.from_bytes(_read_at(self._checksums_file, 8, 8 * block.number), "little")

    def _read_block(self, block: Block) -> bytes:
        return _read_at(
            self._records_file, (block.stop - block.start) * self.layout.dtype.itemsize, self._offset(block)
        )


def _checksum(content: bytes) -> int:
    return _BUILT + zlib.crc32(content)


def _read_document(folder: Path) -> tuple[Mapping[str, Any], CacheLayout] | None:
    path = folder / _DOCUMENT
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT_VERSION:
            raise RunError(
                f"a teacher cache of format {FORMAT_VERSION}",
                f"format {document['format']} in '{folder}'",
                "delete the folder; it is built anew",
            )
        return dict(document["key"]), CacheLayout.from_json(document["layout"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            "a readable teacher cache", f"'{path}' ({error})", "delete the folder; it is built anew"
        ) from None


def _open_at_least(path: Path, size: int) -> FileIO:
    """Opens a file for reading and writing, not shorter than `size`; what it lacks is zeros.

    One that is long enough and may not be written is opened for reading.
    """
    # O_DSYNC: a write returns when it is on the disk, and shared file systems then write no more than was asked.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_DSYNC", 0)
    try:
        file = FileIO(os.open(path, flags, 0o644), "r+")
    except OSError as error:
        if error.errno not in _READ_ONLY or not path.exists() or path.stat().st_size < size:
            raise
        return FileIO(path, "r")
    try:
        length = os.fstat(file.fileno()).st_size
        if length < size:
            _require_room(path, size - length)
            file.truncate(size)
    except BaseException:
        file.close()
        raise
    return file


def _require_room(path: Path, size: int) -> None:
    """A disk without room says so now, not in an hour.

    Asked, not reserved: where a file system cannot reserve, the C library writes a byte into every page instead.
    """
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _read_at(file: FileIO, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, offset)
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

"""Defines the key and the files of a teacher cache.

A record holds the seed of one view of one photo, the teacher's logits for it, its attention maps and, for methods that
compare features, these in compressed form (`features`). One file contains all records, which have a fixed size, view by
view. Another file contains a checksum for each block, which is a group of photos in one view. A block is valid once its
checksum is written, so killing the process loses at most one block.

::

    FOLDER/
      cache.json       format, key, layout
      records.bin      (views, photos) records: seed uint32, logits float16 (K), maps float16 (H, W) or (M, H, W),
                       features int8 (C, H, W) with their scale float32
      projection.npz   how the features were compressed; only with features
      checksums.bin    (views, blocks) uint64: 0 if not built yet, else 2^32 + the CRC-32 of the projection and the
                       block's records
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
from dataclasses import asdict, dataclass, field
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
from agridistill.teacher_cache.features import FEATURE_BYTES, FIT_PHOTOS

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
BLOCK_PHOTOS = 256
_BUILT = 1 << 32
_DOCUMENT, _RECORDS, _CHECKSUMS, _LOCK = "cache.json", "records.bin", "checksums.bin", "lock"
PROJECTION = "projection.npz"
_DELETE = "delete the folder; the cache is then built again"

Key = Mapping[str, str | int | float | bool]


def cache_key(
    viewing: Viewing,
    teacher: ModelManifest,
    *,
    strides: Sequence[int],
    kind: Literal["activation", "window"],
    per_head: bool,
    features: bool = False,
) -> Key:
    """Returns the key of a cache: everything that determines the teacher's outputs; equal keys mean the same outputs.

    The student's image size does not matter, because the views are drawn in the teacher's. `strides` are those of the
    teacher's stages whose attention maps, and with `features` compressed features, are stored. `kind` and `per_head`
    are those of `LiveTeacher`.
    """
    photos = sha256(viewing.fingerprint.encode())
    for sample in viewing.samples:
        photos.update(json.dumps(sample.path).encode())
    return {
        "teacher weights": teacher.weights_sha256,
        "teacher model": teacher.model,
        **{f"teacher {name}": str(value) for name, value in asdict(teacher.preprocessing).items()},
        "teacher precision": str(teacher.lineage.get("precision")),
        "photos": photos.hexdigest(),
        "data.resize": viewing.preprocessing.resize,
        **{f"augmentation.{name}": value for name, value in plain_settings(viewing.augmentation).items()},
        "views": f"version {VIEWS_VERSION}, seed {viewing.seed}",
        "outputs": f"version {OUTPUTS_VERSION}, format {FORMAT_VERSION}",
        "objective.attention": kind + (", each head" if per_head else ""),
        "objective.pairs at the teacher's strides": ", ".join(str(stride) for stride in strides),
        **({"features of these stages": f"{FEATURE_BYTES} bytes, {FIT_PHOTOS} photos"} if features else {}),
        **{
            f"version of {name}": metadata.version(name).partition("+")[0]
            for name in ("torch", "timm", "Pillow", "numpy")
        },
    }


def digest_of(key: Key) -> str:
    """Returns the name of the cache's folder: the first 12 hexadecimal digits of the key's sha256."""
    return sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:12]


def differences(stored: Mapping[str, Any], current: Key) -> list[str]:
    """Returns a text such as "views: 8 in the cache, 16 in this run" for each entry in which two keys differ."""
    differing = [part for part in sorted(stored.keys() | current.keys()) if stored.get(part) != current.get(part)]
    texts = [
        f"{part}: {stored.get(part, 'absent')} in the cache, {current.get(part, 'absent')} in this run"
        for part in differing
    ]
    return [re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1…", text) for text in texts]


class Block(NamedTuple):
    """A block of a cache: the teacher's outputs for the photos `start` to `stop - 1` in one view."""

    number: int  # number of the block in the cache, from 0
    view: int
    start: int
    stop: int


@dataclass(frozen=True)
class CacheLayout:
    """The shape of the records of a cache; a record holds the teacher's outputs for one view of one photo."""

    photos: int  # number of photos, and of records for each view
    num_classes: int
    maps: Mapping[int, tuple[int, ...]]  # shape of the attention map by stride: (H, W), or (M, H, W) for M maps
    features: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)  # (C, H, W) by stride, compressed

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The numpy type of one record, with 4 + 2 K + 2 H W bytes (122 for 10 classes and one 7x7 map).

        Its fields are "seed" (of the view), "logits" `(K,)`, one map for each stride, such as "map_s16", and if there
        are features "features_s16" with their "scale_s16".
        """
        fields: list[Any] = [("seed", "<u4"), ("logits", "<f2", (self.num_classes,))]
        fields += [(f"map_s{stride}", "<f2", tuple(shape)) for stride, shape in sorted(self.maps.items())]
        for stride, shape in sorted(self.features.items()):
            fields += [(f"features_s{stride}", "i1", tuple(shape)), (f"scale_s{stride}", "<f4")]
        return np.dtype(fields)

    def blank_records(self, count: int) -> NDArray[np.void]:
        """Returns `(count,)` records whose logits are NaN, which marks photos that cannot be read."""
        records = np.zeros(count, self.dtype)
        records["logits"] = np.nan
        return records

    @property
    def blocks_per_view(self) -> int:
        """Number of blocks for one view of all photos; the last block may have fewer photos."""
        return -(-self.photos // BLOCK_PHOTOS)

    def bytes_for(self, views: int) -> int:
        """Returns the size in bytes of the records of all photos in this number of views."""
        return views * self.photos * self.dtype.itemsize

    def blocks(self, views: int) -> Iterator[Block]:
        """Yields the blocks of all photos in this number of views, in their order in the file."""
        for number in range(views * self.blocks_per_view):
            view, index = divmod(number, self.blocks_per_view)
            yield Block(number, view, index * BLOCK_PHOTOS, min((index + 1) * BLOCK_PHOTOS, self.photos))


def read_document(folder: Path) -> tuple[Mapping[str, Any], CacheLayout] | None:
    """Reads the key and the layout of the cache in a folder from `cache.json`; returns None if there is no such file.

    Raises a RunError if the file is damaged or has another format version.
    """
    path = folder / _DOCUMENT
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] == FORMAT_VERSION:
            return dict(document["key"]), TypeAdapter(CacheLayout).validate_python(document["layout"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            "a readable teacher cache", f"a damaged '{path}' ({type(error).__name__}: {error})", _DELETE
        ) from None
    raise RunError(f"a teacher cache of format {FORMAT_VERSION}", f"format {document['format']} in '{folder}'", _DELETE)


@contextlib.contextmanager
def building(folder: Path) -> Iterator[None]:
    """A context manager that creates the folder of a cache and locks it; if another run has locked it, it waits."""
    with contextlib.ExitStack() as held:
        with _disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(only_one(folder / _LOCK, "teacher cache"))
            except RunError:
                logger.warning("another run builds the teacher cache '%s': this run waits until it ends", folder)
                held.enter_context(only_one(folder / _LOCK, "teacher cache", wait=True))
        yield


class TeacherCache:
    """An open cache of a teacher's outputs, which can be read and extended block by block.

    A cache with fewer views of each photo than `views` is extended; one with more views is used unchanged. The folder
    and its files are created if they do not exist.

    Raises:
        RunError: the folder holds a damaged cache or one with another key or layout, or the disk is full.
    """

    def __init__(self, folder: Path, key: Key, layout: CacheLayout, views: int) -> None:
        self.folder, self.layout, self.views = folder, layout, views
        stored = read_document(folder)
        if stored is not None:
            differing = differences(stored[0], key)
            if stored[1] != layout:
                differing.append(f"layout: {asdict(stored[1])} in the cache, {asdict(layout)} in this run")
            if differing:
                expected = f"a teacher cache for this teacher, data and recipe in '{folder}'"
                got = f"one that differs: {'; '.join(differing[:3])}"
                raise RunError(expected, got, "delete that folder or choose another --cache-dir")
        with _disk_errors(folder):
            if stored is None:
                # Without the document the origin of the records is unknown: delete them before writing it.
                for name in (_RECORDS, _CHECKSUMS, PROJECTION):
                    (folder / name).unlink(missing_ok=True)
                write_json(folder / _DOCUMENT, {"format": FORMAT_VERSION, "key": dict(key), "layout": asdict(layout)})
            self._records_file = _open_at_least(folder / _RECORDS, layout.bytes_for(views))
            self._checksums_file = _open_at_least(folder / _CHECKSUMS, 8 * views * layout.blocks_per_view)

    def missing(self, rank: int = 0, world: int = 1) -> list[Block]:
        """Returns those of every `world`-th block, from `rank` on, that are not written yet, or are damaged.

        Each is read once to check it.
        """
        missing, damaged, size, projection = [], 0, self.layout.dtype.itemsize, self._projection_checksum()
        for block in self.layout.blocks(self.views):
            if block.number % world != rank:
                continue
            expected = int.from_bytes(_read_at(self._checksums_file, 8, 8 * block.number), "little")
            content = _read_at(self._records_file, (block.stop - block.start) * size, self._offset(block))
            if expected and expected == _BUILT + zlib.crc32(content, projection):
                continue
            damaged += expected != 0
            missing.append(block)
        if damaged:
            logger.warning("damaged blocks in the teacher cache '%s': %d; they are built again", self.folder, damaged)
        return missing

    def write(self, block: Block, records: NDArray[np.void]) -> None:
        """Writes the records of a block to the disk, then its checksum, which marks the block as complete."""
        content = records.tobytes()
        checksum = _BUILT + zlib.crc32(content, self._projection_checksum())
        with _disk_errors(self.folder):
            _write_at(self._records_file, content, self._offset(block))
            # O_DSYNC keeps this order on the disk: a checksum must not be there before its records.
            _write_at(self._checksums_file, checksum.to_bytes(8, "little"), 8 * block.number)

    def read(self, photos: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.void]:
        """Reads the records `(B,)` of B pairs of a photo and a view, each given by its number from 0.

        Raises a RunError if the file has become shorter since it was opened.
        """
        # A memory map is not used: the system loads up to 2 MB around each record, until the whole file is in memory.
        size = self.layout.dtype.itemsize
        numbers = (views * self.layout.photos + photos).tolist()
        content = bytearray().join(_read_at(self._records_file, size, number * size) for number in numbers)
        if len(content) != size * len(numbers):
            raise RunError("a complete teacher cache", f"'{self.folder / _RECORDS}', whose end is missing", _DELETE)
        return np.frombuffer(content, self.layout.dtype)

    def built(self) -> bool:
        """Returns whether all blocks have been written, by any process; it does not check them for damage."""
        count = self.views * self.layout.blocks_per_view
        checksums = np.frombuffer(_read_at(self._checksums_file, 8 * count, 0), "<u8")
        return len(checksums) == count and bool(checksums.all())

    def forget(self, photos: NDArray[np.int64], views: NDArray[np.int64]) -> None:
        """Marks the blocks of B pairs of a photo and a view (as for `read`) as not written, for `missing`."""
        with _disk_errors(self.folder):
            for number in set((views * self.layout.blocks_per_view + photos // BLOCK_PHOTOS).tolist()):
                _write_at(self._checksums_file, bytes(8), 8 * number)

    def close(self) -> None:
        """Closes the files of the cache."""
        self._records_file.close()
        self._checksums_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _offset(self, block: Block) -> int:
        return (block.view * self.layout.photos + block.start) * self.layout.dtype.itemsize

    def _projection_checksum(self) -> int:
        """Returns the CRC-32 of the projection, 0 without one: features of two projections cannot be compared."""
        path = self.folder / PROJECTION
        return zlib.crc32(path.read_bytes()) if self.layout.features and path.exists() else 0


def _open_at_least(path: Path, size: int) -> FileIO:
    """Opens a file for reading and writing, after extending it with zeros to at least `size` bytes."""

    def opener(name: str, flags: int) -> int:
        # With O_DSYNC, a write returns when the data is on the disk, and shared file systems write no further bytes.
        return os.open(name, flags | os.O_CREAT | getattr(os, "O_DSYNC", 0), 0o644)

    file = FileIO(path, "r+", opener=opener)
    try:
        missing = size - os.fstat(file.fileno()).st_size
        if missing > 0:
            # Check the free space instead of reserving it: on a file system that cannot reserve space, the C library
            # would write a byte into every page of the file.
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
            "free disk space and use --resume; finished blocks are kept" if full else "choose another --cache-dir",
        ) from None

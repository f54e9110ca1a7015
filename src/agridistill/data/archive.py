"""Unpacks chosen files of a zip or tar archive that nobody vouches for."""

from __future__ import annotations

import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from agridistill.errors import FetchError
from agridistill.progress import ProgressCallback, silent

_CHUNK_BYTES = 1 << 20
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    NotImplementedError,
    UnicodeError,
    ValueError,
)


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold; above it is an attack or an accident.

    Attributes:
        members: entries in all.
        files: unpacked files.
        file_bytes: of one unpacked file.
        total_bytes: of all unpacked files.
        content_bytes: of all entries, unpacked or not.
    """

    members: int = 2_000_000
    files: int = 200_000
    file_bytes: int = 64_000_000
    total_bytes: int = 8_000_000_000
    content_bytes: int = 100_000_000_000


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    is_regular: bool
    open: Callable[[], IO[bytes]]


def list_files(archive: Path, *, limits: ArchiveLimits | None = None) -> list[str]:
    """The names of all files in an archive, with slashes.

    Raises:
        FetchError: no archive, damaged, above the limits, or with a path that leads out of it.
    """
    with _members(archive, limits or ArchiveLimits()) as members:
        return [member.name for member in members]


def unpack(
    archive: Path,
    target: Path,
    places: Mapping[str, PurePosixPath],
    *,
    limits: ArchiveLimits | None = None,
    progress: ProgressCallback = silent,
) -> None:
    """Writes chosen files of an archive into a folder.

    Args:
        archive: .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz, told by its content.
        target: an existing folder of our own.
        places: name in the archive -> where to write it, relative to `target`.
        limits: on counts and sizes; sizes are measured, not believed.
        progress: called with (files done, files in all).

    Raises:
        FetchError: damaged, above the limits, encrypted, or a chosen entry is a link or a device.
    """
    limits = limits or ArchiveLimits()
    if len(places) > limits.files:
        raise _too_much(archive, f"{len(places):,} files")
    written: set[PurePosixPath] = set()
    total = 0
    with _members(archive, limits) as members:
        for member in members:
            place = places.get(member.name)
            if place is None:
                continue
            _check_place(archive, member, place, written)
            written.add(place)
            total += _write(archive, member, target / place, limits, total)
            progress(len(written), len(places))
    missing = sorted(str(place) for place in set(places.values()) - written)
    if missing:
        raise FetchError("a whole archive", f"'{archive.name}' without '{missing[0]}'", _REPLACE)


def _check_place(archive: Path, member: _Member, place: PurePosixPath, written: set[PurePosixPath]) -> None:
    if not member.is_regular:
        raise FetchError("plain files", f"'{member.name}' in '{archive.name}', a link or a device", _REPLACE)
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"a place outside the target: {place}")
    if place in written:
        raise FetchError("each file once", f"'{place}' twice in '{archive.name}'", _REPLACE)


def _write(archive: Path, member: _Member, path: Path, limits: ArchiveLimits, total: int) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with member.open() as source, path.open("xb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > limits.file_bytes or total + size > limits.total_bytes:
                raise _too_much(archive, f"more than {size - len(chunk):,} bytes in '{member.name}'")
            file.write(chunk)
    if size != member.size:
        raise FetchError("a whole archive", f"'{member.name}' cut off in '{archive.name}'", _REPLACE)
    return size


@contextmanager
def _members(archive: Path, limits: ArchiveLimits) -> Iterator[Iterator[_Member]]:
    """All entries but folders, checked, in the archive's order; damage becomes a FetchError."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                yield _checked(archive, _zip_members(archive, opened), limits)
        else:
            with tarfile.open(archive) as opened_tar:
                yield _checked(archive, _tar_members(opened_tar), limits)
    except _DAMAGE as error:
        got = f"'{archive.name}' ({error or type(error).__name__})"
        raise FetchError("an intact .zip or .tar archive", got, _REPLACE) from None
    except OSError as error:
        # gzip and bz2 tell damage as an OSError without a number; a full disk has one.
        if error.errno is not None:
            raise
        raise FetchError("an intact .zip or .tar archive", f"'{archive.name}' ({error})", _REPLACE) from None


def _checked(archive: Path, members: Iterator[_Member], limits: ArchiveLimits) -> Iterator[_Member]:
    content = 0
    for count, member in enumerate(members, start=1):
        content += member.size
        if count > limits.members or content > limits.content_bytes:
            raise _too_much(archive, f"{count:,} entries of {content:,} bytes")
        # Also of files that are not wanted: an archive with such a path was made to do harm.
        path = PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]) or "\0" in member.name:
            raise FetchError(
                "paths inside the archive", f"'{member.name}' in '{archive.name}'", "do not use this archive"
            )
        yield member


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        # Against the format, programs on Windows write backslashes; no file of a data set has one in its name.
        name = info.filename.replace("\\", "/")
        if name.endswith("/"):
            continue
        if info.flag_bits & 1:
            raise FetchError("an archive without a password", f"'{archive.name}'", "unpack and pack it again")
        kind = stat.S_IFMT(info.external_attr >> 16)
        is_regular = kind in (0, stat.S_IFREG)
        yield _Member(name, info.file_size, is_regular, partial(opened.open, info))


def _tar_members(opened: tarfile.TarFile) -> Iterator[_Member]:
    for info in opened:
        if info.isdir():
            continue
        yield _Member(info.name, info.size, info.isreg(), partial(_extracted, opened, info))


def _extracted(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    source = opened.extractfile(info)
    if source is None:
        raise tarfile.ReadError(f"no content in '{info.name}'")
    return source


def _too_much(archive: Path, got: str) -> FetchError:
    return FetchError("an archive of ordinary size", f"{got} of '{archive.name}'", "do not use this archive")


_REPLACE = "get the archive again or name another --source"

"""Safe unpacking of chosen files: an archive may come from anywhere."""

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
_REPLACE = "get the archive again or name another --source"
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    NotImplementedError,
    ValueError,
)


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold; more is an attack or an accident."""

    members: int = 2_000_000
    files: int = 200_000  # unpacked
    file_bytes: int = 64_000_000  # of one unpacked file
    total_bytes: int = 8_000_000_000  # of all unpacked files
    content_bytes: int = 100_000_000_000  # of all members, unpacked or not


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    is_regular: bool
    open: Callable[[], IO[bytes] | None]


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
        archive: .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz, recognised by its content.
        target: an existing folder.
        places: name in the archive -> where to write it, relative to `target`.
        limits: on counts and sizes; sizes are measured while unpacking.
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
            if not member.is_regular:
                raise FetchError("plain files", f"'{member.name}' in '{archive.name}', a link or a device", _REPLACE)
            if place.is_absolute() or ".." in place.parts:
                raise ValueError(f"a place outside the target: {place}")
            if place in written:
                raise FetchError("each file once", f"'{place}' twice in '{archive.name}'", _REPLACE)
            written.add(place)
            total += _write(archive, member, target / place, limits, total)
            progress(len(written), len(places))
    missing = sorted(str(place) for place in set(places.values()) - written)
    if missing:
        raise FetchError("a whole archive", f"'{archive.name}' without '{missing[0]}'", _REPLACE)


def _write(archive: Path, member: _Member, path: Path, limits: ArchiveLimits, total: int) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    source = member.open()
    if source is None:
        raise tarfile.ReadError(f"no content in '{member.name}'")
    with source, path.open("xb") as file:
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
                members = (
                    _Member(info.name, info.size, info.isreg(), partial(opened_tar.extractfile, info))
                    for info in opened_tar
                    if not info.isdir()
                )
                yield _checked(archive, members, limits)
    except (*_DAMAGE, OSError) as error:
        # gzip and bz2 report damage as an OSError without a number; that of a full disk has one.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        got = f"'{archive.name}' ({error or type(error).__name__})"
        raise FetchError("an intact .zip or .tar archive", got, _REPLACE) from None


def _checked(archive: Path, members: Iterator[_Member], limits: ArchiveLimits) -> Iterator[_Member]:
    content = 0
    for count, member in enumerate(members, start=1):
        content += member.size
        if count > limits.members or content > limits.content_bytes:
            raise _too_much(archive, f"{count:,} entries of {content:,} bytes")
        # Also for files that are not unpacked: such a path shows a malicious archive.
        path = PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]) or "\0" in member.name:
            got = f"'{member.name}' in '{archive.name}'"
            raise FetchError("paths inside the archive", got, "do not use this archive")
        yield member


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        # Programs on Windows write backslashes, against the format; no file of a data set has one in its name.
        name = info.filename.replace("\\", "/")
        if name.endswith("/"):
            continue
        if info.flag_bits & 1:
            raise FetchError("an archive without a password", f"'{archive.name}'", "unpack and pack it again")
        is_regular = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
        yield _Member(name, info.file_size, is_regular, partial(opened.open, info))


def _too_much(archive: Path, got: str) -> FetchError:
    return FetchError("an archive of ordinary size", f"{got} of '{archive.name}'", "do not use this archive")

"""Downloads an archive over HTTP and unpacks files from it, without trusting the server or the archive.

An interrupted download is continued, but parts of two versions are never joined; length and sha256 are checked. The
number and size of unpacked files are limited. Paths that lead out of the archive, links and devices are refused.
"""

from __future__ import annotations

import http.client
import lzma
import stat
import struct
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple
from urllib.parse import urlsplit

from agridistill.errors import FetchError
from agridistill.manifest import sha256_of
from agridistill.progress import ProgressCallback, silent

ATTEMPTS = 4  # attempts without new bytes after which the download fails
PAUSE_S = 1.0  # pause before the second attempt; doubled before each further attempt
TIMEOUT_S = 30.0  # limit for connecting, and for each read
MAX_DOWNLOAD_BYTES = 20_000_000_000
# Limits for an archive; one that exceeds them is an attack or an accident.
MAX_MEMBERS = 2_000_000
MAX_CONTENT_BYTES = 100_000_000_000  # size of all files in the archive
MAX_FILES = 200_000  # number of files that are unpacked
MAX_FILE_BYTES = 64_000_000  # size of one unpacked file
MAX_TOTAL_BYTES = 8_000_000_000  # size of all unpacked files

_CHUNK_BYTES = 1 << 20
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_REPLACE = "get the archive again or pass another --source"
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, struct.error, NotImplementedError, ValueError, OSError),
)


class _CutOffError(Exception):
    """The download was interrupted; the bytes received so far can be kept."""


class _ChangedError(_CutOffError):
    """The file on the server has changed; the bytes received so far must be discarded."""


def require_sha256(path: Path, expected: str | None, where: str, remedy: str) -> str:
    """Computes the sha256 of a file and checks that it is the expected one.

    Args:
        path: the file.
        expected: 64 hex digits; None accepts any content.
        where: where the file comes from, such as "from 'https://…'"; part of the error message.
        remedy: what the user can do; part of the error message.

    Returns:
        The sha256 of the file, as hex.

    Raises:
        FetchError: the sha256 is not the expected one.
    """
    found = sha256_of(path)
    if expected is not None and found != expected.lower():
        raise FetchError(f"a file with the sha256 {expected[:12]}…", f"the sha256 {found[:12]}… {where}", remedy)
    return found


def download(url: str, target: Path, *, sha256: str | None = None, progress: ProgressCallback = silent) -> str:
    """Downloads a file over HTTP.

    After an interruption, the download continues where it stopped. It starts again if the file on the server has
    changed, which the request checks with an If-Range header.

    Args:
        url: an http or https address.
        target: the file to write; it is incomplete after an error.
        sha256: the expected sha256 of the file, in hex; None accepts any content.
        progress: called with (bytes received, bytes of the whole file); the latter is 0 if the server does not send it.

    Returns:
        The sha256 of the file.

    Raises:
        FetchError: the address is not one of http(s), the server answers with an error, `ATTEMPTS` attempts in a row
            bring no new bytes, or the file exceeds `MAX_DOWNLOAD_BYTES` or has another sha256.
        OSError: the disk is full or cannot be written.
    """
    _check_address(url)
    failures, best, version = 0, -1, ""
    with target.open("wb") as file:
        while True:
            try:
                with _response(url, file.tell() if version else 0, version) as response:
                    version = _validator(response)
                    _receive(response, url, file, progress)
                break
            except _CutOffError as error:
                version = "" if isinstance(error, _ChangedError) else version
                failures = failures + 1 if file.tell() <= best else 1
                best = max(best, file.tell())
                if failures >= ATTEMPTS:
                    got = f"{file.tell():,} bytes ({error})"
                    remedy = "try again later or pass another --source"
                    raise FetchError(f"the complete file '{without_secrets(url)}'", got, remedy) from None
                time.sleep(PAUSE_S * 2 ** (failures - 1))
    return require_sha256(target, sha256, f"from '{without_secrets(url)}'", "check the source and the sha256")


def without_secrets(url: str) -> str:
    """Removes user, password and query from a URL, which must not appear in messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        url.encode("ascii")
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or " " in url:
        scheme = url.split("://")[0]
        got = f"one that starts with '{scheme}://'" if scheme not in ("http", "https") else "one that cannot be parsed"
        raise FetchError("an http or https address", got, "correct --source or pass a local archive")


@contextmanager
def _response(url: str, start: int, version: str) -> Iterator[http.client.HTTPResponse]:
    """Requests a file from byte `start` on and yields the response of the server.

    Args:
        url: the address.
        start: number of bytes that were already received.
        version: the ETag or Last-Modified of these bytes.
    """
    headers = {"User-Agent": "agridistill", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was checked
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310 - as above
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise _ChangedError("the file on the server has become shorter") from None
            if error.code in _RETRIED_STATUSES:
                raise _CutOffError(f"the server answers {error.code} {error.reason}") from None
            got = f"status {error.code} {error.reason} from '{without_secrets(url)}'"
            raise FetchError("an answer with the file", got, "check the address or pass another --source") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _CutOffError(str(reason) or type(error).__name__) from None
    with response:
        # Some servers ignore If-Range or send another range.
        is_part = response.status == http.client.PARTIAL_CONTENT
        given = response.headers.get("Content-Range") or ""
        if is_part and (_validator(response) != version or not given.startswith(f"bytes {start}-")):
            raise _ChangedError("the server sends another file or other bytes than requested")
        yield response


def _receive(response: http.client.HTTPResponse, url: str, file: IO[bytes], progress: ProgressCallback) -> None:
    """Writes the data that the server sends to the file: either the missing rest, or the whole file again."""
    if file.tell() and response.status != http.client.PARTIAL_CONTENT:
        file.seek(0)
        file.truncate()
    length = response.headers.get("Content-Length") or ""
    done = file.tell()
    total = done + int(length) if length.isdigit() else 0
    while max(done, total) <= MAX_DOWNLOAD_BYTES:
        chunk = _read(response)
        if not chunk:
            if total and done != total:
                raise _CutOffError(f"of {total:,}")
            return
        file.write(chunk)
        done += len(chunk)
        progress(done, total)
    expected = f"a file of at most {MAX_DOWNLOAD_BYTES:,} bytes"
    raise FetchError(expected, f"a larger one from '{without_secrets(url)}'", "pass another --source")


def _read(response: http.client.HTTPResponse) -> bytes:
    # A separate function, so that an OSError of the network is not confused with one of the disk.
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _CutOffError(str(error) or type(error).__name__) from None


def _validator(response: http.client.HTTPResponse) -> str:
    etag = response.headers.get("ETag") or ""
    # A weak ETag does not guarantee the same bytes.
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified") or ""


class _Member(NamedTuple):
    name: str
    size: int
    is_regular: bool
    open: Callable[[], IO[bytes] | None]


def list_files(archive: Path) -> list[str]:
    """Returns the names of all files in a .zip or .tar archive, with forward slashes.

    Raises:
        FetchError: the file is not an archive, is damaged or encrypted, has too many files, or contains a path that is
            absolute or has "..".
    """
    with _members(archive) as members:
        return [member.name for member in members]


def unpack(
    archive: Path, target: Path, places: Mapping[str, PurePosixPath], *, progress: ProgressCallback = silent
) -> None:
    """Unpacks some files of an archive into a folder.

    Args:
        archive: a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz file, recognised by its content.
        target: an existing folder.
        places: for each file to unpack, its name in the archive -> the path to write, relative to `target`.
        progress: called with (files unpacked, files to unpack).

    Raises:
        FetchError: the archive is damaged, encrypted or too large, or a file to unpack is a link or a device.
    """
    if len(places) > MAX_FILES:
        raise _too_much(archive, f"{len(places):,} files")
    written: set[PurePosixPath] = set()
    total = 0
    with _members(archive) as members:
        for member in members:
            place = places.get(member.name)
            if place is None:
                continue
            if not member.is_regular:
                got = f"'{member.name}' in '{archive.name}'"
                raise FetchError("an archive without links and devices", got, _REPLACE)
            if place in written:
                raise FetchError("an archive with each file once", f"'{place}' twice in '{archive.name}'", _REPLACE)
            written.add(place)
            total += _write(archive, member, target / place, total)
            progress(len(written), len(places))
    missing = sorted(str(place) for place in set(places.values()) - written)
    if missing:
        raise FetchError("a complete archive", f"'{archive.name}' without '{missing[0]}'", _REPLACE)


def _write(archive: Path, member: _Member, path: Path, total: int) -> int:
    """Writes one file and returns its real size in bytes; `total` is the size of the files written before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    source = member.open()
    if source is None:
        raise tarfile.ReadError(f"'{member.name}' has no content")
    with source, path.open("xb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > MAX_FILE_BYTES or total + size > MAX_TOTAL_BYTES:
                raise _too_much(archive, f"more than {size - len(chunk):,} bytes in '{member.name}'")
            file.write(chunk)
    if size != member.size:
        raise FetchError("a complete archive", f"'{archive.name}', in which '{member.name}' is incomplete", _REPLACE)
    return size


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    """Yields an iterator over all entries of an archive except folders, after checking them; damage is a FetchError."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                yield _checked(archive, _zip_members(archive, opened))
        else:
            with tarfile.open(archive) as opened_tar:
                members = (
                    _Member(info.name, info.size, info.isreg(), partial(opened_tar.extractfile, info))
                    for info in opened_tar
                    if not info.isdir()
                )
                yield _checked(archive, members)
    except _DAMAGE as error:
        # gzip and bz2 report damage as an OSError without an error number; the error of a full disk has a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        got = f"'{archive.name}' ({error or type(error).__name__})"
        raise FetchError("an intact .zip or .tar archive", got, _REPLACE) from None


def _checked(archive: Path, members: Iterator[_Member]) -> Iterator[_Member]:
    content = 0
    for count, member in enumerate(members, start=1):
        content += member.size
        if count > MAX_MEMBERS or content > MAX_CONTENT_BYTES:
            raise _too_much(archive, f"{count:,} entries of {content:,} bytes")
        # Check also files that will not be unpacked: such a path shows that the archive is malicious.
        path = PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]) or "\0" in member.name:
            got = f"'{member.name}' in '{archive.name}'"
            raise FetchError("an archive with relative paths and without '..'", got, "do not use this archive")
        yield member


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        # Some Windows programs write backslashes instead of slashes; no file of a data set has one in its name.
        name = info.filename.replace("\\", "/")
        if name.endswith("/"):
            continue
        if info.flag_bits & 1:
            got = f"'{archive.name}', which has a password"
            raise FetchError("an archive without a password", got, "unpack it and pack it again without a password")
        kind = stat.S_IFMT(info.external_attr >> 16)
        yield _Member(name, info.file_size, kind in (0, stat.S_IFREG), partial(opened.open, info))


def _too_much(archive: Path, got: str) -> FetchError:
    return FetchError("an archive within the size limits", f"{got} in '{archive.name}'", "do not use this archive")

"""Downloads the files of a release from a folder or a server.

A download continues after a lost connection or a kill; a file is only used if its sha256 is the signed one.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.parse import urljoin, urlsplit

from agridistill.edge.network import public_name, split_url
from agridistill.edge.updates.release import (
    MAX_RELEASE_BYTES,
    RELEASE_NAME,
    RefusedError,
    Release,
    ReleaseFile,
    UnavailableError,
)
from agridistill.errors import EdgeError
from agridistill.storage import sync_folder

MAX_FILE_BYTES = 500_000_000
SPARE_BYTES = 50_000_000
"""Bytes on the disk that an update must leave free."""
TIMEOUT_S = 30.0
"""Time limit in seconds from the connection to the header of the answer, and for each read of the body."""
PATIENCE_S = 3600.0
"""Time limit in seconds for all files of a release; the next check continues the download."""
ATTEMPTS = 4
"""Number of tries in a row without a new byte after which the download of a file ends."""
PAUSE_S = 1.0
"""Pause in seconds before the second try; it doubles before each further one."""
_LATER = "the next check tries again"
_CHUNK_BYTES = 65_536
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ReleaseSource(Protocol):
    """A folder or server with the files of a release; callers must verify the content before they use it."""

    where: str  # address for messages, without secrets

    def opened(self, path: str, start: int) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
        """Opens `release.json` or `vVERSION/NAME` for reading from the byte `start` on.

        Returns:
            A context manager that yields the byte at which the content really starts (`start`, or 0 if a server cannot
            continue there), and an iterator over the content in pieces.

        Raises:
            UnavailableError: the file cannot be read or downloaded.
        """
        ...


def open_source(address: str, ca_file: Path | None = None) -> ReleaseSource:
    """Creates the source of a release: a server for a URL, a folder for a local path.

    Args:
        address: URL of `release.json`, or of its folder with a final "/"; or the local path of either.
        ca_file: certificate authorities to trust for https; None means those of the system.

    Raises:
        EdgeError: the address cannot be used.
    """
    return ReleaseServer(address, ca_file) if "://" in address else ReleaseFolder(Path(address))


class ReleaseFolder:
    """The source of a release in a local folder; `path` is the folder, or the `release.json` in it."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent if path.name == RELEASE_NAME else path
        self.where = f"'{self._folder}'"

    @contextmanager
    def opened(self, path: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Opens a file; see `ReleaseSource.opened`."""
        place = self._folder / path
        try:
            # Other kinds of files, such as a pipe, could block the reader forever.
            if not place.is_file():
                raise FileNotFoundError("no such file")
            file = place.open("rb")
        except OSError as error:
            got = f"'{place}' ({error.strerror or error})"
            raise UnavailableError("a readable file of a release", got, _LATER) from None
        with file:
            file.seek(start)
            yield start, iter(partial(file.read, _CHUNK_BYTES), b"")


class ReleaseServer:
    """The source of a release on an HTTP server; `url` leads to `release.json`, or to its folder with a final "/"."""

    def __init__(self, url: str, ca_file: Path | None) -> None:
        # Imported here, because httpx takes time and memory that an agent without such a source saves.
        from agridistill.edge.http import HttpClient, tls_context

        parts = split_url(url, example="https://host/models/release.json")
        is_plain = url.isascii() and url.isprintable() and " " not in url
        if parts.scheme not in ("http", "https") or parts.password is not None or not is_plain:
            got = "an address with a password" if parts.password is not None else f"'{url.split('?')[0][:100]}'"
            expected = "a folder, or an http(s) address without a password, for the model updates"
            raise EdgeError(expected, got, "correct source in [updates]")
        self._url = urljoin(url, RELEASE_NAME) if parts.path.endswith("/") else url
        self.where = f"'{public_name(urlsplit(self._url))}'"
        self._client = HttpClient(context=tls_context(ca_file), follow_redirects=True)

    @contextmanager
    def opened(self, path: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Opens a file; see `ReleaseSource.opened`."""
        from agridistill.edge.http import HttpError, http_errors

        url = self._url if path == RELEASE_NAME else urljoin(self._url, path)
        headers = {"Cache-Control": "no-cache"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            # No limit for the whole body here: it may take long, and the caller limits it.
            with http_errors(), closing(self._client.header(url, TIMEOUT_S, headers=headers)) as answer:
                continues = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
                if answer.status_code not in (200, 206) or (answer.status_code == 206 and not continues):
                    raise HttpError(f"HTTP status {answer.status_code}", status=answer.status_code)
                yield (start if answer.status_code == 206 else 0), answer.iter_raw()
        except HttpError as error:
            where = f"'{public_name(urlsplit(url))}'"
            got = f"HTTP status {error.status} for {where}" if error.status else f"{where} ({error})"
            raise UnavailableError("a file of a release from its server", got, _LATER) from None


def read_envelope(source: ReleaseSource) -> bytes:
    """Downloads `release.json` and returns its content, which is not verified yet.

    Raises:
        UnavailableError: the file cannot be downloaded within an hour.
        RefusedError: the file is larger than 1 MB.
    """
    content, deadline = b"", time.monotonic() + PATIENCE_S
    try:
        with source.opened(RELEASE_NAME, 0) as (_, pieces):
            for piece in pieces:
                content += piece
                if time.monotonic() > deadline:
                    got = f"an incomplete one from {source.where}"
                    raise UnavailableError(f"a {RELEASE_NAME} within {PATIENCE_S:g} s", got, _LATER)
                if len(content) > MAX_RELEASE_BYTES:
                    expected = f"a {RELEASE_NAME} of at most {MAX_RELEASE_BYTES:,} bytes"
                    remedy = "publish it again with fewer golden photos"
                    raise RefusedError(expected, f"a larger one from {source.where}", remedy)
    except OSError as error:
        raise UnavailableError(f"a {RELEASE_NAME}", f"an error of {source.where} ({error})", _LATER) from None
    return content


def fetch_files(source: ReleaseSource, release: Release, folder: Path) -> None:
    """Downloads the files of a verified release into `folder`; continues what an earlier call left incomplete.

    A file is named `NAME.part` until it is complete.

    Raises:
        RefusedError: a file is larger than 500 MB, or its sha256 is not the signed one.
        UnavailableError: the source fails several times in a row, the download takes longer than an hour, or the disk
            is full.
    """
    for file in release.files:
        if file.size_bytes > MAX_FILE_BYTES:
            got = f"'{file.name}' with {file.size_bytes:,} bytes"
            raise RefusedError(f"files of at most {MAX_FILE_BYTES:,} bytes", got, "publish a smaller model")
    present = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    needed = max(0, release.size_bytes - present) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        expected, got = f"{needed:,} free bytes for a model update", f"{free:,} free bytes on the disk of '{folder}'"
        raise UnavailableError(expected, got, "delete other files there")
    deadline = time.monotonic() + PATIENCE_S
    try:
        for file in release.files:
            if not file.is_intact(folder / file.name):
                _fetch(source, f"{release.folder}/{file.name}", file, folder, deadline)
    except OSError as error:
        if error.errno in _DISK_FULL:
            # Delete the partial download, or the agent itself could not write to the disk.
            shutil.rmtree(folder, ignore_errors=True)
        got = f"'{folder}' ({error.strerror or error})"
        remedy = "delete other files there" if error.errno in _DISK_FULL else "check disk and permissions"
        raise UnavailableError("a disk that can store a model update", got, remedy) from None
    sync_folder(folder)


def _fetch(source: ReleaseSource, path: str, file: ReleaseFile, folder: Path, deadline: float) -> None:
    part = folder / f"{file.name}.part"
    # Two tries: the first part may be of another version, or damaged by the transfer.
    for _ in range(2):
        _fill(source, path, part, file.size_bytes, deadline)
        if file.is_intact(part):
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(folder / file.name)
            return
        part.unlink()
    expected = f"'{file.name}' with the signed sha256 {file.sha256[:12]}…"
    raise RefusedError(expected, f"different content from {source.where}", "publish the release again")


def _fill(source: ReleaseSource, path: str, part: Path, size: int, deadline: float) -> None:
    """Downloads into `part` until it has `size` bytes, or more if the source sends more."""
    part.touch()
    failures, best = 0, part.stat().st_size
    while (begin := part.stat().st_size) < size:
        reason = ""
        try:
            with source.opened(path, begin) as (start, pieces):
                _append(part, pieces, start, size, deadline)
        except UnavailableError as error:
            reason = error.got
        done = part.stat().st_size
        if done >= size:
            return
        failures = failures + 1 if done <= best else 1
        best = max(best, done)
        if failures >= ATTEMPTS or time.monotonic() > deadline:
            expected = f"a complete download of '{part.stem}' from {source.where}"
            reason = reason or f"only {done:,} of {size:,} bytes"
            raise UnavailableError(expected, reason, "the next check continues the download")
        time.sleep(PAUSE_S * 2 ** (failures - 1))


def _append(part: Path, pieces: Iterator[bytes], start: int, size: int, deadline: float) -> None:
    """Writes pieces to `part` until their end, a read error, the deadline, or more than `size` bytes."""
    done = start
    with part.open("ab" if start else "wb") as file:
        while done <= size and time.monotonic() < deadline:
            try:
                piece = next(pieces, b"")
            except OSError:  # an error of the source; `file.write` raises those of the disk
                return
            if not piece:
                return
            file.write(piece)
            done += len(piece)

"""Where a release comes from, and the download of its files.

A download continues after a cut or a kill; a file is used only when its sha256 is the signed one.
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
"""Room on the disk that an update leaves free."""
TIMEOUT_S = 30.0
"""Of a connection with the header of its answer, and of each read of the body."""
PATIENCE_S = 3600.0
"""For all files; the next check continues the download."""
ATTEMPTS = 4
"""Tries in a row without a new byte before a file is given up."""
PAUSE_S = 1.0
"""Before the second try; doubled before each further one."""
_LATER = "the next check tries again"
_CHUNK_BYTES = 65_536
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ReleaseSource(Protocol):
    """Gives the files of a release; nothing of them is used before it was checked."""

    where: str  # for messages, without secrets

    def opened(self, path: str, start: int) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
        """`release.json` or `vVERSION/NAME`: the byte that it really starts with, `start` or 0, and its pieces.

        Raises:
            UnavailableError: it cannot be fetched.
        """
        ...


def open_source(address: str, ca_file: Path | None = None) -> ReleaseSource:
    """The source at `http(s)://…/release.json` or its folder with a "/", or at a folder's or file's path.

    Raises:
        EdgeError: an address that cannot be used.
    """
    return ReleaseServer(address, ca_file) if "://" in address else ReleaseFolder(Path(address))


class ReleaseFolder:
    """A folder with `release.json`, or that file."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent if path.name == RELEASE_NAME else path
        self.where = f"'{self._folder}'"

    @contextmanager
    def opened(self, path: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """See `ReleaseSource`."""
        place = self._folder / path
        try:
            # Anything else, such as a pipe, could block the reader forever.
            if not place.is_file():
                raise FileNotFoundError("no such file")
            file = place.open("rb")
        except OSError as error:
            raise UnavailableError("a release", f"'{place}' ({error.strerror or error})", _LATER) from None
        with file:
            file.seek(start)
            yield start, iter(partial(file.read, _CHUNK_BYTES), b"")


class ReleaseServer:
    """An http(s) address of a `release.json`, or of its folder with a "/" at its end; the files lie beside it."""

    def __init__(self, url: str, ca_file: Path | None) -> None:
        # Importing httpx takes time and memory, which an agent without such a source saves.
        from agridistill.edge.http import HttpClient, tls_context

        parts = split_url(url, example="https://host/models/release.json")
        is_plain = url.isascii() and url.isprintable() and " " not in url
        if parts.scheme not in ("http", "https") or parts.password is not None or not is_plain:
            got = "one with a password" if parts.password is not None else f"'{url.split('?')[0][:100]}'"
            raise EdgeError("an http(s) address of a release, or a folder", got, "correct it")
        self._url = urljoin(url, RELEASE_NAME) if parts.path.endswith("/") else url
        self.where = f"'{public_name(urlsplit(self._url))}'"
        self._client = HttpClient(context=tls_context(ca_file), follow_redirects=True)

    @contextmanager
    def opened(self, path: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """See `ReleaseSource`."""
        from agridistill.edge.http import HttpError, http_errors

        url = self._url if path == RELEASE_NAME else urljoin(self._url, path)
        headers = {"Cache-Control": "no-cache"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            # The body may take long, and has a limit of its own.
            with http_errors(), closing(self._client.header(url, TIMEOUT_S, headers=headers)) as answer:
                continues = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
                if answer.status_code not in (200, 206) or (answer.status_code == 206 and not continues):
                    raise HttpError(f"HTTP status {answer.status_code}", status=answer.status_code)
                yield (start if answer.status_code == 206 else 0), answer.iter_raw()
        except HttpError as error:
            where = f"'{public_name(urlsplit(url))}'"
            got = f"status {error.status} from {where}" if error.status else f"{where} ({error})"
            raise UnavailableError("a release", got, _LATER) from None


def read_envelope(source: ReleaseSource) -> bytes:
    """The content of `release.json`.

    Raises:
        UnavailableError: it cannot be fetched.
        RefusedError: it is too large.
    """
    content, deadline = b"", time.monotonic() + PATIENCE_S
    try:
        with source.opened(RELEASE_NAME, 0) as (_, pieces):
            for piece in pieces:
                content += piece
                if time.monotonic() > deadline:
                    raise UnavailableError("a release", f"{source.where} (not whole in {PATIENCE_S:g} s)", _LATER)
                if len(content) > MAX_RELEASE_BYTES:
                    expected = f"a release of at most {MAX_RELEASE_BYTES:,} bytes"
                    raise RefusedError(expected, f"more from {source.where}", "publish it again")
    except OSError as error:
        raise UnavailableError("a release", f"{source.where} ({error})", _LATER) from None
    return content


def fetch_files(source: ReleaseSource, release: Release, folder: Path) -> None:
    """Downloads all files of a verified release into a folder; complete ones are not fetched again.

    `NAME.part` is a file that is being fetched.

    Raises:
        RefusedError: a file is too large, or its sha256 is not the signed one.
        UnavailableError: cut off again and again, or the disk is full.
    """
    for file in release.files:
        if file.size_bytes > MAX_FILE_BYTES:
            got = f"'{file.name}' with {file.size_bytes:,}"
            raise RefusedError(f"files of at most {MAX_FILE_BYTES:,} bytes", got, "publish a smaller model")
    present = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    needed = max(0, release.size_bytes - present) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UnavailableError(f"{needed:,} free bytes for an update", f"{free:,} at '{folder}'", "free some")
    deadline = time.monotonic() + PATIENCE_S
    try:
        for file in release.files:
            if not file.is_intact(folder / file.name):
                _fetch(source, f"{release.folder}/{file.name}", file, folder, deadline)
    except OSError as error:
        if error.errno in _DISK_FULL:
            # The partial download would keep the agent itself from writing.
            shutil.rmtree(folder, ignore_errors=True)
        raise UnavailableError("room for an update", f"'{folder}' ({error.strerror or error})", "free some") from None
    sync_folder(folder)


def _fetch(source: ReleaseSource, path: str, file: ReleaseFile, folder: Path, deadline: float) -> None:
    part = folder / f"{file.name}.part"
    # Twice: the first part may be of another version, or have been damaged on its way.
    for _ in range(2):
        _fill(source, path, part, file.size_bytes, deadline)
        if file.is_intact(part):
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(folder / file.name)
            return
        part.unlink()
    expected = f"'{file.name}' with sha256 {file.sha256[:12]}…"
    raise RefusedError(expected, f"another content from {source.where}", "publish it again")


def _fill(source: ReleaseSource, path: str, part: Path, size: int, deadline: float) -> None:
    """Extends the part to the file's size, or beyond it where the source gives more."""
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
            expected = f"the whole of '{part.stem}' from {source.where}"
            reason = reason or f"{done:,} of {size:,} bytes"
            raise UnavailableError(expected, reason, "the next check continues")
        time.sleep(PAUSE_S * 2 ** (failures - 1))


def _append(part: Path, pieces: Iterator[bytes], start: int, size: int, deadline: float) -> None:
    """Writes until the end, a read error, the deadline, or the first bytes too many."""
    done = start
    with part.open("ab" if start else "wb") as file:
        while done <= size and time.monotonic() < deadline:
            try:
                piece = next(pieces, b"")
            except OSError:  # of the source; one of the disk is raised below
                return
            if not piece:
                return
            file.write(piece)
            done += len(piece)

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
from urllib.request import url2pathname

from agridistill.edge.updates.release import (
    MAX_RELEASE_BYTES,
    RELEASE_NAME,
    RefusedError,
    Release,
    ReleaseFile,
    UnavailableError,
    UpdateSettings,
    stored_release,
)
from agridistill.edge.urls import public_name, split_url
from agridistill.errors import EdgeError
from agridistill.manifest import sha256_of
from agridistill.storage import sync_folder

_LATER = "the next check tries again"
_CHUNK_BYTES = 65_536
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ReleaseSource(Protocol):
    """Gives a release and its files; nothing of it is used before it was checked."""

    @property
    def where(self) -> str:
        """For messages, without secrets."""
        ...

    def envelope(self) -> bytes:
        """The content of `release.json`.

        Raises:
            UnavailableError: it cannot be fetched.
            RefusedError: it is too large.
        """
        ...

    def opened(self, release: Release, name: str, start: int) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
        """A file of a verified release: the byte that it really starts with, `start` or 0, and its content in pieces.

        Raises:
            UnavailableError: it cannot be fetched.
        """
        ...


def open_source(source: str | Path | bytes, settings: UpdateSettings) -> ReleaseSource:
    """Chooses the kind of source.

    Args:
        source: `http(s)://…/release.json` or its folder; a folder's or a file's path, also as `file:`; or the content
            of a `release.json` that came another way.
        settings: of updates.

    Raises:
        EdgeError: an address that cannot be used.
    """
    if isinstance(source, bytes):
        return MessageSource(source, settings)
    text = str(source)
    if text.startswith("file:"):
        return FolderSource(Path(url2pathname(urlsplit(text).path)), settings)
    if isinstance(source, Path) or "://" not in text:
        return FolderSource(Path(text), settings)
    return HttpSource(text, settings)


class FolderSource:
    """A folder with `release.json`, or that file."""

    def __init__(self, path: Path, settings: UpdateSettings) -> None:
        self._patience_s = settings.patience_s
        self._folder = path.parent if path.name == RELEASE_NAME else path

    @property
    def where(self) -> str:
        """The folder."""
        return f"'{self._folder}'"

    def envelope(self) -> bytes:
        """See `ReleaseSource`."""
        with self._pieces(self._folder / RELEASE_NAME, 0) as (_, pieces):
            return _read_envelope(pieces, self.where, self._patience_s)

    def opened(self, release: Release, name: str, start: int) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
        """See `ReleaseSource`."""
        return self._pieces(self._folder / release.folder / name, start)

    @contextmanager
    def _pieces(self, path: Path, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        try:
            # Anything else, such as a pipe, could block the reader forever.
            if not path.is_file():
                raise FileNotFoundError("no such file")
            file = path.open("rb")
        except OSError as error:
            raise UnavailableError("a release", f"'{path}' ({error.strerror or error})", _LATER) from None
        with file:
            file.seek(start)
            yield start, iter(partial(file.read, _CHUNK_BYTES), b"")


class HttpSource:
    """An http(s) address of a `release.json`, or of its folder with a "/" at its end; the files lie beside it."""

    def __init__(self, url: str, settings: UpdateSettings) -> None:
        # Importing httpx takes time and memory, which an agent without such a source saves.
        from agridistill.edge.http import HttpClient, tls_context

        _require_address(url)
        self._url = urljoin(url, RELEASE_NAME) if urlsplit(url).path.endswith("/") else url
        self._settings = settings
        self._client = HttpClient(context=tls_context(settings.ca_file), follow_redirects=True)

    @property
    def where(self) -> str:
        """The address, without a token that may stand in it."""
        return _where(self._url)

    def envelope(self) -> bytes:
        """See `ReleaseSource`."""
        with self._response(self._url, 0) as (_, chunks):
            return _read_envelope(chunks, self.where, self._settings.patience_s)

    @contextmanager
    def opened(self, release: Release, name: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """See `ReleaseSource`."""
        with self._response(urljoin(self._url, f"{release.folder}/{name}"), start) as found:
            yield found

    @contextmanager
    def _response(self, url: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        from agridistill.edge.http import HttpError, http_errors

        headers = {"Cache-Control": "no-cache"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            # The body may take long, and has a limit of its own.
            with http_errors(), closing(self._client.header(url, self._settings.timeout_s, headers=headers)) as answer:
                continues = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
                if answer.status_code not in (200, 206) or (answer.status_code == 206 and not continues):
                    raise HttpError(f"HTTP status {answer.status_code}", status=answer.status_code)
                yield (start if answer.status_code == 206 else 0), answer.iter_raw()
        except HttpError as error:
            got = f"status {error.status} from {_where(url)}" if error.status else f"{_where(url)} ({error})"
            raise UnavailableError("a release", got, _LATER) from None


class MessageSource:
    """A `release.json` that came by itself, as over MQTT; where its files lie is signed with it."""

    def __init__(self, envelope: bytes, settings: UpdateSettings) -> None:
        self._envelope, self._settings = envelope, settings

    @property
    def where(self) -> str:
        """That it is a message."""
        return "a message"

    def envelope(self) -> bytes:
        """See `ReleaseSource`."""
        return self._envelope

    @contextmanager
    def opened(self, release: Release, name: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """See `ReleaseSource`."""
        if not release.base_url:
            raise RefusedError("a release with the address of its files", "none", "publish it with --base-url")
        with HttpSource(release.base_url, self._settings).opened(release, name, start) as found:
            yield found


def _where(url: str) -> str:
    return f"'{public_name(split_url(url))}'"


def _require_address(url: str) -> None:
    parts = split_url(url, example="https://host/models/release.json")
    has_password = parts.password is not None
    if (
        parts.scheme not in ("http", "https")
        or has_password
        or not url.isascii()
        or not url.isprintable()
        or " " in url
    ):
        got = "one with a password" if has_password else f"'{url.split('?')[0][:100]}'"
        raise EdgeError("an http(s) address of a release, or a folder", got, "correct it")


def _read_envelope(pieces: Iterator[bytes], where: str, patience_s: float) -> bytes:
    content, deadline = b"", time.monotonic() + patience_s
    try:
        for piece in pieces:
            content += piece
            if time.monotonic() > deadline:
                raise UnavailableError("a release", f"{where} (not whole in {patience_s:g} s)", _LATER)
            if len(content) > MAX_RELEASE_BYTES:
                expected = f"a release of at most {MAX_RELEASE_BYTES:,} bytes"
                raise RefusedError(expected, f"more from {where}", "publish it again")
    except OSError as error:
        raise UnavailableError("a release", f"{where} ({error})", _LATER) from None
    return content


def fetch_files(source: ReleaseSource, release: Release, folder: Path, settings: UpdateSettings) -> None:
    """Downloads all files of a verified release into a folder; complete ones are not fetched again.

    `NAME.part` is a file that is being fetched.

    Raises:
        RefusedError: a file is too large, or its sha256 is not the signed one.
        UnavailableError: cut off again and again, or the disk is full.
    """
    for file in release.files:
        if file.size_bytes > settings.max_file_bytes:
            got = f"'{file.name}' with {file.size_bytes:,}"
            raise RefusedError(f"files of at most {settings.max_file_bytes:,} bytes", got, "publish a smaller model")
    present = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    needed = max(0, release.size_bytes - present) + settings.spare_bytes
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UnavailableError(f"{needed:,} free bytes for an update", f"{free:,} at '{folder}'", "free some")
    download = _Download(source, release, folder, settings)
    try:
        for file in release.files:
            download.fetch(file)
    except OSError as error:
        if error.errno in _DISK_FULL:
            # The partial download would keep the agent itself from writing.
            shutil.rmtree(folder, ignore_errors=True)
        raise UnavailableError("room for an update", f"'{folder}' ({error.strerror or error})", "free some") from None
    sync_folder(folder)


def is_intact(path: Path, file: ReleaseFile) -> bool:
    """Whether the file at a path is the signed one."""
    try:
        return path.stat().st_size == file.size_bytes and sha256_of(path) == file.sha256
    except OSError:
        return False


def read_stored(folder: Path) -> Release:
    """The release in a folder; raises OSError or RefusedError where it cannot be read."""
    with (folder / RELEASE_NAME).open("rb") as file:
        return stored_release(file.read(MAX_RELEASE_BYTES + 1))


def damage_of(folder: Path, version: int) -> str | None:
    """What is wrong with the stored files of a version, in one line; None where they are as they were signed."""
    try:
        release = read_stored(folder)
    except (OSError, RefusedError) as error:
        return f"its {RELEASE_NAME} cannot be read ({error})"
    if release.version != version:
        return f"its {RELEASE_NAME} is of version {release.version}"
    # Golden photos are no longer needed: a damaged one is no reason to leave a model that works.
    needed = (release.model, release.manifest)
    bad = [file.name for file in release.files if file.name in needed and not is_intact(folder / file.name, file)]
    return f"'{bad[0]}' is damaged" if bad else None


class _Download:
    """One release on its way into a folder, with one time limit for all files."""

    def __init__(self, source: ReleaseSource, release: Release, folder: Path, settings: UpdateSettings) -> None:
        self._source, self._release, self._folder, self._settings = source, release, folder, settings
        self._deadline = time.monotonic() + settings.patience_s

    def fetch(self, file: ReleaseFile) -> None:
        """Downloads one file, unless it is there."""
        target, part = self._folder / file.name, self._folder / f"{file.name}.part"
        if is_intact(target, file):
            return
        target.unlink(missing_ok=True)
        # Twice: the first part may be of another version, or have been damaged on its way.
        for _ in range(2):
            self._fill(part, file)
            if is_intact(part, file):
                with part.open("rb") as written:
                    os.fsync(written.fileno())
                part.replace(target)
                return
            part.unlink(missing_ok=True)
        expected = f"'{file.name}' with sha256 {file.sha256[:12]}…"
        raise RefusedError(expected, f"another content from {self._source.where}", "publish it again")

    def _fill(self, part: Path, file: ReleaseFile) -> None:
        """Extends the part to the file's size, or beyond it where the source gives more."""
        failures, best = 0, _size(part)
        while not part.exists() or _size(part) < file.size_bytes:
            reason = ""
            try:
                with self._source.opened(self._release, file.name, _size(part)) as (start, pieces):
                    self._append(part, pieces, start, file.size_bytes)
            except UnavailableError as error:
                reason = error.got
            if part.exists() and _size(part) >= file.size_bytes:
                return
            failures = failures + 1 if _size(part) <= best else 1
            best = max(best, _size(part))
            if failures >= self._settings.attempts or time.monotonic() > self._deadline:
                reason = reason or f"{_size(part):,} of {file.size_bytes:,} bytes"
                expected = f"the whole of '{file.name}' from {self._source.where}"
                raise UnavailableError(expected, reason, "the next check continues")
            time.sleep(self._settings.pause_s * 2 ** (failures - 1))

    def _append(self, part: Path, pieces: Iterator[bytes], start: int, size: int) -> None:
        """Writes until the end, a read error, the deadline, or the first bytes too many."""
        done = start
        with part.open("ab" if start else "wb") as file:
            while done <= size and time.monotonic() < self._deadline:
                try:
                    piece = next(pieces, b"")
                except OSError:  # of the source; one of the disk is raised below
                    return
                if not piece:
                    return
                file.write(piece)
                done += len(piece)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

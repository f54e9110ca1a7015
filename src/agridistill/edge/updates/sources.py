"""Where a release comes from: an http(s) address, a folder such as a USB stick, or a message with an address in it."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urljoin, urlsplit
from urllib.request import Request, url2pathname

from agridistill.edge.http_exchange import HttpClient, tls_context
from agridistill.edge.updates.release import MAX_RELEASE_BYTES, RELEASE_NAME, RefusedError, Release
from agridistill.edge.updates.settings import UpdateSettings
from agridistill.errors import EdgeError

_LATER = "the next check tries again"
Reader = IO[bytes] | http.client.HTTPResponse


class UnavailableError(EdgeError):
    """A release cannot be fetched now; a later try may succeed."""


class ReleaseSource(Protocol):
    """Gives a release and its files; none of it is believed before it was checked."""

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

    def opened(self, release: Release, name: str, start: int) -> AbstractContextManager[tuple[int, Reader]]:
        """A file of the release, from about a byte on.

        Args:
            release: that was verified.
            name: of the file.
            start: how many bytes are there already.

        Returns:
            The byte that it really starts with, `start` or 0, and a stream.

        Raises:
            UnavailableError: it cannot be fetched.
        """
        ...


def open_source(source: str | Path | bytes, settings: UpdateSettings) -> ReleaseSource:
    """Finds out what kind of source it is.

    Args:
        source: `http(s)://…/release.json` or its folder; a folder's or a file's path, also as `file:`; or the content
            of a `release.json` that came by another way.
        settings: of updates.

    Raises:
        EdgeError: an address that cannot be used.
    """
    if isinstance(source, bytes):
        return MessageSource(source, settings)
    text = str(source)
    if isinstance(source, Path) or ("://" not in text and not text.startswith("file:")):
        return FolderSource(Path(text), settings)
    if text.startswith("file:"):
        return FolderSource(Path(url2pathname(urlsplit(text).path)), settings)
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
        with self._file(self._folder / RELEASE_NAME) as file:
            return _limited(file, self.where, self._patience_s)

    @contextmanager
    def opened(self, release: Release, name: str, start: int) -> Iterator[tuple[int, Reader]]:
        """See `ReleaseSource`."""
        with self._file(self._folder / release.folder / name) as file:
            file.seek(start)
            yield start, file

    @contextmanager
    def _file(self, path: Path) -> Iterator[IO[bytes]]:
        try:
            # Anything else, such as a pipe, could keep the reader waiting for ever.
            if not path.is_file():
                raise FileNotFoundError("no such file")
            file = path.open("rb")
        except OSError as error:
            raise UnavailableError("a release", f"'{path}' ({error.strerror or error})", _LATER) from None
        with file:
            yield file


class HttpSource:
    """An address of `release.json`; its files lie in `vVERSION/` beside it.

    Args:
        url: of the file, or of its folder with a "/" at its end.
        settings: of updates.
    """

    def __init__(self, url: str, settings: UpdateSettings) -> None:
        _check_address(url)
        self._url = urljoin(url, RELEASE_NAME) if urlsplit(url).path.endswith("/") else url
        self._timeout_s, self._patience_s = settings.timeout_s, settings.patience_s
        self._client = HttpClient(_Redirects(), context=tls_context(settings.ca_file))

    @property
    def where(self) -> str:
        """The address, without what may be a token."""
        return _shown(self._url)

    def envelope(self) -> bytes:
        """See `ReleaseSource`."""
        with self._response(self._url, 0) as (_, response):
            return _limited(response, self.where, self._patience_s)

    @contextmanager
    def opened(self, release: Release, name: str, start: int) -> Iterator[tuple[int, Reader]]:
        """See `ReleaseSource`."""
        with self._response(urljoin(self._url, f"{release.folder}/{name}"), start) as found:
            yield found

    @contextmanager
    def _response(self, url: str, start: int) -> Iterator[tuple[int, Reader]]:
        headers = {"User-Agent": "agridistill", "Accept-Encoding": "identity", "Cache-Control": "no-cache"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            # Its body may take long, and has a limit of its own.
            response = self._client.header(Request(url, headers=headers), self._timeout_s)  # noqa: S310 - checked
        except urllib.error.HTTPError as error:
            error.close()
            raise UnavailableError("a release", f"status {error.code} from {_shown(url)}", _LATER) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            got = f"{_shown(url)} ({getattr(error, 'reason', None) or error or type(error).__name__})"
            raise UnavailableError("a release", got, _LATER) from None
        with response:
            same = (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-")
            goes_on = response.status == http.client.PARTIAL_CONTENT and same
            if response.status != http.client.OK and not goes_on:
                raise UnavailableError("a release", f"status {response.status} from {_shown(url)}", _LATER)
            yield (start if goes_on else 0), response


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
    def opened(self, release: Release, name: str, start: int) -> Iterator[tuple[int, Reader]]:
        """See `ReleaseSource`."""
        if not release.base_url:
            raise RefusedError("a release with the address of its files", "none", "publish it with --base-url")
        with HttpSource(release.base_url, self._settings).opened(release, name, start) as found:
            yield found


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http(s) alone, and never from https to http."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Request | None:
        """The request to follow with; an error where it must not be followed."""
        scheme = urlsplit(newurl).scheme
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            raise urllib.error.HTTPError(req.full_url, code, f"redirected to {scheme}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        secret = parts.password is not None
    except ValueError:
        usable = secret = False
    if not usable or secret or not url.isascii() or not url.isprintable() or " " in url:
        got = "one with a password" if secret else f"'{url.split('?')[0][:100]}'"
        raise EdgeError("an http(s) address of a release, or a folder", got, "correct it")


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"'{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}'"


def _limited(file: Reader, where: str, patience_s: float) -> bytes:
    content, deadline = b"", time.monotonic() + patience_s
    try:
        while chunk := read_some(file, min(65_536, MAX_RELEASE_BYTES + 1 - len(content))):
            content += chunk
            if time.monotonic() > deadline:
                raise TimeoutError(f"not whole in {patience_s:g} s")
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError("a release", f"{where} ({error or type(error).__name__})", _LATER) from None
    if len(content) > MAX_RELEASE_BYTES:
        raise RefusedError(
            f"a release of at most {MAX_RELEASE_BYTES:,} bytes", f"more from {where}", "publish it again"
        )
    return content


def read_some(file: Reader, size: int) -> bytes:
    """What is there now, at most `size` bytes: one that sends a byte a minute holds nobody until `size` is reached."""
    return file.read1(size) if isinstance(file, http.client.HTTPResponse) else file.read(size)

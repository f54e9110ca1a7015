"""One file over HTTP: resumed after a cut, never glued together from two versions, checked for length and sha256."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agridistill.errors import FetchError
from agridistill.manifest import sha256_of
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import write_json

MAX_DOWNLOAD_BYTES = 20_000_000_000
_CHUNK_BYTES = 1 << 20
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_AGAIN = "run the same command again: it goes on where it stopped"


@dataclass(frozen=True)
class DownloadOptions:
    """How patient a download is.

    Attributes:
        attempts: tries in a row that bring nothing new before it is given up.
        pause_s: before the second try; doubled before each further one.
        timeout_s: for a connection, and for each read.
        max_bytes: a larger file is refused.
    """

    attempts: int = 4
    pause_s: float = 1.0
    timeout_s: float = 30.0
    max_bytes: int = MAX_DOWNLOAD_BYTES


@dataclass(frozen=True)
class _Version:
    """Which version of which file the partial download belongs to; kept beside it.

    The address is kept as a sha256, for it may hold a password or a token.
    """

    url_sha256: str
    validator: str


class _CutOffError(Exception):
    """The server or the network stopped; what came so far is kept."""


class _TooLargeError(Exception):
    """More than the limit; what came so far is of no use."""


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    options: DownloadOptions | None = None,
    progress: ProgressCallback = silent,
) -> None:
    """Downloads a file, or the rest of it.

    An earlier, unfinished `target` is continued where the server vouches (If-Range) that the file is the same, and
    replaced where it does not.

    Args:
        url: http or https.
        target: file to write; it stays after a failure, to be continued, unless it is refused. `discard` removes it.
        sha256: of the whole file, in hex; a file that differs is removed.
        options: tries, pauses, timeouts and limits.
        progress: called with (bytes so far, bytes in all; 0 where unknown).

    Raises:
        FetchError: not reachable, refused by the server, cut off again and again, too large, or of another sha256.
        OSError: the disk is full or cannot be written.
    """
    _check_address(url)
    options = options or DownloadOptions()
    failures, best = 0, -1
    while True:
        try:
            _continue(url, target, options, progress)
            break
        except _TooLargeError:
            discard(target)
            raise FetchError(
                f"at most {options.max_bytes:,} bytes", f"more from '{shown(url)}'", "name another --source"
            ) from None
        except _CutOffError as error:
            size = _size(target)
            failures = failures + 1 if size <= best else 1
            best = max(best, size)
            if failures >= options.attempts:
                raise FetchError(f"the whole of '{shown(url)}'", f"{size:,} bytes ({error})", _AGAIN) from None
            time.sleep(options.pause_s * 2 ** (failures - 1))
    if sha256 is not None and (found := sha256_of(target)) != sha256.lower():
        discard(target)
        raise FetchError(
            f"an archive with sha256 {sha256[:12]}…",
            f"{found[:12]}… from '{shown(url)}'",
            "check the source and the sha256",
        )


def discard(target: Path) -> None:
    """Removes a download, finished or not, and what is known about it."""
    target.unlink(missing_ok=True)
    _version_file(target).unlink(missing_ok=True)


def shown(url: str) -> str:
    """The address as it may stand in a message: without a password or a token."""
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
        raise FetchError("an http or https address", got, "correct it or name a local archive")


def _continue(url: str, target: Path, options: DownloadOptions, progress: ProgressCallback) -> None:
    """One request: the rest of the file, or all of it."""
    start = _resumable_size(url, target)
    with _opened(url, start, target, options) as response:
        if response is None:
            return
        if response.status == http.client.PARTIAL_CONTENT:
            _check_same(target, start, response)
        else:
            start = 0
            # In this order: a cut between the two must not leave old bytes under a new version.
            target.unlink(missing_ok=True)
            _remember(url, target, response)
        length = response.headers.get("Content-Length") or ""
        total = start + int(length) if length.isdigit() else 0
        _check_size(total, options)
        with target.open("ab" if start else "wb") as file:
            done = start
            while chunk := _read(response):
                done += len(chunk)
                _check_size(done, options)
                file.write(chunk)
                progress(done, total)
    if total and done != total:
        raise _CutOffError(f"of {total:,}")


@contextmanager
def _opened(url: str, start: int, target: Path, options: DownloadOptions) -> Iterator[http.client.HTTPResponse | None]:
    """The server's answer; None where the file is complete already."""
    headers = {"User-Agent": "agridistill", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": _known_version(target).validator}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was checked
    try:
        response = urllib.request.urlopen(request, timeout=options.timeout_s)  # noqa: S310 - as above
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                if error.headers.get("Content-Range") == f"bytes */{start}":
                    yield None
                    return
                discard(target)
                raise _CutOffError("a file that became shorter") from None
            if error.code in _RETRIED_STATUSES:
                raise _CutOffError(f"status {error.code} {error.reason}") from None
            got = f"status {error.code} {error.reason} from '{shown(url)}'"
            raise FetchError("a file to download", got, "check the address or name another --source") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _CutOffError(str(reason) or type(error).__name__) from None
    with response:
        yield response


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _CutOffError(str(error) or type(error).__name__) from None


def _check_size(size: int, options: DownloadOptions) -> None:
    if size > options.max_bytes:
        raise _TooLargeError


def _resumable_size(url: str, target: Path) -> int:
    """Bytes that the server may be asked to continue; without a known version of the same address, none."""
    version = _known_version(target)
    return _size(target) if version.url_sha256 == _hashed(url) and version.validator else 0


def _check_same(target: Path, start: int, response: http.client.HTTPResponse) -> None:
    """Discards the first part where the rest comes from elsewhere: some servers ignore If-Range."""
    validator = _validator(response)
    if validator and validator != _known_version(target).validator:
        discard(target)
        raise _CutOffError("a file that changed")
    if not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
        discard(target)
        raise _CutOffError("another range than the one asked for")


def _remember(url: str, target: Path, response: http.client.HTTPResponse) -> None:
    write_json(_version_file(target), asdict(_Version(_hashed(url), _validator(response))))


def _validator(response: http.client.HTTPResponse) -> str:
    etag = response.headers.get("ETag") or ""
    # A weak ETag does not promise the same bytes.
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified") or ""


def _known_version(target: Path) -> _Version:
    try:
        return _Version(**json.loads(_version_file(target).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return _Version("", "")


def _hashed(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _version_file(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _size(target: Path) -> int:
    return target.stat().st_size if target.exists() else 0

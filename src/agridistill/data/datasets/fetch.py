"""One file over HTTP: resumed after an interruption, never joined from two versions, verified by length and sha256."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agridistill.errors import FetchError
from agridistill.manifest import sha256_of
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import write_json

_CHUNK_BYTES = 1 << 20
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_SOURCE = re.compile(r"(?P<source>.*)#sha256=(?P<sha256>[0-9a-fA-F]*)", re.DOTALL)


@dataclass(frozen=True)
class DownloadOptions:
    """Limits of one download."""

    attempts: int = 4  # tries in a row without new bytes
    pause_s: float = 1.0  # before the second try; doubled before each further one
    timeout_s: float = 30.0  # of the connection, and of each read
    max_bytes: int = 20_000_000_000


class _CutOffError(Exception):
    """The server or the network stopped; the bytes so far stay on the disk."""


class _TooLargeError(Exception):
    """More bytes than the limit."""


def split_source(source: str) -> tuple[str, str | None]:
    """Splits `ADDRESS#sha256=HEX` into the address and the sha256, which is None where it is not given.

    Raises:
        FetchError: not 64 hex digits.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        return source, None
    if len(match["sha256"]) != 64:
        raise FetchError("a sha256 of 64 hex digits", f"'{match['sha256']}'", "correct the source")
    return match["source"], match["sha256"].lower()


def require_sha256(path: Path, expected: str | None, where: str, remedy: str) -> str:
    """The sha256 of a file; a FetchError where another one is expected."""
    found = sha256_of(path)
    if expected is not None and found != expected.lower():
        raise FetchError(f"an archive with sha256 {expected[:12]}…", f"{found[:12]}… {where}", remedy)
    return found


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    options: DownloadOptions | None = None,
    progress: ProgressCallback = silent,
) -> str:
    """Downloads a file, or the rest of it.

    An unfinished `target` is resumed where the server confirms (If-Range) that the file is the same, else replaced.

    Args:
        url: http or https.
        target: file to write; after a failure it stays, to be resumed, unless it is refused. `discard` removes it.
        sha256: of the whole file, in hex; a file that differs is removed.
        options: tries, pauses, timeouts and limits.
        progress: called with (bytes so far, bytes in all; 0 where unknown).

    Returns:
        The sha256 of the file.

    Raises:
        FetchError: not reachable, refused by the server, cut off repeatedly, too large, or of another sha256.
        OSError: the disk is full or cannot be written.
    """
    _check_address(url)
    options = options or DownloadOptions()
    failures, best = 0, -1
    while True:
        try:
            _resume(url, target, options, progress)
            break
        except _TooLargeError:
            discard(target)
            got = f"more from '{without_secrets(url)}'"
            raise FetchError(f"at most {options.max_bytes:,} bytes", got, "name another --source") from None
        except _CutOffError as error:
            size = _size(target)
            failures = failures + 1 if size <= best else 1
            best = max(best, size)
            if failures >= options.attempts:
                raise FetchError(
                    f"the whole of '{without_secrets(url)}'",
                    f"{size:,} bytes ({error})",
                    "run the same command again: it goes on where it stopped",
                ) from None
            time.sleep(options.pause_s * 2 ** (failures - 1))
    try:
        return require_sha256(target, sha256, f"from '{without_secrets(url)}'", "check the source and the sha256")
    except FetchError:
        discard(target)
        raise


def discard(target: Path) -> None:
    """Removes a download, finished or not, and its version file."""
    target.unlink(missing_ok=True)
    _version_file(target).unlink(missing_ok=True)


def without_secrets(url: str) -> str:
    """The address for messages: without user, password and query."""
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


def _resume(url: str, target: Path, options: DownloadOptions, progress: ProgressCallback) -> None:
    """One request for the rest of the file, or for all of it."""
    validator = _known_validator(url, target)
    start = _size(target) if validator else 0
    headers = {"User-Agent": "agridistill", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    with _response(url, headers, start, target, options.timeout_s) as response:
        if response is None:
            return
        version = _validator(response)
        if response.status == http.client.PARTIAL_CONTENT:
            # Some servers ignore If-Range.
            changed = bool(version) and version != validator
            if changed or not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
                discard(target)
                raise _CutOffError("a file that changed" if changed else "another range than the requested one")
        else:
            start = 0
            # In this order: an interruption must not leave old bytes under a new version.
            target.unlink(missing_ok=True)
            # The address may hold a password or a token: only its hash is stored.
            write_json(_version_file(target), {"url_sha256": _hashed(url), "validator": version})
        length = response.headers.get("Content-Length") or ""
        total = start + int(length) if length.isdigit() else 0
        done = start
        if total > options.max_bytes:
            raise _TooLargeError
        with target.open("ab" if start else "wb") as file:
            while chunk := _read(response):
                done += len(chunk)
                if done > options.max_bytes:
                    raise _TooLargeError
                file.write(chunk)
                progress(done, total)
    if total and done != total:
        raise _CutOffError(f"of {total:,}")


@contextmanager
def _response(
    url: str, headers: dict[str, str], start: int, target: Path, timeout_s: float
) -> Iterator[http.client.HTTPResponse | None]:
    """The server's answer; None where the file is complete already."""
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was checked
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)  # noqa: S310 - as above
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
            got = f"status {error.code} {error.reason} from '{without_secrets(url)}'"
            raise FetchError("a file to download", got, "check the address or name another --source") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _CutOffError(str(reason) or type(error).__name__) from None
    with response:
        yield response


def _read(response: http.client.HTTPResponse) -> bytes:
    # Its own function: an OSError of the disk must not count as one of the network.
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _CutOffError(str(error) or type(error).__name__) from None


def _validator(response: http.client.HTTPResponse) -> str:
    etag = response.headers.get("ETag") or ""
    # A weak ETag does not promise the same bytes.
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified") or ""


def _known_validator(url: str, target: Path) -> str:
    """The version of the unfinished download; empty where it is unknown or of another address."""
    try:
        version = json.loads(_version_file(target).read_text(encoding="utf-8"))
        return str(version["validator"]) if version["url_sha256"] == _hashed(url) else ""
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _hashed(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _version_file(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _size(target: Path) -> int:
    return target.stat().st_size if target.exists() else 0

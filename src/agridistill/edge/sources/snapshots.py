"""The source for cameras with an http(s) address, which send single snapshots or an endless MJPEG stream."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Generator, Iterator

import httpx

from agridistill.edge.events import Frame
from agridistill.edge.http import HttpClient, HttpError, http_errors, tls_context
from agridistill.edge.network import public_name, split_url, without_user
from agridistill.edge.sources.source import (
    PhotoReader,
    Source,
    SourceLostError,
    SourceRefusedError,
    SourceSettings,
    authorization,
    challenges,
    login_refused,
)
from agridistill.errors import PhotoError

TIMEOUT_S = 10.0
MAX_BYTES = 30_000_000
# After this number of unreadable pictures in a row the camera counts as away; a single damaged picture is skipped.
_MAX_UNREADABLE = 3
# Pause after an unchanged picture; with `every_s` 0 it would be fetched as fast as the network allows.
_UNCHANGED_PAUSE_S = 0.1
_STREAM = "multipart/"
# Content types that are never a picture. Cameras also send pictures as application/octet-stream, without a type, or
# with a wrong one.
_NO_PICTURE = re.compile(r"(text|message|audio|font)/.*|application/(.*[+-])?(json|xml|javascript|pdf|zip)")
_START, _MARKER = b"\xff\xd8\xff", re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SOI, _EOI, _SOS, _TEM, _FILL = 0xD8, 0xD9, 0xDA, 0x01, 0xFF
# Markers without a segment.
_ALONE = frozenset({*range(0xD0, 0xD8), _TEM, _FILL})


class SnapshotSource(Source):
    """Downloads a picture from a camera every `every_s` seconds; an unchanged picture gives no frame.

    If the camera sends a stream (MJPEG, `multipart/x-mixed-replace`), it stays open, and its newest picture is used.
    `timeout_s` limits each download; in a stream, the time for each picture.
    """

    live = True

    def __init__(self, url: str, settings: SourceSettings, *, timeout_s: float = TIMEOUT_S) -> None:
        parts = split_url(url)
        self.name = public_name(parts)
        self._settings, self._timeout_s = settings, timeout_s
        self._reader = PhotoReader(settings)
        self._url = without_user(parts)._replace(fragment="").geturl()
        self._user, password = settings.login(parts)
        auth = None if self._user is None else _Login(self._url, self._user, password)
        self._client = HttpClient(auth=auth, context=tls_context(settings.ca_file), follow_redirects=True)
        self._due = 0.0
        self._number = self._unreadable = 0
        self._last_digest = b""
        self._is_stream = False
        self._stream: MjpegStream | None = None

    def open(self) -> None:
        """Makes the next picture due immediately, without connecting: `read` connects."""
        self._due = 0.0

    def read(self, wait_s: float) -> Frame | None:
        """Returns the next picture; None if none is due within `wait_s` seconds, or if it has not changed.

        The camera is lost if it does not answer, sends no picture, or sends three damaged ones in a row.
        """
        if self._is_stream:
            data = self._next_of_stream(wait_s)
        else:
            pause = self._due - time.monotonic()
            if pause > 0:
                time.sleep(min(pause, wait_s))
            data = None if time.monotonic() < self._due else self._snapshot()
        return None if data is None else self._frame(data, time.time())

    def close(self) -> None:
        """Closes the connection of a stream; single downloads leave none open."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _frame(self, data: bytes, at_s: float) -> Frame | None:
        digest = hashlib.sha256(data).digest()
        if digest == self._last_digest:
            self._due = max(self._due, time.monotonic() + _UNCHANGED_PAUSE_S)
            if self._unreadable:
                self._count_unreadable("the same unreadable picture again")
            return None
        self._last_digest = digest
        try:
            pixels = self._reader.read(data)
        except PhotoError as error:
            self._count_unreadable(error.got)
            raise PhotoError(error.expected, f"{self.name}: {error.got}", "check the camera") from None
        self._unreadable = 0
        self._number += 1
        return Frame(pixels, str(self._number), self._settings.plot, at_s, original=data)

    def _count_unreadable(self, got: str) -> None:
        # The count is only reset by a picture that can be read: until then a lost camera stays lost.
        self._unreadable += 1
        if self._unreadable >= _MAX_UNREADABLE:
            raise self._lost(f"{self._unreadable} answers in a row that cannot be read, the last: {got}") from None

    def _snapshot(self) -> bytes | None:
        """Downloads a snapshot; None if the camera turns out to send a stream, which the next `read` then opens."""
        self._due = time.monotonic() + self._settings.every_s
        with self._losses(), self._client.whole(self._url, self._timeout_s) as answer:
            kind = _kind(answer)
            if kind.startswith(_STREAM):
                self._is_stream, self._due = True, 0.0
                return None
            if _NO_PICTURE.fullmatch(kind):
                raise self._lost(f"{kind[:100]} instead of a picture")
            data = bytearray()
            for piece in answer.iter_raw():
                data += piece
                if len(data) > MAX_BYTES:
                    raise self._lost(f"a file of more than {MAX_BYTES // 1_000_000} MB")
            return bytes(data)

    def _next_of_stream(self, wait_s: float) -> bytes | None:
        """Returns the stream's newest picture; None if none is due, or if the camera now sends snapshots instead."""
        with self._losses():
            if self._stream is None:
                answer = self._client.header(self._url, self._timeout_s)
                self._stream = MjpegStream(answer, timeout_s=self._timeout_s, max_bytes=MAX_BYTES)
                if not _kind(answer).startswith(_STREAM):
                    self._is_stream = False
                    self.close()
                    return None
            data = self._stream.newest(self._due, wait_s)
        if data is not None:
            self._due = time.monotonic() + self._settings.every_s
        return data

    @contextlib.contextmanager
    def _losses(self) -> Iterator[None]:
        try:
            yield
        except HttpError as error:
            if error.status in (401, 403):
                raise login_refused(self.name, error.status, self._user) from None
            if error.certificate:
                expected = f"a trusted certificate of {self.name}"
                remedy = "set ca_file to a file with the certificate of its authority"
                raise SourceRefusedError(expected, error.certificate, remedy) from None
            raise self._lost(str(error)) from None

    def _lost(self, got: str) -> SourceLostError:
        return SourceLostError(f"a picture from {self.name}", got, "the agent will try again")


class _Login(httpx.Auth):
    """Logs in when the camera answers 401; a host to which the camera redirects gets no password."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self._origin, self._user, self._password = _origin(httpx.URL(url)), user, password

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        response = yield request
        # Try again only if the nonce has expired: cameras lock an account after several wrong passwords.
        for must_be_stale in (False, True):
            request = response.request
            if response.status_code != 401 or _origin(request.url) != self._origin:
                return
            offers = challenges(response.headers.get_list("WWW-Authenticate"))
            if must_be_stale and not any(offer.fields.get("stale", "").lower() == "true" for offer in offers):
                return
            uri = request.url.raw_path.decode("ascii")
            answer = authorization(offers, self._user, self._password, request.method, uri)
            if answer is None:
                return
            request.headers.encoding = "latin-1"
            request.headers["Authorization"] = answer
            response = yield request


class JpegFrames:
    """Cuts a stream of bytes into JPEG pictures by their markers. A thumbnail stays inside its picture.

    Bytes between pictures are ignored: the boundaries and lengths that cameras send there are often wrong.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._at, self._in_scan = 0, False  # position in the current picture (0: before a picture); in its pixel data

    def feed(self, data: bytes) -> list[bytes]:
        """Adds received bytes, and returns the pictures that they complete; raises HttpError if one is too large."""
        self._buffer += data
        pictures: list[bytes] = []
        while self._find_marker():
            at = self._at
            first, code = self._buffer[at : at + 2]
            length = int.from_bytes(self._buffer[at + 2 : at + 4])
            if first == 0xFF and code == _EOI:
                pictures.append(bytes(self._buffer[: at + 2]))
                self._drop(at + 2)
            elif first == 0xFF and code == _SOI:  # the previous picture was truncated
                self._drop(at)
            elif first == 0xFF and code in _ALONE:
                self._at += 2 if code != _FILL else 1
            elif len(self._buffer) < at + 4:
                break
            elif first != 0xFF or length < 2:  # this is not a JPEG: search for the next one
                self._drop(2)
            else:
                self._at, self._in_scan = at + 2 + length, code == _SOS
        if len(self._buffer) > self._max_bytes:
            raise HttpError(f"a picture of more than {self._max_bytes // 1_000_000} MB")
        return pictures

    def _find_marker(self) -> bool:
        """Moves to the next marker of the picture, or to the next picture; returns False if more bytes are needed."""
        if not self._at:
            start = self._buffer.find(_START)
            del self._buffer[: start if start >= 0 else -len(_START) + 1]
            self._at, self._in_scan = 2 * (start >= 0), False
        if self._in_scan:
            marker = _MARKER.search(self._buffer, self._at)
            self._at = marker.start() if marker else max(self._at, len(self._buffer) - 1)
            self._in_scan = marker is None
        return bool(self._at) and not self._in_scan and len(self._buffer) >= self._at + 2

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._at = 0


class MjpegStream:
    """Reads JPEG pictures from an HTTP response that does not end (MJPEG), with at most `timeout_s` between two."""

    def __init__(self, answer: httpx.Response, *, timeout_s: float, max_bytes: int) -> None:
        self._answer, self._chunks, self._timeout_s = answer, answer.iter_raw(), timeout_s
        self._frames = JpegFrames(max_bytes)
        self._complete_at, self._has_given = time.monotonic(), False

    def newest(self, due: float, wait_s: float) -> bytes | None:
        """Returns the newest picture as soon as the time is `due` (monotonic seconds), and drops earlier ones.

        Returns None after `wait_s` seconds without one. For the stream's first picture it waits up to `timeout_s`, and
        then raises HttpError.
        """
        deadline = time.monotonic() + wait_s
        while True:
            with http_errors():
                data = next(self._chunks, b"")
            if not data:
                raise HttpError("a stream that the camera has ended")
            pictures, now = self._frames.feed(data), time.monotonic()
            if pictures:
                self._complete_at, self._has_given = now, True
                if now >= due:
                    return pictures[-1]
            if now - self._complete_at > self._timeout_s:
                raise HttpError(f"no complete picture within {self._timeout_s:g} s")
            if now >= deadline and self._has_given:
                return None

    def close(self) -> None:
        """Closes the connection."""
        self._answer.close()


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _kind(answer: httpx.Response) -> str:
    return str(answer.headers.get("Content-Type", "")).partition(";")[0].strip().lower()

"""A camera that gives its pictures at an address: HTTP snapshots one by one, or an endless stream of them."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO, Any

from agridistill.edge.events import Frame
from agridistill.edge.http_exchange import HttpClient, tls_context
from agridistill.edge.sources.http_login import Login
from agridistill.edge.sources.mjpeg import MjpegStream
from agridistill.edge.sources.reading import PhotoReader
from agridistill.edge.sources.source import (
    SourceLostError,
    SourceRefusedError,
    SourceSettings,
    credentials,
    public_name,
    refused,
    split_url,
)
from agridistill.errors import PhotoError

TIMEOUT_S = 10.0
MAX_BYTES = 30_000_000
_CHUNK_BYTES = 65_536
# A camera that gives nothing else is broken, and as good as away; a single damaged picture is just left out.
_MOST_UNREADABLE = 3
# With `every_s` 0 a picture that does not change would be fetched, for nothing, as fast as the network allows.
_UNCHANGED_PAUSE_S = 0.1
_STREAM = "multipart/"
# What can be no picture, whatever is in it. Cameras also say application/octet-stream, nothing at all, or nonsense.
_NO_PICTURE = re.compile(r"(text|message|audio|font)/.*|application/(.*[+-])?(json|xml|javascript|pdf|zip)")


class SnapshotSource:
    """Fetches a picture every `every_s`; one that did not change is no new frame.

    Where the answer is a stream (`multipart/x-mixed-replace`, MJPEG), it stays open, and its newest picture is taken.

    Args:
        url: `http(s)://[USER:PASSWORD@]HOST[:PORT]/…`.
        settings: how frames are taken.
        timeout_s: of the whole exchange, from the connection to the last byte.

    Raises:
        EdgeError: an address that cannot be read.
    """

    live = True

    def __init__(self, url: str, settings: SourceSettings, *, timeout_s: float = TIMEOUT_S) -> None:
        parts = split_url(url)
        self.name = public_name(parts)
        self._settings, self._timeout_s = settings, timeout_s
        self._reader = PhotoReader(settings)
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")
        self._url = bare.geturl()
        self._user, password = credentials(parts, settings)
        self._client = HttpClient(
            _StaysSafe(),
            Login(bare._replace(path="/", query="").geturl(), self._user, password),
            context=tls_context(settings.ca_file),
        )
        self._due = 0.0
        self._number = self._unreadable = 0
        self._last = b""
        self._is_stream = False
        self._stream: MjpegStream | None = None

    def open(self) -> None:
        """The first picture is fetched at once: it shows whether the camera is there."""
        self._due = 0.0

    def read(self, wait_s: float) -> Frame | None:
        """The picture, where it is due and has changed.

        Raises:
            SourceRefusedError: user and password, or the camera's certificate, are wrong.
            SourceLostError: no answer, an error, something other than a picture, or three in a row that cannot be read.
            PhotoError: a picture that is damaged, or too large.
        """
        if self._is_stream:
            data = self._streamed(wait_s)
        else:
            pause = self._due - time.monotonic()
            if pause > 0:
                time.sleep(min(pause, wait_s))
            if time.monotonic() < self._due:
                return None
            data = self._fetched()
        if data is None:
            return None
        return self._frame(data, time.time())

    def done(self, frame_identity: str) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Ends a stream; nothing stays open from one snapshot to the next."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _frame(self, data: bytes, at_s: float) -> Frame | None:
        digest = hashlib.sha256(data).digest()
        if digest == self._last:
            self._due = max(self._due, time.monotonic() + _UNCHANGED_PAUSE_S)
            if self._unreadable:
                self._count_unreadable("the same bytes as before, which are no picture")
            return None
        self._last = digest
        try:
            pixels = self._reader.read(data)
        except PhotoError as error:
            self._count_unreadable(error.got)
            raise PhotoError(error.expected, f"{self.name}: {error.got}", "check the camera") from None
        self._unreadable = 0
        self._number += 1
        return Frame(pixels, str(self._number), self._settings.plot, at_s)

    def _count_unreadable(self, got: str) -> None:
        # Once lost it stays so until a picture can be read: each further one that cannot is no return.
        self._unreadable += 1
        if self._unreadable >= _MOST_UNREADABLE:
            raise self._lost(f"{self._unreadable} answers in a row that cannot be read, the last: {got}") from None

    def _fetched(self) -> bytes | None:
        """A snapshot; None where the camera turns out to send a stream, which is read from the next call on."""
        self._due = time.monotonic() + self._settings.every_s
        with self._losses(), self._client.whole(self._url, self._timeout_s) as answer:
            if _kind(answer).startswith(_STREAM):
                self._is_stream, self._due = True, 0.0
                return None
            return self._read(answer)

    def _streamed(self, wait_s: float) -> bytes | None:
        """The stream's newest picture, where one is due; None as well where it is a snapshot now."""
        with self._losses():
            if self._stream is None:
                answer = self._client.header(self._url, self._timeout_s)
                self._stream = MjpegStream(answer, timeout_s=self._timeout_s, most_bytes=MAX_BYTES)
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
        except SourceLostError:
            raise
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403):
                raise refused(self.name, error.code, self._user) from None
            raise self._lost(f"HTTP status {error.code}") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise self._distrusted(error.reason) from None
            raise self._lost(str(error.reason)) from None
        except OSError as error:
            raise self._lost(error.strerror or str(error) or type(error).__name__) from None
        except (http.client.HTTPException, ValueError) as error:
            # Their texts may repeat the address, and with it a token.
            raise self._lost(type(error).__name__) from None

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        kind = _kind(answer)
        if _NO_PICTURE.fullmatch(kind):
            raise self._lost(f"{kind[:100]} in a picture's place")
        data = bytearray()
        while piece := answer.read1(_CHUNK_BYTES):
            data += piece
            if len(data) > MAX_BYTES:
                raise self._lost(f"more than {MAX_BYTES // 1_000_000} MB")
        expected = answer.headers.get("Content-Length", "")
        if expected.isdecimal() and len(data) < int(expected):
            raise self._lost(f"{len(data):,} of {int(expected):,} bytes")
        return bytes(data)

    def _distrusted(self, error: ssl.SSLCertVerificationError) -> SourceRefusedError:
        return SourceRefusedError(
            f"a certificate of {self.name} that is trusted", error.verify_message, "name its authority's in ca_file"
        )

    def _lost(self, got: str) -> SourceLostError:
        return SourceLostError(f"a picture from {self.name}", got, "it will be tried again")


def _kind(answer: http.client.HTTPResponse) -> str:
    return str(answer.headers.get("Content-Type", "")).partition(";")[0].strip().lower()


class _StaysSafe(urllib.request.HTTPRedirectHandler):
    """A password for an encrypted address must not follow a redirect to a plain one."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise urllib.error.URLError("a redirect from https to something else")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

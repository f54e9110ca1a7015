"""A camera that gives its newest picture at an address: HTTP snapshots."""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from typing import IO, Any

from agridistill.edge.events import Frame
from agridistill.edge.http_exchange import HttpClient, tls_context
from agridistill.edge.sources.http_login import Login
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
# What can be no picture, whatever is in it. Cameras also say application/octet-stream, nothing at all, or nonsense.
_NO_PICTURE = re.compile(r"(text|multipart|message|audio|font)/.*|application/(.*[+-])?(json|xml|javascript|pdf|zip)")


class SnapshotSource:
    """Fetches a picture every `every_s`; one that did not change is no new frame.

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
        pause = self._due - time.monotonic()
        if pause > 0:
            time.sleep(min(pause, wait_s))
        if time.monotonic() < self._due:
            return None
        self._due = time.monotonic() + self._settings.every_s
        data, at_s = self._fetched(), time.time()
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

    def done(self, frame_identity: str) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing stays open from one picture to the next."""

    def _count_unreadable(self, got: str) -> None:
        # Once lost it stays so until a picture can be read: each further one that cannot is no return.
        self._unreadable += 1
        if self._unreadable >= _MOST_UNREADABLE:
            raise self._lost(f"{self._unreadable} answers in a row that cannot be read, the last: {got}") from None

    def _fetched(self) -> bytes:
        try:
            with self._client.whole(self._url, self._timeout_s) as answer:
                return self._read(answer)
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
        kind = str(answer.headers.get("Content-Type", "")).partition(";")[0].strip().lower()
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


class _StaysSafe(urllib.request.HTTPRedirectHandler):
    """A password for an encrypted address must not follow a redirect to a plain one."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise urllib.error.URLError("a redirect from https to something else")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

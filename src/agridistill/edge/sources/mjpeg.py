"""Motion JPEG over HTTP: pictures in one endless answer, as ESP32-CAM, mjpg-streamer and OctoPrint send them."""

from __future__ import annotations

import http.client
import re
import time

_START, _MARKER = b"\xff\xd8\xff", re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_RESTARTS = range(0xD0, 0xD8)
_CHUNK_BYTES = 65_536


class JpegFrames:
    """Cuts a stream of bytes into JPEGs by their own markers.

    What stands between them does not matter: boundaries that are not those of the header, lengths that are missing or
    wrong, line ends of one character. A thumbnail within a picture is no picture.

    Args:
        most_bytes: of one picture.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._buffer = bytearray()
        self._at, self._in_scan = 0, False  # of the picture under way; 0 between two

    def feed(self, data: bytes) -> list[bytes]:
        """The pictures that are whole now; those that are cut off are left out.

        Raises:
            ValueError: one is larger than `most_bytes`.
        """
        self._buffer += data
        found = []
        while (picture := self._step()) is not None:
            found += [picture] if picture else []
        if len(self._buffer) > self._most_bytes:
            raise ValueError(f"more than {self._most_bytes // 1_000_000} MB")
        return found

    def _step(self) -> bytes | None:
        """A picture, b"" where there is more to look at, None where more bytes are needed."""
        buffer = self._buffer
        if not self._at:
            start = buffer.find(_START)
            del buffer[: start if start >= 0 else -len(_START) + 1]
            self._at, self._in_scan = 2 * (start >= 0), False
            return None if start < 0 else b""
        if self._in_scan:
            marker = _MARKER.search(buffer, self._at)
            if marker is None:
                self._at = max(self._at, len(buffer) - 1)
                return None
            self._at, self._in_scan = marker.start(), False
        if len(buffer) < self._at + 4 and not (len(buffer) >= self._at + 2 and buffer[self._at + 1] == _EOI):
            return None
        return self._segment(buffer[self._at], buffer[self._at + 1])

    def _segment(self, first: int, code: int) -> bytes:
        at, length = self._at, int.from_bytes(self._buffer[self._at + 2 : self._at + 4])
        if first == 0xFF and code == _EOI:
            picture = bytes(self._buffer[: at + 2])
            self._drop(at + 2)
            return picture
        if first == 0xFF and code == 0xFF:  # fill bytes
            self._at += 1
        elif first == 0xFF and (code in _RESTARTS or code == _TEM):
            self._at += 2
        elif first == 0xFF and code == _SOI:  # the one before it was cut off
            self._drop(at)
        elif first != 0xFF or length < 2:  # no JPEG any more: the next one is looked for
            self._drop(2)
        else:
            self._at, self._in_scan = at + 2 + length, code == _SOS
        return b""

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._at = 0


class MjpegStream:
    """The newest whole picture of an answer.

    Args:
        answer: its header has been read.
        timeout_s: without a whole picture for so long the stream is dead.
        most_bytes: of one picture.
    """

    def __init__(self, answer: http.client.HTTPResponse, *, timeout_s: float, most_bytes: int) -> None:
        self._answer, self._timeout_s = answer, timeout_s
        self._frames = JpegFrames(most_bytes)
        self._whole_at, self._has_given = time.monotonic(), False

    def newest(self, due: float, wait_s: float) -> bytes | None:
        """The first picture that is whole at `due` or later; those before it are read and dropped, or they would queue.

        The very first one is waited for: a stream without one is none.

        Args:
            due: by the monotonic clock.
            wait_s: None is given after it.

        Raises:
            OSError: the connection is cut, ends, or gives no whole picture in time.
            http.client.HTTPException: what came is no HTTP.
            ValueError: a picture is too large.
        """
        deadline = time.monotonic() + wait_s
        while True:
            data = self._answer.read1(_CHUNK_BYTES)
            if not data:
                raise OSError("the end of the stream")
            pictures, now = self._frames.feed(data), time.monotonic()
            if pictures:
                self._whole_at, self._has_given = now, True
                if now >= due:
                    return pictures[-1]
            if now - self._whole_at > self._timeout_s:
                raise OSError(f"no whole picture in {self._timeout_s:g} s")
            if now >= deadline and self._has_given:
                return None

    def close(self) -> None:
        """Ends the connection."""
        self._answer.close()

"""Sources that use OpenCV: a camera of this device, an RTSP stream, and a video file."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult

import numpy as np
from numpy.typing import NDArray

from agridistill.edge.events import Frame
from agridistill.edge.network import public_name, split_url, with_user, without_user
from agridistill.edge.sources.source import (
    Source,
    SourceEndedError,
    SourceLostError,
    SourceSettings,
    authorization,
    challenges,
    login_refused,
)
from agridistill.errors import EdgeError, MissingExtraError, PhotoError

_TIMEOUT_MS = 10_000
_RTSP_PORT = 554
_DEFAULT_FPS = 25.0
_GRAIN_S = 1e-6
_MAX_LINE, _MAX_BODY = 4096, 65_536


class _Capture(Source):
    """Base of the sources below: an OpenCV capture, which is None while the source is closed."""

    def __init__(self) -> None:
        self._cv2 = _opencv()
        self._capture: Any = None

    def close(self) -> None:
        """See `Source.close`."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _picture(self) -> NDArray[np.uint8] | None:
        """Returns the grabbed frame, `(H, W, 3)` uint8 RGB; None if it cannot be decoded."""
        worked, image = self._capture.retrieve()
        if not worked or image is None or not image.size:
            return None
        return np.asarray(self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB), np.uint8)

    def _lost(self, got: str) -> SourceLostError:
        return SourceLostError(f"frames from {self.name}", got, "the agent will try again")


class CameraSource(_Capture):
    """Reads the newest frame of a camera or a video stream every `every_s` seconds with OpenCV.

    `target` is a camera's number, its device such as "/dev/video0", or the URL of a stream.
    """

    live = True

    def __init__(self, target: int | str, settings: SourceSettings) -> None:
        super().__init__()
        self._settings, self._target = settings, target
        self.name = f"camera {target}" if isinstance(target, int) else target
        self._address = split_url(target) if isinstance(target, str) and "://" in target else None
        if self._address is not None:
            self.name = public_name(self._address)
            self._target = with_user(self._address, *settings.login(self._address))
        self._due = 0.0
        self._number = 0

    def open(self) -> None:
        """Connects to the camera; raises SourceRefusedError if it rejects user or password."""
        self.close()
        cv2 = self._cv2
        if self._address is not None:
            waits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT_MS]
            self._capture = cv2.VideoCapture(self._target, cv2.CAP_FFMPEG, waits)
        else:
            is_device = isinstance(self._target, int) or str(self._target).startswith("/dev/")
            backend = cv2.CAP_V4L2 if is_device and sys.platform.startswith("linux") else cv2.CAP_ANY
            self._capture = cv2.VideoCapture(self._target, backend)
        if not self._capture.isOpened():
            self.close()
            raise self._not_opened()
        # Not every driver supports this; `read` also keeps the driver's queue empty by reading without a pause.
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._due = 0.0

    def read(self, wait_s: float) -> Frame | None:
        """Returns the newest frame once `every_s` seconds have passed; None if that takes longer than `wait_s` seconds.

        Frames before that are read and dropped, because otherwise the driver would return them later.
        """
        deadline = time.monotonic() + wait_s
        while True:
            if not self._capture.grab():
                raise self._lost("no frame")
            now = time.monotonic()
            if now >= self._due:
                break
            if now >= deadline:
                return None
        at_s = time.time()
        self._due = now + self._settings.every_s
        pixels = self._picture()
        if pixels is None:
            raise self._lost("a frame that cannot be decoded")
        self._number += 1
        return Frame(pixels, str(self._number), self._settings.plot, at_s)

    def _not_opened(self) -> SourceLostError:
        if self._address is not None and self._address.scheme == "rtsp":
            user, password = self._settings.login(self._address)
            status = rtsp_status(without_user(self._address), user, password)
            if status in (401, 403):
                return login_refused(self.name, status, user)
            if status is not None and status >= 300:
                return self._lost(f"RTSP status {status}")
        return self._lost("no answer")


class VideoSource(_Capture):
    """Reads a video file with OpenCV: one frame for every `every_s` seconds of the video, or all frames if that is 0.

    Frames for which `seen`, called with their `Frame.identity`, returns True are skipped.
    """

    live = False

    def __init__(self, path: Path, settings: SourceSettings, seen: Callable[[str], bool]) -> None:
        super().__init__()
        self.name, self._path = str(path), path
        self._settings, self._seen = settings, seen
        self._next = 0  # number of the next frame; earlier ones were returned by `read`, and may not be stored yet
        self._file = ""
        self._fps, self._index, self._due_s = _DEFAULT_FPS, -1, 0.0

    def open(self) -> None:
        """Opens the video file; raises EdgeError if OpenCV cannot read it."""
        self.close()
        try:
            found = self._path.stat()
        except OSError as error:
            raise self._lost(error.strerror or "an error") from None
        file = f"{self._path.absolute()}\0{found.st_mtime_ns}\0{found.st_size}"
        if file != self._file:
            self._file, self._next = file, 0
        self._capture = self._cv2.VideoCapture(str(self._path), self._cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            self.close()
            raise EdgeError("a video that OpenCV can read", f"'{self._path}'", "convert it, for example with ffmpeg")
        fps = self._capture.get(self._cv2.CAP_PROP_FPS)
        self._fps = fps if np.isfinite(fps) and fps > 0 else _DEFAULT_FPS
        self._index, self._due_s = -1, 0.0

    def read(self, wait_s: float) -> Frame | None:
        """Returns the next frame that is due and has no detection yet; None if the search takes more than `wait_s`."""
        deadline = time.monotonic() + wait_s
        while self._capture.grab():
            self._index += 1
            if self._is_due() and self._index >= self._next:
                self._next = self._index + 1
                identity = hashlib.sha256(os.fsencode(f"{self._file}\0{self._index}")).hexdigest()[:32]
                if not self._seen(identity):
                    pixels = self._picture()
                    if pixels is None:
                        got = f"frame {self._index} of '{self._path}', which is damaged"
                        raise PhotoError("a frame that can be decoded", got, "copy or convert the video again")
                    return Frame(pixels, str(self._index), self._settings.plot, time.time(), identity)
            if time.monotonic() >= deadline:
                return None
        if not self._path.exists():
            raise self._lost("a file that is gone")
        raise SourceEndedError(f"all frames of '{self._path}' have been read")

    def is_busy(self) -> bool:
        """Returns True: between two frames that are due, many may have to be decoded; `read` reports the end."""
        return True

    def _is_due(self) -> bool:
        # Phones record frames at uneven times, so use the file's times; without them, use the frame rate.
        position_s = self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000
        at_s = position_s if position_s > 0 else self._index / self._fps
        if at_s + _GRAIN_S < self._due_s:
            return False
        every_s = self._settings.every_s
        self._due_s = every_s * (1 + (at_s + _GRAIN_S) // every_s) if every_s else 0.0
        return True


def _opencv() -> Any:
    # OpenCV and FFmpeg log failures to stderr, including the camera's address with its password: turn that off.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        # Imported by name, so that type checking gives the same result with and without OpenCV.
        cv2: Any = importlib.import_module("cv2")
    except ImportError as error:
        raise MissingExtraError("OpenCV for this source", f"{error}", "pip install 'agridistill[camera]'") from None
    # OpenCV 5 has `setLogLevel` only in utils.logging, OpenCV 4.10 only in cv2.
    for place in (getattr(getattr(cv2, "utils", None), "logging", None), cv2):
        with contextlib.suppress(AttributeError):
            place.setLogLevel(0)  # type: ignore[union-attr]
    return cv2


def rtsp_status(address: SplitResult, user: str | None, password: str, *, timeout_s: float = 5) -> int | None:
    """Sends DESCRIBE to a camera and returns the RTSP status of its response; None if it does not respond.

    OpenCV only reports that a camera could not be opened. The status shows whether the password is wrong (401) or the
    camera is away. `address` is without user and password; a `user` of None sends no login. `timeout_s` limits the
    connection and each read.
    """
    peer, url = (address.hostname or "", address.port or _RTSP_PORT), address.geturl()
    try:
        with socket.create_connection(peer, timeout_s) as connection, connection.makefile("rb") as stream:
            status, headers = _describe(connection, stream, url, [])
            if status == 401 and user is not None:
                offers = challenges(headers.get_all("WWW-Authenticate", []))
                answer = authorization(offers, user, password, "DESCRIBE", url)
                if answer is not None:
                    status, _ = _describe(connection, stream, url, [f"Authorization: {answer}"])
            return status
    except (OSError, ValueError, http.client.HTTPException):
        return None


def _describe(
    connection: socket.socket, stream: IO[bytes], url: str, more: list[str]
) -> tuple[int, http.client.HTTPMessage]:
    lines = [f"DESCRIBE {url} RTSP/1.0", f"CSeq: {1 + len(more)}", "Accept: application/sdp", *more]
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    version, _, rest = stream.readline(_MAX_LINE).decode("latin-1").partition(" ")
    if not version.startswith("RTSP/"):
        raise ValueError("the camera's response is not RTSP")
    headers = http.client.parse_headers(stream)
    stream.read(min(int(headers.get("Content-Length", "0")), _MAX_BODY))
    return int(rest[:3]), headers

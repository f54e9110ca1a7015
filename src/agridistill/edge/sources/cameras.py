"""Frames through OpenCV: a camera of this device, an RTSP stream, a video file."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agridistill.edge.events import Frame
from agridistill.edge.sources.rtsp_status import rtsp_status
from agridistill.edge.sources.source import (
    SourceEndedError,
    SourceLostError,
    SourceSettings,
    credentials,
    public_name,
    refused,
    split_url,
    with_credentials,
)
from agridistill.errors import EdgeError, MissingExtraError, PhotoError

_TIMEOUT_MS = 10_000
_RTSP_PORT = 554
_USUAL_FPS = 25.0
_GRAIN_S = 1e-6


class CameraSource:
    """The newest frame of a camera or a stream, every `every_s`. Frames between are passed over, not queued.

    Args:
        target: a camera's number, its device, or the address of a stream.
        settings: how frames are taken.

    Raises:
        EdgeError: an address that cannot be read.
        MissingExtraError: no OpenCV.
    """

    live = True

    def __init__(self, target: int | str, settings: SourceSettings) -> None:
        self._cv2 = _opencv()
        self._settings, self._target = settings, target
        self.name = f"camera {target}" if isinstance(target, int) else target
        self._is_stream = isinstance(target, str) and "://" in target
        if isinstance(target, str) and self._is_stream:
            parts = split_url(target)
            self.name, self._target = public_name(parts), with_credentials(parts, settings)
        self._capture: Any = None
        self._due = 0.0
        self._number = 0

    def open(self) -> None:
        """Connects.

        Raises:
            SourceLostError: it is not there, or taken by another program.
        """
        self.close()
        cv2 = self._cv2
        if self._is_stream:
            waits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT_MS]
            self._capture = cv2.VideoCapture(self._target, cv2.CAP_FFMPEG, waits)
        else:
            is_device = isinstance(self._target, int) or str(self._target).startswith("/dev/")
            backend = cv2.CAP_V4L2 if is_device and sys.platform.startswith("linux") else cv2.CAP_ANY
            self._capture = cv2.VideoCapture(self._target, backend)
        if not self._capture.isOpened():
            self.close()
            raise self._not_opened()
        # Not every driver has it: reading without a pause keeps its queue empty as well.
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._due = 0.0

    def read(self, wait_s: float) -> Frame | None:
        """The first frame after the pause; those before it are drained, or the driver would give them late.

        Raises:
            SourceLostError: no frame came.
        """
        if self._capture is None:
            raise self._lost("a closed one")
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
        pixels = _retrieved(self._cv2, self._capture)
        if pixels is None:
            raise self._lost("a frame that cannot be decoded")
        self._number += 1
        return Frame(pixels, str(self._number), self._settings.plot, at_s)

    def done(self, frame_identity: str) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Lets go of the camera."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _not_opened(self) -> SourceLostError:
        if self._is_stream and (parts := split_url(str(self._target))).scheme == "rtsp":
            user, password = credentials(parts, self._settings)
            bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
            status = rtsp_status(parts.hostname or "", parts.port or _RTSP_PORT, bare, user, password)
            if status in (401, 403):
                return refused(self.name, status, user)
            if status is not None and status >= 300:
                return self._lost(f"RTSP status {status}")
        return self._lost("no answer")

    def _lost(self, got: str) -> SourceLostError:
        return SourceLostError(f"frames from {self.name}", got, "it will be tried again")


class VideoSource:
    """Frames of a video file, every `every_s` of the video's own time; 0 takes all.

    Args:
        path: of the file.
        settings: how frames are taken.
        seen: whether a frame was decided on in an earlier life of the agent.

    Raises:
        MissingExtraError: no OpenCV.
    """

    live = False

    def __init__(self, path: Path, settings: SourceSettings, seen: Callable[[str], bool]) -> None:
        self._cv2 = _opencv()
        self.name, self._path = str(path), path
        self._settings, self._seen = settings, seen
        self._capture: Any = None
        self._next = 0  # frames before it have been through
        self._file = ""
        self._fps, self._index, self._due_s = _USUAL_FPS, -1, 0.0

    def open(self) -> None:
        """Starts at the beginning; frames that have been through are passed over.

        Raises:
            SourceLostError: the file is gone.
            EdgeError: it is no video that OpenCV can read.
        """
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
            raise EdgeError("a video that can be read", f"'{self._path}'", "convert it, for instance with ffmpeg")
        fps = self._capture.get(self._cv2.CAP_PROP_FPS)
        self._fps = fps if np.isfinite(fps) and fps > 0 else _USUAL_FPS
        self._index, self._due_s = -1, 0.0

    def read(self, wait_s: float) -> Frame | None:
        """The next frame that is due and new.

        Raises:
            PhotoError: a frame that cannot be decoded.
            SourceEndedError: the video is through.
            SourceLostError: the file is gone.
        """
        if self._capture is None:
            raise self._lost("a closed one")
        deadline = time.monotonic() + wait_s
        while self._grab():
            if self._is_due():
                identity = hashlib.sha256(os.fsencode(f"{self._file}\0{self._index}")).hexdigest()[:32]
                if self._index >= self._next:
                    self._next = self._index + 1
                    if not self._seen(identity):
                        return self._frame(identity)
            if time.monotonic() >= deadline:
                return None
        if not self._path.exists():
            raise self._lost("a file that is gone")
        raise SourceEndedError("a frame", f"the end of '{self._path}'", "name another video")

    def done(self, frame_identity: str) -> None:
        """The video stays as it is."""

    def close(self) -> None:
        """Lets go of the file."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _grab(self) -> bool:
        self._index += 1
        return bool(self._capture.grab())

    def _is_due(self) -> bool:
        # Phones write frames at uneven times; where the file does not tell them, they are even.
        told_s = self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000
        at_s = told_s if told_s > 0 else self._index / self._fps
        if at_s + _GRAIN_S < self._due_s:
            return False
        every_s = self._settings.every_s
        self._due_s = every_s * (1 + (at_s + _GRAIN_S) // every_s) if every_s else 0.0
        return True

    def _frame(self, identity: str) -> Frame:
        pixels = _retrieved(self._cv2, self._capture)
        if pixels is None:
            raise PhotoError("a frame that can be decoded", f"frame {self._index} of '{self._path}'", "convert it")
        return Frame(pixels, str(self._index), self._settings.plot, time.time(), identity)

    def _lost(self, got: str) -> SourceLostError:
        return SourceLostError(f"the video '{self._path}'", got, "it will be tried again")


def _retrieved(cv2: Any, capture: Any) -> NDArray[np.uint8] | None:
    worked, image = capture.retrieve()
    if not worked or image is None or not image.size:
        return None
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _opencv() -> Any:
    # Both tell of failures by themselves, on stderr, with the address and the password in it.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        # By its name: the type checker must not depend on whether it is there.
        cv2: Any = importlib.import_module("cv2")
    except ImportError as error:
        raise MissingExtraError("OpenCV", f"{error}", "pip install 'agridistill[camera]'") from None
    # OpenCV 5 has it in a module of its own alone, OpenCV 4.10 at the top alone.
    for place in (getattr(getattr(cv2, "utils", None), "logging", None), cv2):
        with contextlib.suppress(AttributeError):
            place.setLogLevel(0)  # type: ignore[union-attr]
    return cv2

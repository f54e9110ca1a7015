"""Sources of frames: a watched folder, HTTP cameras, and cameras, streams and videos through OpenCV.

`open_source` creates the source that a text in the settings names; `LatestFrame` reads it in a thread and reconnects.
To add a kind of source, implement `Source` in a new module, and add it to `_CHOICES`, `source_kind` and `open_source`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from agridistill.edge.events import Frame, duration_words
from agridistill.edge.network import Backoff, split_url, without_user
from agridistill.edge.sources.folder import FolderSource
from agridistill.edge.sources.source import (
    Attempts,
    Source,
    SourceEndedError,
    SourceLostError,
    SourceRefusedError,
    SourceSettings,
)
from agridistill.errors import EdgeError, PhotoError

__all__ = [
    "STILL_AFTER_S",
    "LatestFrame",
    "SourceEndedError",
    "SourceLostError",
    "SourceRefusedError",
    "SourceSettings",
    "open_source",
    "source_identity",
    "source_kind",
]

logger = logging.getLogger(__name__)

_READ_S = 0.25
_STOP_S = 0.8
STILL_AFTER_S = 600.0  # a camera is most likely stuck if its picture has not changed for this time
_MAX_POINTS_A_SIDE = 256
# The noise of a working sensor changes more points than this; a clock shown in a stuck picture changes fewer.
_SAME_LEVELS, _CHANGED_SHARE = 2, 0.01
# Pictures of nearly one colour, such as a black one at night, do not show whether a camera is stuck.
_PLAIN_LEVELS, _PLAIN_SHARE = 8, 0.02
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"})
_CHOICES = "a source: a folder, http(s)://…, rtsp://…, /dev/videoN, a camera's number or a video file"
_NUMBER, _DEVICE = re.compile(r"\d{1,3}"), re.compile(r"/dev/video\d+")


def open_source(
    text: str,
    *,
    settings: SourceSettings,
    seen: Callable[[str], bool],
    bad: Callable[[str], None] = lambda key: None,
    attempts: Attempts | None = None,
) -> Source:
    """Creates the source that `text` names, without opening it.

    Args:
        seen: returns whether a frame, given by its `Frame.identity`, has a detection, or whether `bad` was
            called with this key.
        bad: called with a key for each photo in a folder that can never be decoded.
        attempts: records which large photo is being read; None records nothing.

    Raises:
        EdgeError: `text` names no source, or a setting does not apply to this kind of source.
        MissingExtraError: the source needs OpenCV, which is not installed.
    """
    if settings.ca_file is not None and not text.lower().startswith("https://"):
        raise EdgeError("an https:// source, because ca_file is set", "another source", "remove ca_file")
    path = Path(text)
    if settings.time == "photo" and ("://" in text or not path.is_dir()):
        raise EdgeError('a folder of photos, because time = "photo" is set', "another source", "remove time")
    kind = source_kind(text)
    if kind == "folder":
        return FolderSource(path, settings, seen, bad=bad, attempts=attempts)
    # Imported here, because OpenCV and httpx take time and memory, and a folder needs neither.
    if kind == "http":
        from agridistill.edge.sources.snapshots import SnapshotSource

        return SnapshotSource(text, settings)
    from agridistill.edge.sources.cameras import CameraSource, VideoSource

    if kind == "video":
        return VideoSource(path, settings, seen)
    return CameraSource(int(text) if kind == "number" else text, settings)


def source_identity(text: str) -> str:
    """Returns an id of a source for the history: a hash of its resolved path, or of its URL without the login."""
    if "://" in text:
        text = without_user(split_url(text)).geturl()
    elif Path(text).exists():
        text = str(Path(text).resolve())
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


def source_kind(text: str) -> str:
    """Returns folder, http, stream, device, number (of a camera) or video; raises EdgeError if `text` is no source."""
    if "://" in text:
        scheme = split_url(text).scheme
        if scheme in ("http", "https"):
            return "http"
        if scheme in ("rtsp", "rtsps"):
            return "stream"
        raise EdgeError(_CHOICES, f"an address with {scheme}://", "name another source")
    path = Path(text)
    if text and path.is_dir():
        return "folder"
    if _NUMBER.fullmatch(text):
        return "number"
    if _DEVICE.fullmatch(text):
        return "device"
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return "video"
    missing = "" if path.exists() else ", which does not exist"
    raise EdgeError(_CHOICES, f"'{text}'{missing}", "correct the source")


class Stillness:
    """Detects a stuck camera: its pictures have nearly the same pixels, even if their bytes differ."""

    def __init__(self) -> None:
        self._last: NDArray[np.int16] | None = None

    def repeats(self, pixels: NDArray[np.uint8]) -> bool:
        """Returns whether a picture, `(H, W, 3)` uint8, nearly equals the last one for which this returned False."""
        step = max(1, max(pixels.shape[:2]) // _MAX_POINTS_A_SIDE)
        points = pixels[::step, ::step].astype(np.int16)
        last = self._last
        if last is not None and last.shape == points.shape:
            differs = np.abs(points - np.median(points, axis=(0, 1))) > _PLAIN_LEVELS
            is_plain = differs.any(axis=-1).mean() < _PLAIN_SHARE
            changed = (np.abs(points - last) > _SAME_LEVELS).any(axis=-1)
            if not is_plain and changed.mean() < _CHANGED_SHARE:
                return True
        self._last = points
        return False


class LatestFrame:
    """Reads a source in its own thread, inside a `with` block, and holds one frame.

    That is the newest frame of a camera, or the next one of a folder or video. A camera's picture that repeats the one
    before is dropped. If all pictures repeat for `still_after_s` seconds, the log reports it. A lost source is opened
    again after a pause.

    Args:
        source: the source; only this object's thread opens, reads and closes it.
        backoff: pauses before a lost source is opened again; None for 1 s to 60 s.
        end_after_s: seconds without a new photo or a change in its folder after which a folder or video has ended; None
            for never.

    Attributes:
        skipped: number of a camera's frames that a newer one has replaced.
        unreadable: number of photos that could not be read.
    """

    def __init__(
        self,
        source: Source,
        *,
        backoff: Backoff | None = None,
        still_after_s: float = STILL_AFTER_S,
        end_after_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._end_after_s = source, end_after_s
        self._read_s = _READ_S if end_after_s is None else min(_READ_S, end_after_s / 50)
        self.name = source.name
        self.skipped = self.unreadable = 0
        self._backoff = backoff or Backoff(1.0, 60.0)
        self._changed = threading.Condition()
        self._waiting: Frame | PhotoError | None = None
        self._end: BaseException | None = None
        self._lost_at: float | None = None
        self._refusal: str | None = None
        self._stillness, self._still_after_s, self._clock = Stillness(), still_after_s, clock
        self._new_at, self._is_still = clock(), False
        self._stop = threading.Event()
        # A daemon thread: the process can end even if a camera's driver blocks forever.
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stops reading; returns within a second, even if the source is away or its driver does not answer."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            self._source.abandon()

    def take(self, wait_s: float) -> Frame | None:
        """Returns the next frame; None if none arrives within `wait_s` seconds, or after the `with` block.

        Raises:
            PhotoError: the next photo cannot be read; the following call returns the one after it.
            SourceEndedError: the source has no more frames.
            Exception: the error that has ended the thread which reads the source.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._end or self._stop.is_set(), wait_s)
            found, self._waiting = self._waiting, None
            self._changed.notify_all()
            if isinstance(found, PhotoError):
                raise found
            if found is None and self._end is not None:
                raise self._end
            return found

    def done(self, frame_identity: str) -> None:
        """See `Source.done`."""
        self._source.done(frame_identity)

    @property
    def has_backlog(self) -> bool:
        """See `Source.has_backlog`."""
        return self._source.has_backlog()

    @property
    def lost_for_s(self) -> float | None:
        """Seconds since the source was lost; None while it can be read."""
        lost_at = self._lost_at
        return None if lost_at is None else time.monotonic() - lost_at

    @property
    def trouble(self) -> str | None:
        """Why a source that answers cannot be used, such as "status 401"; None if it can be used, or is away."""
        if self._is_still:
            return f"its picture has not changed for {duration_words(self._clock() - self._new_at)}"
        return self._refusal

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._read_until_lost()
                except SourceLostError as error:
                    self._report_loss(error)
                self._stop.wait(self._backoff.pause_s())
        except BaseException as error:  # `take` raises it again in the agent's thread
            with self._changed:
                self._end = error
                self._changed.notify_all()

    def _report_loss(self, error: SourceLostError) -> None:
        """Logs a loss once, and once more if the source changes between "away" and "refuses the agent"."""
        refusal = error.got if isinstance(error, SourceRefusedError) else None
        if self._lost_at is None or (refusal is None) != (self._refusal is None):
            state = "answers, but cannot be used" if refusal else "is away"
            logger.warning("the source %s %s: %s; %s", self.name, state, error.got, error.remedy)
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            self._backoff.reset()
        self._refusal = refusal
        if refusal is not None:
            self._backoff.skip_to_longest()  # cameras lock an account after several wrong passwords

    def _read_until_lost(self) -> None:
        try:
            self._source.open()
            self._new_at, self._is_still = self._clock(), False
            idle_since = time.monotonic()
            while not self._stop.is_set():
                found: Frame | PhotoError | None
                try:
                    found = self._source.read(self._read_s)
                except PhotoError as error:
                    found = error
                if self._lost_at is not None:
                    logger.warning("the source %s is back", self.name)
                    self._lost_at = self._refusal = None
                if self._source.live and not isinstance(found, PhotoError):
                    found = self._new_picture(found)
                if found is not None:
                    self._offer(found)
                if self._end_after_s is None:
                    continue
                if found is not None or self._source.is_busy():
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > self._end_after_s or self._source.is_quiet(self._end_after_s):
                    raise SourceEndedError(f"there are no more new photos in '{self.name}'")
        finally:
            self._source.close()
            self._is_still = False

    def _new_picture(self, frame: Frame | None) -> Frame | None:
        """Returns the frame, or None if it repeats the last picture; logs a stuck camera and its end."""
        if frame is not None and not self._stillness.repeats(frame.pixels):
            self._new_at = self._clock()
            if self._is_still:
                self._is_still = False
                logger.warning("the picture of %s changes again and is used", self.name)
            return frame
        if not self._is_still and self._clock() - self._new_at >= self._still_after_s:
            self._is_still = True
            logger.warning(
                "the picture of %s has not changed for %s: the camera may be stuck, and it is ignored until it changes",
                self.name,
                duration_words(self._clock() - self._new_at),
            )
        return None

    def _offer(self, found: Frame | PhotoError) -> None:
        with self._changed:
            self.unreadable += isinstance(found, PhotoError)
            if not self._source.live:
                self._changed.wait_for(lambda: self._waiting is None or self._stop.is_set())
            if isinstance(self._waiting, Frame):
                if isinstance(found, PhotoError):
                    return  # keep the usable frame
                self.skipped += self._source.live
            self._waiting = found
            self._changed.notify_all()

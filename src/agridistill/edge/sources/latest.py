"""Reader thread: opens a source, reads it, comes back to it when it was away, and lets at most one frame wait."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from agridistill.edge.events import Frame
from agridistill.edge.sources.source import Source, SourceEndedError, SourceLostError, SourceRefusedError
from agridistill.edge.sources.stillness import Stillness
from agridistill.edge.words import duration_words
from agridistill.errors import PhotoError

logger = logging.getLogger(__name__)

_READ_S = 0.25
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_STOP_S = 0.8
STILL_AFTER_S = 600.0
"""Where nothing moves and no light changes for so long, a picture is most likely stuck."""


class LatestFrame:
    """The latest frame of a live source, or the next one of a source that waits.

    A live picture that repeats the one before it is no new frame; without a new one for long, that is reported.

    Attributes:
        skipped: live frames that a newer one replaced before they were taken.
        unreadable: photos that could not be read.

    Args:
        source: only this object's thread opens, reads and closes it.
        first_pause_s: before a lost source is tried again; it doubles each time.
        longest_pause_s: where that ends.
        still_after_s: a live source that answers and gives no new picture for so long is stuck.
        clock: seconds, never set back.
        end_after_s: a source that waits ends when nothing has come from it for so long; None never ends it.
    """

    def __init__(
        self,
        source: Source,
        *,
        first_pause_s: float = _FIRST_PAUSE_S,
        longest_pause_s: float = _LONGEST_PAUSE_S,
        still_after_s: float = STILL_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
        end_after_s: float | None = None,
    ) -> None:
        self.source, self._end_after_s = source, end_after_s
        self.skipped = self.unreadable = 0
        self._pauses = (first_pause_s, longest_pause_s)
        self._changed = threading.Condition()
        self._waiting: Frame | PhotoError | None = None
        self._end: BaseException | None = None
        self._lost_at: float | None = None
        self._refusal: str | None = None
        self._stillness, self._still_after_s, self._clock = Stillness(), still_after_s, clock
        self._new_at, self._is_still = clock(), False
        self._stop = threading.Event()
        # A camera's driver may block for good: the process must be able to end all the same.
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def stop(self) -> None:
        """Ends within a second, also while the source is away, or its driver does not answer."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def take(self, wait_s: float) -> Frame | None:
        """The frame that waits; None where none came within `wait_s`, or after `stop`.

        Raises:
            PhotoError: a photo that cannot be read, in a frame's place.
            SourceEndedError: there will be no more frames.
            Exception: whatever else ended the reader.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting is not None or self._end is not None or self._stop.is_set(), wait_s
            )
            found, self._waiting = self._waiting, None
            self._changed.notify_all()
            if isinstance(found, PhotoError):
                raise found
            if found is None and self._end is not None:
                raise self._end
            return found

    @property
    def lost_for_s(self) -> float | None:
        """For how long the source has been away; None while it is there."""
        lost_at = self._lost_at
        return None if lost_at is None else time.monotonic() - lost_at

    @property
    def trouble(self) -> str | None:
        """What is wrong with a source that answers; None where nothing is, and while it is away."""
        if self._is_still:
            return f"its picture has not changed for {duration_words(self._clock() - self._new_at)}"
        return self._refusal

    def _run(self) -> None:
        try:
            pause, longest = self._pauses
            while not self._stop.is_set():
                try:
                    self._read_until_lost()
                except SourceLostError as error:
                    if self._lost_at is None:
                        # It was there since the last loss, so the pauses begin anew.
                        pause = self._pauses[0]
                    self._report_loss(error)
                    if self._refusal is not None:
                        # Cameras lock an account after some wrong passwords.
                        pause = longest
                # Many agents must not come back to one camera in one moment.
                self._stop.wait(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, longest)
        except BaseException as error:  # the agent decides on it: a thread that dies unheard would be a silent agent
            with self._changed:
                self._end = error
                self._changed.notify_all()

    def _report_loss(self, error: SourceLostError) -> None:
        """Once, and again where a source that was away refuses, or the other way round."""
        refusal = error.got if isinstance(error, SourceRefusedError) else None
        if self._lost_at is None or (refusal is None) != (self._refusal is None):
            logger.warning("the source %s %s (%s)", self.source.name, "refuses" if refusal else "is away", error)
        if self._lost_at is None:
            self._lost_at = time.monotonic()
        self._refusal = refusal

    def _read_until_lost(self) -> None:
        try:
            self.source.open()
            self._new_at, self._is_still = self._clock(), False
            idle_since = time.monotonic()
            while not self._stop.is_set():
                found: Frame | PhotoError | None
                try:
                    found = self.source.read(_READ_S)
                except PhotoError as error:
                    found = error
                if self._lost_at is not None:
                    logger.warning("the source %s is back", self.source.name)
                    self._lost_at = self._refusal = None
                if self.source.live:
                    found = self._changed_picture(found)
                if found is not None:
                    self._offer(found)
                    idle_since = time.monotonic()
                elif self._end_after_s is not None and time.monotonic() - idle_since > self._end_after_s:
                    raise SourceEndedError("another photo", f"none in '{self.source.name}'", "all are decided on")
        finally:
            self.source.close()
            self._is_still = False

    def _changed_picture(self, found: Frame | PhotoError | None) -> Frame | PhotoError | None:
        """What was found, but for a picture that repeats the one before it."""
        is_new = isinstance(found, Frame) and not self._stillness.repeats(found.pixels)
        if is_new:
            self._new_at = self._clock()
            if self._is_still:
                self._is_still = False
                logger.warning("the picture of %s changes again", self.source.name)
        elif not self._is_still and self._clock() - self._new_at >= self._still_after_s:
            self._is_still = True
            logger.warning(
                "the picture of %s has not changed for %s: a stuck camera? It counts as no leaf until it changes",
                self.source.name,
                duration_words(self._clock() - self._new_at),
            )
        return found if is_new or isinstance(found, PhotoError) else None

    def _offer(self, found: Frame | PhotoError) -> None:
        with self._changed:
            self.unreadable += isinstance(found, PhotoError)
            if not self.source.live:
                self._changed.wait_for(lambda: self._waiting is None or self._stop.is_set())
            if isinstance(self._waiting, Frame):
                if isinstance(found, PhotoError):
                    return  # a frame that can be used goes before one that cannot
                self.skipped += self.source.live
            self._waiting = found
            self._changed.notify_all()

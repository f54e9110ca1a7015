"""A folder that photos come into, by whatever means: copied, moved, uploaded, slowly."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from agridistill.edge.events import Frame
from agridistill.edge.sources.listing import MOST, Listing, Photo
from agridistill.edge.sources.photo_time import photo_time
from agridistill.edge.sources.reading import PhotoReader
from agridistill.edge.sources.source import Attempts, SourceSettings
from agridistill.edge.words import sendable
from agridistill.errors import OutboxError, PhotoError
from agridistill.preprocess import UnreachablePhotoError

logger = logging.getLogger(__name__)

SETTLE_S = 2.0
_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG", b"IEND"
_MOST_DIGESTED_BYTES = 32_000_000
_TAIL_BYTES = 12  # PNG's last part: its length, its name and a checksum


class FolderSource:
    """New photos below a folder, oldest first. The first subfolder's name is the plot.

    A JPEG or a PNG is taken as soon as it is whole. Formats without an end mark, and files that do not decode, are
    looked at again once nothing has been written for `settle_s`: a copy may have its full size from its beginning.
    What the system refuses (rights, a disk, a network) is tried again after pauses of up to a minute.

    Args:
        root: the folder. Hidden names, what machines keep for themselves (`@eaDir`, …), `.part` and `.tmp` are passed
            over; links to folders are followed, each folder once.
        settings: how photos are taken.
        seen: whether a photo was decided on in an earlier life of the agent; asked once for each.
        bad: called with a key for each photo that can never be decoded; `seen` is asked for it later.
        attempts: see `open_source`.
        settle_s: see above.
    """

    live = False

    def __init__(
        self,
        root: Path,
        settings: SourceSettings,
        seen: Callable[[str], bool],
        *,
        bad: Callable[[str], None] = lambda key: None,
        attempts: Attempts | None = None,
        settle_s: float = SETTLE_S,
    ) -> None:
        self.name = sendable(str(root))
        self._settings, self._seen, self._bad, self._settle_s = settings, seen, bad, settle_s
        self._reader = PhotoReader(settings, attempts)
        self._listing = Listing(root)
        self._pending: list[Photo] = []
        # Photos that were not whole when they were tried, and since when they are as they are.
        self._growing: dict[str, tuple[Photo, float]] = {}
        self._handed: dict[str, Photo] = {}
        # Photos that were taken at their end mark, while they may still have been written to, and what they held.
        self._lately: dict[str, tuple[Photo, bytes]] = {}
        self._told_undeletable = False
        self._told_unreachable: Photo | None = None
        self._told_untimed: set[str] = set()

    def open(self) -> None:
        """Begins to watch.

        Raises:
            SourceLostError: the folder is not there.
        """
        self._listing.open()

    def read(self, wait_s: float) -> Frame | None:
        """The oldest photo that is whole and new.

        Raises:
            PhotoError: one that cannot be read although nobody writes to it any more; told once.
            SourceLostError: the folder is gone.
        """
        deadline = time.monotonic() + wait_s
        while True:
            self._look_around()
            frame = self._next(deadline)
            left = deadline - time.monotonic()
            if frame is not None or left <= 0:
                return frame
            self._listing.wait(left, poll=bool(self._growing or self._pending))

    def done(self, frame_identity: str) -> None:
        """Forgets the photo, or deletes it where that is wanted and it is still the same one."""
        photo = self._handed.pop(frame_identity, None)
        if photo is not None:
            self._let_go(photo)

    def close(self) -> None:
        """Ends to watch."""
        self._listing.close()

    def _look_around(self) -> None:
        for name in self._listing.news():
            photo = self._listing.now(name)
            if photo is None:
                continue
            if len(self._pending) < MOST:
                heapq.heappush(self._pending, photo)
            else:
                self._listing.ask_again()
        if self._listing.is_due(idle=not self._pending and len(self._growing) < MOST):
            self._pending = self._listing.search()
            told = self._told_unreachable
            if told is not None and self._listing.now(told.name) != told:
                self._tell_reachable()

    def _next(self, deadline: float) -> Frame | None:
        for name in list(self._growing):
            frame = self._considered(name)
            if frame is not None:
                return frame
        while self._pending:
            frame = self._considered(heapq.heappop(self._pending).name)
            if frame is not None or time.monotonic() > deadline:
                return frame
        return None

    def _considered(self, name: str) -> Frame | None:
        photo = self._listing.now(name)
        if photo is None or self._listing.knows(photo):
            self._growing.pop(name, None)
            return None
        before, since = self._growing.get(name, (None, 0.0))
        has_settled = photo == before and time.monotonic() - since >= self._settle_s
        if photo == before and not has_settled:
            return None
        if before is None and len(self._growing) >= MOST:
            self._listing.ask_again()
            return None
        if photo != before and self._is_through(photo):
            self._forget(photo)
            return None
        if self._is_same_again(photo):
            return None
        return self._tried(photo, has_settled=has_settled)

    def _is_through(self, photo: Photo) -> bool:
        if self._seen(photo.identity):
            self._let_go(photo)
            return True
        return self._seen(_bad_key(photo))

    def _is_same_again(self, photo: Photo) -> bool:
        """Whether only its time is another one: `scp -p` and others set it after the content, and it is one photo."""
        before, digest = self._lately.get(photo.name, (None, b""))
        if before is None or before.size != photo.size or _digest(self._listing.root / photo.name) != digest:
            return False
        if not self._seen(before.identity):
            # Not committed yet: after a kill this is the photo that has to be decided on.
            self._growing[photo.name] = (photo, time.monotonic())
            return True
        with contextlib.suppress(OutboxError):
            self._bad(_bad_key(photo))
        self._forget(photo)
        self._let_go(photo)
        return True

    def _tried(self, photo: Photo, *, has_settled: bool) -> Frame | None:
        """Decodes it; without success it is to be looked at again, or is a bad photo once it has settled."""
        path = self._listing.root / photo.name
        at_s = time.time()
        if has_settled or _has_end_mark(path):
            error = None
            digest = b"" if has_settled else _digest(path)
            try:
                pixels = self._reader.read(path, photo.identity)
            except UnreachablePhotoError as found:
                self._set_aside(photo, found)
                return None
            except PhotoError as found:
                error = found
            taken_s = self._taken_s(photo, at_s) if error is None else None
            if self._listing.now(photo.name) == photo:
                if error is None:
                    self._forget(photo)
                    self._note(photo, digest)
                    if self._settings.after == "delete":
                        self._handed[photo.identity] = photo
                    return Frame(pixels, sendable(photo.name), self._plot(photo), at_s, photo.identity, taken_s)
                if has_settled:
                    self._forget(photo)
                    # Without it the photo is only told again after a restart.
                    with contextlib.suppress(OutboxError):
                        self._bad(_bad_key(photo))
                    raise error
        self._growing[photo.name] = (photo, time.monotonic())
        return None

    def _taken_s(self, photo: Photo, at_s: float) -> float | None:
        """The photo's own time, where that is wanted; each kind of photo without a usable one is reported once."""
        if self._settings.time != "photo":
            return None
        taken_s, problem = photo_time(self._listing.root / photo.name, at_s)
        if problem and problem not in self._told_untimed:
            self._told_untimed.add(problem)
            logger.warning("%s: %s; such photos count by when they come", sendable(photo.name), problem)
        return taken_s

    def _note(self, photo: Photo, digest: bytes) -> None:
        self._lately.pop(photo.name, None)
        if digest:
            self._lately[photo.name] = (photo, digest)
        if len(self._lately) > MOST:
            del self._lately[next(iter(self._lately))]

    def _forget(self, photo: Photo) -> None:
        self._growing.pop(photo.name, None)
        self._listing.remember(photo)
        if photo == self._told_unreachable:
            self._tell_reachable()

    def _set_aside(self, photo: Photo, error: UnreachablePhotoError) -> None:
        self._growing.pop(photo.name, None)
        self._listing.set_aside(photo)
        if self._told_unreachable is None:
            self._told_unreachable = photo
            logger.warning("photos cannot be read for now, and are tried again: %s", error)

    def _tell_reachable(self) -> None:
        if self._told_unreachable is not None:
            logger.warning("the photo %s can be read again, or is gone", sendable(self._told_unreachable.name))
            self._told_unreachable = None

    def _let_go(self, photo: Photo) -> None:
        if self._settings.after != "delete" or self._listing.now(photo.name) != photo:
            return
        # What comes under its name from now on is another file, whatever it holds.
        self._lately.pop(photo.name, None)
        try:
            (self._listing.root / photo.name).unlink()
        except OSError as error:
            if not self._told_undeletable and not isinstance(error, FileNotFoundError):
                self._told_undeletable = True
                logger.warning("photos below %s cannot be deleted: %s", self.name, error.strerror)

    def _plot(self, photo: Photo) -> str:
        first, slash, _ = photo.name.partition("/")
        return sendable(first) if slash else self._settings.plot


def _has_end_mark(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(len(_PNG))
            file.seek(-min(_TAIL_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
            tail = file.read(_TAIL_BYTES)
    except OSError:
        return True  # reading it tells why
    if head.startswith(_JPEG):
        return tail.endswith(_JPEG_END)
    return head == _PNG and tail[4:8] == _PNG_END


def _digest(path: Path) -> bytes:
    """Of what a file holds; empty where it cannot be read, or is larger than is worth it."""
    try:
        if path.stat().st_size > _MOST_DIGESTED_BYTES:
            return b""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()[:16]
    except OSError:
        return b""


def _bad_key(photo: Photo) -> str:
    # Not its identity, by which decided ones are known: those may be deleted.
    return f"bad {photo.identity}"

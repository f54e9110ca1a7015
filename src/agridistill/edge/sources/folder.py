"""The source for a watched folder, into which photos are copied, moved or uploaded, perhaps slowly."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import logging
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from PIL import Image

from agridistill.edge.events import Frame, sendable
from agridistill.edge.sources.listing import MAX_FOUND, Listing, Photo
from agridistill.edge.sources.source import Attempts, PhotoReader, Source, SourceSettings
from agridistill.errors import OutboxError, PhotoError
from agridistill.photo_files import READS_HEIC
from agridistill.preprocess import UnreachablePhotoError

logger = logging.getLogger(__name__)

SETTLE_S = 2.0
_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG", b"IEND"
_MAX_DIGESTED_BYTES = 32_000_000
_TAIL_BYTES = 12  # size of PNG's last chunk: its length, its name and a checksum
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", *(("HEIF",) if READS_HEIC else ()))
_EXIF_FOLDER = 0x8769
# EXIF tags DateTimeOriginal, DateTimeDigitized and DateTime, each with the tag of its time zone.
_TIME_TAGS = ((0x9003, 0x9011), (0x9004, 0x9012), (0x0132, 0x9010))
_TIME = re.compile(r"(\d{4})\D(\d\d)\D(\d\d)[ T](\d\d)\D(\d\d)\D(\d\d)")
_ZONE = re.compile(r"([+-])(\d\d):?(\d\d)")
_EARLIEST_YEAR = 2010  # clocks that were never set start at 1970, 1980 or 2000
_CLOCK_DIFFERENCE_S = 300.0  # allowed between the clocks of camera and device


class FolderSource(Source):
    """Reads new photos from a folder and its subfolders, the oldest first. The first subfolder's name is the plot.

    A photo may still be written when it is found. A JPEG or PNG is read once its end marker is written. Other formats,
    and files that cannot be decoded, are read once they have not changed for `settle_s` seconds.

    A file that cannot be opened (permissions, disk, network) is tried again after 10 s. Hidden files, files that
    systems create (`@eaDir`, …), `.part` and `.tmp` are skipped. Links to folders are followed; each folder is read
    once. The arguments are those of `open_source`.
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
        # By name: photos that were incomplete at the last try, each with the time of its last change.
        self._growing: dict[str, tuple[Photo, float]] = {}
        self._handed: dict[str, Photo] = {}  # photos to delete after their detection is stored, by identity
        # Photos that were read as soon as they had their end marker, with their digests: they may still change.
        self._lately: dict[str, tuple[Photo, bytes]] = {}
        self._logged_undeletable = False
        self._logged_unreachable: Photo | None = None
        self._logged_time_problems: set[str] = set()

    def open(self) -> None:
        """Starts watching the folder; raises SourceLostError if it does not exist or cannot be read."""
        self._listing.open()

    def read(self, wait_s: float) -> Frame | None:
        """Returns the oldest new photo that is completely written; raises PhotoError once for each unreadable one."""
        deadline = time.monotonic() + wait_s
        while True:
            self._look_for_photos()
            frame = self._next(deadline)
            left = deadline - time.monotonic()
            if frame is not None or left <= 0:
                return frame
            self._listing.wait(left, poll=bool(self._growing or self._pending))

    def has_backlog(self) -> bool:
        """See `Source.has_backlog`."""
        return bool(self._pending)

    def is_busy(self) -> bool:
        """See `Source.is_busy`."""
        return bool(self._pending) or self._listing.has_more

    def is_quiet(self, quiet_s: float) -> bool:
        """Returns whether no photo waits or may still be written to, and no folder has changed for `quiet_s` seconds.

        Searches the folders again, because not every system reports changes.
        """
        if self._pending or self._growing or self._listing.unchanged_s <= quiet_s:
            return False
        self._pending = self._listing.search()
        return not self._pending and self._listing.unchanged_s > quiet_s

    def done(self, frame_identity: str) -> None:
        """With after = "delete", deletes a photo whose detection is now stored, unless the file has changed."""
        photo = self._handed.pop(frame_identity, None)
        if photo is not None:
            self._delete(photo)

    def abandon(self) -> None:
        """See `Source.abandon`."""
        self._reader.abandon()

    def close(self) -> None:
        """See `Source.close`."""
        self._listing.close()

    def _look_for_photos(self) -> None:
        for name in self._listing.events():
            photo = self._listing.now(name)
            if photo is not None and len(self._pending) < MAX_FOUND:
                heapq.heappush(self._pending, photo)
            elif photo is not None:
                self._listing.has_more = True
        if self._listing.is_due(idle=not self._pending and len(self._growing) < MAX_FOUND):
            self._pending = self._listing.search()
            logged = self._logged_unreachable
            if logged is not None and self._listing.now(logged.name) != logged:
                self._log_reachable()

    def _next(self, deadline: float) -> Frame | None:
        for name in list(self._growing):
            frame = self._consider(name)
            if frame is not None:
                return frame
        while self._pending:
            frame = self._consider(heapq.heappop(self._pending).name)
            if frame is not None or time.monotonic() > deadline:
                return frame
        return None

    def _consider(self, name: str) -> Frame | None:
        photo = self._listing.now(name)
        if photo is None or self._listing.knows(photo):
            self._growing.pop(name, None)
            return None
        before, since = self._growing.get(name, (None, 0.0))
        has_settled = photo == before and time.monotonic() - since >= self._settle_s
        if photo == before and not has_settled:
            return None
        if before is None and len(self._growing) >= MAX_FOUND:
            self._listing.has_more = True
            return None
        if photo != before:
            decided = self._seen(photo.identity)
            if decided or self._seen(_bad_key(photo)):
                if decided:
                    self._delete(photo)
                self._remember(photo)
                return None
        if self._is_touched(photo):
            return None
        return self._try(photo, has_settled=has_settled)

    def _is_touched(self, photo: Photo) -> bool:
        """Whether a photo is one that was read before, and only its time of change differs.

        Programs such as `scp -p` set this time after they have written the content.
        """
        before, digest = self._lately.get(photo.name, (None, b""))
        if before is None or before.size != photo.size or _digest(self._listing.root / photo.name) != digest:
            return False
        if self._seen(before.identity):
            self._mark_bad(photo)
            self._delete(photo)
        else:
            # Its detection is not stored yet: after a kill the photo must be read again under its new time.
            self._try_later(photo)
        return True

    def _try(self, photo: Photo, *, has_settled: bool) -> Frame | None:
        """Decodes a photo; if that fails, the photo is tried again later, or counts as bad if it `has_settled`."""
        path, at_s = self._listing.root / photo.name, time.time()
        if not has_settled and not _has_end_mark(path):
            self._try_later(photo)
            return None
        digest = b"" if has_settled else _digest(path)
        try:
            pixels = self._reader.read(path, photo.identity)
            taken_s = self._taken_s(photo, at_s)
        except UnreachablePhotoError as error:
            self._set_aside(photo, error)
            return None
        except PhotoError:
            if not has_settled or self._listing.now(photo.name) != photo:
                self._try_later(photo)
                return None
            self._mark_bad(photo)
            raise
        if self._listing.now(photo.name) != photo:  # it was written to meanwhile
            self._try_later(photo)
            return None
        self._remember(photo)
        self._remember_digest(photo, digest)
        if self._settings.after == "delete":
            self._handed[photo.identity] = photo
        return Frame(pixels, sendable(photo.name), self._plot(photo), at_s, photo.identity, taken_s, path)

    def _try_later(self, photo: Photo) -> None:
        self._growing[photo.name] = (photo, time.monotonic())

    def _mark_bad(self, photo: Photo) -> None:
        self._remember(photo)
        # If the disk refuses, the only effect is that the photo is reported again after a restart.
        with contextlib.suppress(OutboxError):
            self._bad(_bad_key(photo))

    def _taken_s(self, photo: Photo, at_s: float) -> float | None:
        """Returns the EXIF time of a photo, or None without the setting time = "photo"; logs each problem once."""
        if self._settings.time != "photo":
            return None
        taken_s, problem = photo_time(self._listing.root / photo.name, at_s)
        if problem and problem not in self._logged_time_problems:
            self._logged_time_problems.add(problem)
            logger.warning(
                "the photo %s has %s: rules use the time of arrival for such photos", sendable(photo.name), problem
            )
        return taken_s

    def _remember_digest(self, photo: Photo, digest: bytes) -> None:
        self._lately.pop(photo.name, None)
        if digest:
            self._lately[photo.name] = (photo, digest)
        if len(self._lately) > MAX_FOUND:
            del self._lately[next(iter(self._lately))]

    def _remember(self, photo: Photo) -> None:
        self._growing.pop(photo.name, None)
        self._listing.remember(photo)
        if photo == self._logged_unreachable:
            self._log_reachable()

    def _set_aside(self, photo: Photo, error: UnreachablePhotoError) -> None:
        self._growing.pop(photo.name, None)
        self._listing.set_aside(photo)
        if self._logged_unreachable is None:
            self._logged_unreachable = photo
            logger.warning("a photo cannot be read now, and is tried again every 10 s: %s", error)

    def _log_reachable(self) -> None:
        if self._logged_unreachable is not None:
            logger.warning("the photo %s can be read again or was removed", sendable(self._logged_unreachable.name))
            self._logged_unreachable = None

    def _delete(self, photo: Photo) -> None:
        if self._settings.after != "delete" or self._listing.now(photo.name) != photo:
            return
        # A later file with this name is another photo, even with the same content.
        self._lately.pop(photo.name, None)
        try:
            (self._listing.root / photo.name).unlink()
        except OSError as error:
            if not self._logged_undeletable and not isinstance(error, FileNotFoundError):
                self._logged_undeletable = True
                logger.warning('after = "delete": photos in %s cannot be deleted: %s', self.name, error.strerror)

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
        return True  # reading the photo reports it
    if head.startswith(_JPEG):
        return tail.endswith(_JPEG_END)
    return head == _PNG and tail[4:8] == _PNG_END


def _digest(path: Path) -> bytes:
    """Returns 16 bytes that identify the content of a file; empty if it cannot be read, or is larger than 32 MB."""
    try:
        if path.stat().st_size > _MAX_DIGESTED_BYTES:
            return b""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()[:16]
    except OSError:
        return b""


def _bad_key(photo: Photo) -> str:
    # Not the identity, which marks photos that have a detection: those may be deleted.
    return f"bad {photo.identity}"


def photo_time(path: Path, now_s: float) -> tuple[float | None, str]:
    """Reads from a photo's EXIF data when it was taken.

    A time without a time zone counts as this device's local time. A time before 2010, or more than 5 minutes after
    `now_s` (seconds since 1970), is rejected: the camera's clock was wrong.

    Returns:
        The time in seconds since 1970 and "". Without a usable time: None and why, for example "no EXIF time".
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            exif = image.getexif()
            tags = {**exif, **exif.get_ifd(_EXIF_FOLDER)}
    except Exception:  # Pillow's readers raise many types on damaged metadata; the pixels may be intact
        tags = {}
    times = (_moment(str(tags.get(time, "")), str(tags.get(zone, ""))) for time, zone in _TIME_TAGS)
    found = next((moment for moment in times if moment is not None), None)
    if found is None:
        return None, "no EXIF time"
    if found.year < _EARLIEST_YEAR:
        return None, f"an EXIF time before {_EARLIEST_YEAR}"
    if found.timestamp() > now_s + _CLOCK_DIFFERENCE_S:
        return None, "an EXIF time in the future"
    return min(found.timestamp(), now_s), ""


def _moment(text: str, zone: str) -> datetime | None:
    numbers = _TIME.match(text.strip("\0 "))
    if numbers is None:
        return None
    try:
        local = datetime(*map(int, numbers.groups()))  # type: ignore[arg-type] # noqa: DTZ001 # its zone follows
        if offset := _ZONE.match(zone.strip("\0 ")):
            size = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
            return local.replace(tzinfo=timezone(-size if offset[1] == "-" else size))
        return local.replace(tzinfo=UTC) if zone.strip("\0 ").upper() == "Z" else local.astimezone()
    except (ValueError, OverflowError, OSError):  # such as 0000:00:00, which unset cameras write
        return None

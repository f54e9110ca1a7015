"""What lies in a folder of photos and is not decided on yet: promptly, and without wearing out the processor."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import logging
import math
import os
import stat
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agridistill.edge.sources.hashes import Hashes
from agridistill.edge.sources.inotify import Inotify
from agridistill.edge.sources.source import SourceLostError
from agridistill.heatmaps import is_explanation
from agridistill.photo_files import (
    FolderWalk,
    counts_in_words,
    how_to_read,
    is_folder,
    is_of_machine,
    is_photo,
    suffix_of,
)

logger = logging.getLogger(__name__)

MOST = 2000
"""Photos that one search gives at most: the memory stays the same however many wait."""
_POLL_S = 0.02
_CHUNK = 512
# The processor's time that searches may take, as pauses in units of a search's duration: after a change, and as a
# safety net for what nobody tells of. A photo that comes during a search waits for its end.
_PAUSE_AFTER_CHANGE, _PAUSE_WITHOUT, _LEAST_PAUSE_S = 2, 200, 2.0
# What the system refuses now is tried again after these pauses, which double.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
# A folder's time may stand still for this long while files come.
_TIME_GRAIN_NS = 100_000_000
_UNFINISHED = (".part", ".tmp")
_MOST_TOLD_SUFFIXES = 20
# On these the system tells nothing of what other hosts do.
_NETWORK = ("nfs", "cifs", "smb", "9p", "fuse.", "afs", "ceph", "virtiofs")


class Photo(NamedTuple):
    """A file as it is now; the order is by age.

    Attributes:
        mtime_ns: when it was last written, by the file system.
        name: relative to the folder, with slashes.
        size: in bytes.
    """

    mtime_ns: int
    name: str
    size: int

    @property
    def identity(self) -> str:
        """32 hexadecimal digits, the same after a restart; other ones when the file is written anew."""
        return self._digest()[:16].hex()

    @property
    def number(self) -> int:
        """64 bits of the identity, signed. Not Python's `hash`, whose 32 bits on small machines would hide photos."""
        return int.from_bytes(self._digest()[:8], "little", signed=True)

    def _digest(self) -> bytes:
        return hashlib.sha256(os.fsencode(f"{self.name}\0{self.mtime_ns}\0{self.size}")).digest()


class Listing:
    """The photos below a folder.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._decided, self._aside = Hashes(), Hashes()
        self._aside_until: float | None = None
        self._aside_pause_s, self._aside_ended = _FIRST_PAUSE_S, -math.inf
        self._inotify: Inotify | None = None
        self._told_explanation = False
        self._folder_times: dict[str, int | None] = {}
        self._unreadable: set[str] = set()
        self._passed: Counter[str] = Counter()
        self._told_suffixes: set[str] = set()
        self._asked = self._more = False
        self._soon_at = self._surely_at = 0.0

    def open(self) -> None:
        """Begins to watch.

        Raises:
            SourceLostError: the folder is not there.
        """
        self.close()
        try:
            os.scandir(self.root).close()
        except OSError as error:
            raise self._lost(error) from None
        if not _is_on_network(self.root):
            try:
                self._inotify = Inotify()
            except OSError as error:
                logger.info("the folder '%s' is polled: %s", self.root, error)
        self._asked, self._soon_at = True, 0.0

    def close(self) -> None:
        """Ends to watch; what is decided on stays known."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def remember(self, photo: Photo) -> None:
        """It is decided on: no search gives it again."""
        self._decided.add(photo.number)

    def knows(self, photo: Photo) -> bool:
        """Whether it is decided on, or set aside."""
        return photo.number in self._decided or photo.number in self._aside

    def set_aside(self, photo: Photo) -> None:
        """It cannot be read now: a search gives it again after a pause."""
        if self._aside_until is None:
            now = time.monotonic()
            # Where all went well for long, this is a new trouble.
            doubled = 2 * self._aside_pause_s if now - self._aside_ended < _LONGEST_PAUSE_S else _FIRST_PAUSE_S
            self._aside_pause_s = min(doubled, _LONGEST_PAUSE_S)
            self._aside_until = now + self._aside_pause_s
        self._aside.add(photo.number)

    def now(self, name: str) -> Photo | None:
        """A file as it is now; None where it is gone, no ordinary file or a picture of `predict --explain`."""
        try:
            found = (self.root / name).stat()
        except OSError:
            return None
        return None if self._is_explanation(name) else _photo(name, found)

    def news(self) -> list[str]:
        """Names of photos that were written or came since the last call, where the system tells it."""
        if self._inotify is None:
            return []
        names, search = self._inotify.news()
        self._asked = self._asked or search
        photos = [name for name in names if is_photo(name.rpartition("/")[2])]
        # The system reports a new link to a folder as it does a file.
        self._asked = self._asked or any((self.root / name).is_dir() for name in set(names).difference(photos))
        return photos

    def ask_again(self) -> None:
        """A search has to give again what was left aside."""
        self._more = True

    def is_due(self, *, idle: bool) -> bool:
        """Whether a search is worth its time now.

        Args:
            idle: whether all photos of the last search are through.

        Raises:
            SourceLostError: the folder is gone.
        """
        now = time.monotonic()
        if self._aside_until is not None and now >= self._aside_until:
            self._aside, self._aside_until, self._aside_ended = Hashes(), None, now
            return True
        if (idle and self._more) or now >= self._surely_at:
            return True
        return now >= self._soon_at and (self._asked or (self._inotify is None and self._has_changed()))

    def search(self) -> list[Photo]:
        """The oldest photos that are neither decided on nor set aside, in order, at most `MOST`.

        Raises:
            SourceLostError: the folder is gone.
        """
        begin = time.monotonic()
        self._asked = False
        self._folder_times = {}
        present = array("q")
        self._passed.clear()
        unreadable_before = self._unreadable
        self._unreadable = set()
        watches: set[int] = set()
        found = heapq.nsmallest(MOST, self._undecided(present, watches, unreadable_before))
        self._more = len(found) == MOST
        self._tell_passed_over()
        if self._inotify is not None:
            self._inotify.keep(watches)
        if not self._unreadable:
            self._decided.keep(present)
        for name in sorted(unreadable_before - self._unreadable):
            logger.warning("the folder %r can be read again, or is gone", name)
        end = time.monotonic()
        self._soon_at = end + _PAUSE_AFTER_CHANGE * (end - begin)
        self._surely_at = end + max(_LEAST_PAUSE_S, _PAUSE_WITHOUT * (end - begin))
        return found

    def wait(self, wait_s: float, *, poll: bool) -> None:
        """Until there may be something to do, at most `wait_s`.

        Args:
            wait_s: in seconds.
            poll: whether a file has to be looked at again soon.
        """
        if self._inotify is None:
            time.sleep(min(wait_s, _POLL_S))
        else:
            at = min(self._surely_at, math.inf if self._aside_until is None else self._aside_until)
            soon = _POLL_S if poll or self._asked or self._more else at - time.monotonic()
            self._inotify.wait(min(wait_s, soon))

    def _undecided(self, present: array[int], watches: set[int], told: set[str]) -> Iterator[Photo]:
        photos = self._photos(watches, told)
        while chunk := list(itertools.islice(photos, _CHUNK)):
            hashes = np.fromiter((photo.number for photo in chunk), np.int64, len(chunk))
            present.frombytes(hashes.tobytes())
            yield from itertools.compress(chunk, ~(self._decided.include(hashes) | self._aside.include(hashes)))

    def _photos(self, watches: set[int], told: set[str]) -> Iterator[Photo]:
        folders = FolderWalk(self.root)
        for inside in folders:
            try:
                self._watch(inside, watches)
                yield from self._photos_in(inside, folders)
            except FileNotFoundError as error:
                if not inside:
                    raise self._lost(error) from None
            except OSError as error:
                if not inside:
                    raise self._lost(error) from None
                self._unreadable.add(inside)
                if inside not in told:
                    logger.warning("the folder %r cannot be read: %s", inside, error.strerror)

    def _photos_in(self, inside: str, folders: FolderWalk) -> Iterator[Photo]:
        with os.scandir(self.root / inside) as entries:
            for entry in entries:
                if is_of_machine(entry.name):
                    continue
                if is_folder(entry):
                    if not entry.name.endswith(_UNFINISHED):
                        folders.add(entry)
                elif not is_photo(entry.name):
                    self._passed[suffix_of(entry.name)] += not entry.name.endswith(_UNFINISHED)
                elif photo := self._entry_photo(inside, entry):
                    yield photo

    def _tell_passed_over(self) -> None:
        """Once for each suffix, and not for ever: programs that upload may give each file a suffix of its own."""
        new = {suffix: count for suffix, count in self._passed.items() if count and suffix not in self._told_suffixes}
        if new and len(self._told_suffixes) < _MOST_TOLD_SUFFIXES:
            self._told_suffixes.update(new)
            remedy = how_to_read(f"photo{suffix}" for suffix in new)
            logger.warning(
                "files are passed over that are no photos: %s%s", counts_in_words(new), remedy and f"; {remedy}"
            )

    def _entry_photo(self, inside: str, entry: os.DirEntry[str]) -> Photo | None:
        name = inside + entry.name
        try:
            return None if self._is_explanation(name) else _photo(name, entry.stat())
        except OSError:  # a broken link, or gone meanwhile
            return None

    def _is_explanation(self, name: str) -> bool:
        if not is_explanation(self.root / name):
            return False
        if not self._told_explanation:
            self._told_explanation = True
            logger.warning("pictures that predict --explain wrote are left out, the first %r", name)
        return True

    def _watch(self, inside: str, watches: set[int]) -> None:
        """Before the folder is listed: what comes meanwhile is told, or changes its time."""
        path = self.root / inside
        written = path.stat().st_mtime_ns
        self._folder_times[inside] = None if abs(time.time_ns() - written) < _TIME_GRAIN_NS else written
        if self._inotify is not None:
            try:
                watches.add(self._inotify.add(path, inside))
            except OSError as error:
                if not path.is_dir() or not os.access(path, os.R_OK):
                    return  # listing it tells why
                logger.info("the folder '%s' is polled: %s", self.root, error)
                self.close()

    def _has_changed(self) -> bool:
        for inside, before in self._folder_times.items():
            try:
                if (self.root / inside).stat().st_mtime_ns != before:
                    return True
            except OSError as error:
                if not inside:
                    raise self._lost(error) from None
                return True
        return False

    def _lost(self, error: OSError) -> SourceLostError:
        return SourceLostError(
            f"the folder of photos '{self.root}'", error.strerror or "an error", "it will be tried again"
        )


def _photo(name: str, found: os.stat_result) -> Photo | None:
    # Opening a pipe or a device may never end.
    return Photo(found.st_mtime_ns, name, found.st_size) if stat.S_ISREG(found.st_mode) else None


def _is_on_network(folder: Path) -> bool:
    """By Linux's table of mounts; elsewhere, and where it does not say, no."""
    try:
        device = folder.stat().st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, AttributeError):
        return False
    for line in lines:
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == wanted and kind.startswith(_NETWORK):
            return True
    return False

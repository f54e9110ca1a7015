"""The photos of a folder that are not decided on yet: found soon, without wearing out the processor."""

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
from numpy.typing import NDArray

from agridistill.edge.sources.inotify import Inotify, is_on_network
from agridistill.edge.sources.source import SourceLostError
from agridistill.photo_files import (
    FolderWalk,
    counts_in_words,
    how_to_read,
    is_explanation,
    is_folder,
    is_of_machine,
    is_photo,
    suffix_of,
)

logger = logging.getLogger(__name__)

MAX_FOUND = 2000
"""Photos that one search returns at most: the memory stays the same however many wait."""
_POLL_S = 0.02
_CHUNK = 512
# Pauses in units of a search's duration, which bound the processor's time, and the least ones: after a change, for
# changes without an event, and where the system reports no events.
_PAUSE_AFTER_CHANGE = 2
_PAUSE, _MIN_PAUSE_S = 200, 2.0
_POLLED_PAUSE, _MIN_POLLED_PAUSE_S = 20, 0.1
# Photos that the system refuses are tried again after this pause.
_ASIDE_S = 10.0
_UNFINISHED = (".part", ".tmp")
_MAX_LOGGED_SUFFIXES = 20


class Photo(NamedTuple):
    """A file as it is now; the order is by age. The name is relative to the folder, with slashes."""

    mtime_ns: int
    name: str
    size: int

    @property
    def identity(self) -> str:
        """32 hexadecimal digits, the same after a restart; others when the file is written anew."""
        return self._digest()[:16].hex()

    @property
    def number(self) -> int:
        """64 bits of the identity, signed. Python's `hash` has 32 bits on small machines and would hide photos."""
        return int.from_bytes(self._digest()[:8], "little", signed=True)

    def _digest(self) -> bytes:
        return hashlib.sha256(os.fsencode(f"{self.name}\0{self.mtime_ns}\0{self.size}")).digest()


class Hashes:
    """A set of 64-bit numbers of eight bytes each: 100,000 photos take less than a megabyte."""

    def __init__(self) -> None:
        self._sorted: NDArray[np.int64] = np.empty(0, np.int64)
        self._recent: set[int] = set()  # an insertion into the array would copy it each time

    def add(self, number: int) -> None:
        """Adds a number."""
        self._recent.add(number)
        if len(self._recent) > MAX_FOUND:
            self._merge()

    def __contains__(self, number: int) -> bool:
        return number in self._recent or bool(self._are_sorted(np.array([number], np.int64))[0])

    def include(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the numbers are in the set."""
        self._merge()
        return self._are_sorted(numbers)

    def keep(self, numbers: NDArray[np.int64]) -> None:
        """Removes all others."""
        self._sorted = np.sort(numbers[self.include(numbers)])

    def _are_sorted(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        if not len(self._sorted):
            return np.zeros(len(numbers), np.bool_)
        places = np.minimum(np.searchsorted(self._sorted, numbers), len(self._sorted) - 1)
        return np.asarray(self._sorted[places] == numbers, np.bool_)

    def _merge(self) -> None:
        if self._recent:
            self._sorted = np.union1d(self._sorted, np.fromiter(self._recent, np.int64, len(self._recent)))
            self._recent.clear()


class Listing:
    """The photos below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._decided, self._aside = Hashes(), Hashes()
        self._aside_until = math.inf
        self._inotify: Inotify | None = None
        self._logged_explanation = False
        self._logged_suffixes: set[str] = set()
        self._logged_unreadable: set[str] = set()  # folders
        # Of one search.
        self._present = array("q")
        self._unreadable: set[str] = set()
        self._others: Counter[str] = Counter()  # by suffix
        self._must_search = self._has_more = False
        self._soon_at = self._latest_at = 0.0

    def open(self) -> None:
        """Starts to watch.

        Raises:
            SourceLostError: the folder does not exist.
        """
        self.close()
        try:
            os.scandir(self.root).close()
        except OSError as error:
            raise self._lost(error) from None
        if not is_on_network(self.root):
            try:
                self._inotify = Inotify()
            except OSError as error:
                logger.info("the folder '%s' is polled: %s", self.root, error)
        self._latest_at = 0.0

    def close(self) -> None:
        """Stops watching; decided photos stay known."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def remember(self, photo: Photo) -> None:
        """Marks a photo as decided: no search returns it again."""
        self._decided.add(photo.number)

    def knows(self, photo: Photo) -> bool:
        """Whether it is decided, or set aside."""
        return photo.number in self._decided or photo.number in self._aside

    def set_aside(self, photo: Photo) -> None:
        """Marks a photo as unreachable now: a search returns it again after a pause."""
        self._aside_until = min(self._aside_until, time.monotonic() + _ASIDE_S)
        self._aside.add(photo.number)

    def now(self, name: str) -> Photo | None:
        """A file as it is now; None where it is gone, no regular file or a picture of `predict --explain`."""
        return self._photo(name, self.root / name)

    def events(self) -> list[str]:
        """Names of photos that were written or arrived since the last call, where the system reports it."""
        if self._inotify is None:
            return []
        names, search = self._inotify.events()
        photos = [name for name in names if is_photo(name.rpartition("/")[2])]
        # The system reports a new link to a folder as a file.
        new_link = any((self.root / name).is_dir() for name in set(names).difference(photos))
        self._must_search = self._must_search or search or new_link
        return photos

    def request_rescan(self) -> None:
        """Makes a search return again what the caller skipped."""
        self._has_more = True

    def is_due(self, *, idle: bool) -> bool:
        """Whether a search is worth its time now; `idle` when all photos of the last one are done."""
        now = time.monotonic()
        if now >= self._aside_until:
            self._aside, self._aside_until = Hashes(), math.inf
            return True
        return (idle and self._has_more) or now >= (self._soon_at if self._must_search else self._latest_at)

    def search(self) -> list[Photo]:
        """The oldest photos that are neither decided nor set aside, in order, at most `MAX_FOUND`.

        Raises:
            SourceLostError: the folder is gone.
        """
        begin = time.monotonic()
        self._must_search = False
        self._present, self._unreadable, self._others = array("q"), set(), Counter()
        found = heapq.nsmallest(MAX_FOUND, self._undecided())
        self._has_more = len(found) == MAX_FOUND
        self._log_others()
        if self._inotify is not None:
            self._inotify.end_others()
        if not self._unreadable:
            self._decided.keep(np.array(self._present, np.int64))
        for name in sorted(self._logged_unreadable - self._unreadable):
            logger.warning("the folder %r can be read again, or is gone", name)
        self._logged_unreadable = self._unreadable
        end = time.monotonic()
        self._soon_at = end + _PAUSE_AFTER_CHANGE * (end - begin)
        if self._inotify is None:
            self._latest_at = end + max(_MIN_POLLED_PAUSE_S, _POLLED_PAUSE * (end - begin))
        else:
            self._latest_at = end + max(_MIN_PAUSE_S, _PAUSE * (end - begin))
        return found

    def wait(self, wait_s: float, *, poll: bool) -> None:
        """Returns when there may be work, at most after `wait_s`; `poll` where a file has to be checked again soon."""
        at = min(self._latest_at, self._aside_until)
        soon = _POLL_S if poll or self._must_search or self._has_more else at - time.monotonic()
        if self._inotify is None:
            time.sleep(max(0.0, min(wait_s, soon)))
        else:
            self._inotify.wait(min(wait_s, soon))

    def _undecided(self) -> Iterator[Photo]:
        photos = self._photos()
        while chunk := list(itertools.islice(photos, _CHUNK)):
            numbers = np.fromiter((photo.number for photo in chunk), np.int64, len(chunk))
            self._present.frombytes(numbers.tobytes())
            yield from itertools.compress(chunk, ~(self._decided.include(numbers) | self._aside.include(numbers)))

    def _photos(self) -> Iterator[Photo]:
        folders = FolderWalk(self.root)
        for inside in folders:
            try:
                self._watch(inside)
                yield from self._photos_in(inside, folders)
            except OSError as error:
                if not inside:
                    raise self._lost(error) from None
                if isinstance(error, FileNotFoundError):
                    continue
                self._unreadable.add(inside)
                if inside not in self._logged_unreadable:
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
                    self._others[suffix_of(entry.name)] += not entry.name.endswith(_UNFINISHED)
                elif photo := self._photo(inside + entry.name, entry):
                    yield photo

    def _photo(self, name: str, file: Path | os.DirEntry[str]) -> Photo | None:
        try:
            found = file.stat()
        except OSError:  # a broken link, or gone meanwhile
            return None
        # Opening a pipe or a device may never end.
        if not stat.S_ISREG(found.st_mode) or self._is_explanation(name):
            return None
        return Photo(found.st_mtime_ns, name, found.st_size)

    def _log_others(self) -> None:
        """Logs each suffix once, and not endlessly: programs that upload may give each file a suffix of its own."""
        new = {suffix: count for suffix, count in self._others.items() if count and suffix not in self._logged_suffixes}
        if new and len(self._logged_suffixes) < _MAX_LOGGED_SUFFIXES:
            self._logged_suffixes.update(new)
            remedy = how_to_read(f"photo{suffix}" for suffix in new)
            logger.warning(
                "files are passed over that are no photos: %s%s", counts_in_words(new), remedy and f"; {remedy}"
            )

    def _is_explanation(self, name: str) -> bool:
        if not is_explanation(self.root / name):
            return False
        if not self._logged_explanation:
            self._logged_explanation = True
            logger.warning("pictures that predict --explain wrote are left out, the first %r", name)
        return True

    def _watch(self, inside: str) -> None:
        """Before the folder is listed: what arrives meanwhile causes an event."""
        if self._inotify is not None:
            path = self.root / inside
            try:
                self._inotify.add(path, inside)
            except OSError as error:
                if path.is_dir() and os.access(path, os.R_OK):  # else listing it reports the reason
                    logger.info("the folder '%s' is polled: %s", self.root, error)
                    self.close()

    def _lost(self, error: OSError) -> SourceLostError:
        return SourceLostError(
            f"the folder of photos '{self.root}'", error.strerror or "an error", "it will be tried again"
        )

"""Finds the photos of a folder that have no detection yet, quickly and with little processor time."""

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
    is_photo,
    is_system_file,
    suffix_of,
)

logger = logging.getLogger(__name__)

MAX_FOUND = 2000  # photos that one search returns: this limits the memory, however many photos wait
_POLL_S = 0.02
_CHUNK = 512
# Pauses between searches as multiples of a search's duration, which limits the processor time; with a minimum:
_PAUSE_AFTER_CHANGE = 2  # after an event that a folder changed
_PAUSE, _MIN_PAUSE_S = 200, 2.0  # to find changes for which there was no event
_POLLED_PAUSE, _MIN_POLLED_PAUSE_S = 20, 0.1  # on a system or file system without events
# Photos that the system does not let us read are tried again after this pause.
_ASIDE_S = 10.0
_UNFINISHED = (".part", ".tmp")
_MAX_LOGGED_SUFFIXES = 20


class Photo(NamedTuple):
    """A photo file with its present time of change and size. Photos sort by that time, the oldest first."""

    mtime_ns: int
    name: str  # relative to the watched folder, with slashes
    size: int

    @property
    def identity(self) -> str:
        """32 hexadecimal digits from name, time of change and size: the same until the file is written again."""
        return self._digest()[:16].hex()

    @property
    def number(self) -> int:
        """The first 64 bits of the identity as a signed integer.

        Python's `hash` has only 32 bits on small machines: a photo with the hash of another one would be skipped.
        """
        return int.from_bytes(self._digest()[:8], "little", signed=True)

    def _digest(self) -> bytes:
        return hashlib.sha256(os.fsencode(f"{self.name}\0{self.mtime_ns}\0{self.size}")).digest()


class Hashes:
    """A set of 64-bit integers that takes 8 bytes for each: less than 1 MB for 100,000 photos."""

    def __init__(self) -> None:
        self._sorted: NDArray[np.int64] = np.empty(0, np.int64)
        self._recent: set[int] = set()  # not in the array yet, because each insertion would copy it

    def add(self, number: int) -> None:
        """Adds a number."""
        self._recent.add(number)
        if len(self._recent) > MAX_FOUND:
            self._merge()

    def __contains__(self, number: int) -> bool:
        return number in self._recent or bool(self._are_sorted(np.array([number], np.int64))[0])

    def include(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns for each number in `numbers`, `(N,)` int64, whether it is in the set, `(N,)` bool."""
        self._merge()
        return self._are_sorted(numbers)

    def keep(self, numbers: NDArray[np.int64]) -> None:
        """Removes all numbers from the set that are not in `numbers`, `(N,)` int64."""
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
    """Finds the photos in a folder and its subfolders that `remember` has not marked as processed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._decided, self._aside = Hashes(), Hashes()
        self._aside_until = math.inf
        self._inotify: Inotify | None = None
        self._logged_explanation = False
        self._logged_suffixes: set[str] = set()
        self._logged_unreadable: set[str] = set()  # folders
        # Results of the current search.
        self._present = array("q")
        self._unreadable: set[str] = set()
        self._others: Counter[str] = Counter()  # by suffix
        self._changed_ns = 0
        self._must_search = False
        self.has_more = False  # the last search, or a caller that sets it, left out photos because too many wait
        self._soon_at = self._latest_at = 0.0

    def open(self) -> None:
        """Starts watching the folder; raises SourceLostError if it does not exist or cannot be read."""
        self.close()
        try:
            os.scandir(self.root).close()
        except OSError as error:
            raise self._lost(error) from None
        if not is_on_network(self.root):
            try:
                self._inotify = Inotify()
            except OSError as error:
                self._search_regularly(error)
        self._latest_at = 0.0

    def close(self) -> None:
        """Stops watching the folder; photos that `remember` has marked stay marked."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def remember(self, photo: Photo) -> None:
        """Marks a photo as processed: `search` does not return it again unless the file changes."""
        self._decided.add(photo.number)

    def knows(self, photo: Photo) -> bool:
        """Returns whether `search` skips a photo now, because `remember` or `set_aside` has marked it."""
        return photo.number in self._decided or photo.number in self._aside

    def set_aside(self, photo: Photo) -> None:
        """Marks a photo that cannot be opened now: `search` skips it for 10 s."""
        self._aside_until = min(self._aside_until, time.monotonic() + _ASIDE_S)
        self._aside.add(photo.number)

    def now(self, name: str) -> Photo | None:
        """Returns the present state of the file `name`, given relative to the watched folder.

        Returns None if the file was removed, is not a regular file, or was written by `predict --explain`.
        """
        return self._photo(name, self.root / name)

    def events(self) -> list[str]:
        """Returns the names of photos that arrived or changed since the last call, as far as the system reports it."""
        if self._inotify is None:
            return []
        names, search = self._inotify.events()
        photos = [name for name in names if is_photo(name.rpartition("/")[2])]
        # A new symbolic link to a folder is reported like a new file.
        new_link = any((self.root / name).is_dir() for name in set(names).difference(photos))
        self._must_search = self._must_search or search or new_link
        return photos

    @property
    def unchanged_s(self) -> float:
        """Seconds since a photo or a folder changed, as the last search found it; below 0 for a time in the future."""
        return time.time() - self._changed_ns / 1e9

    def is_due(self, *, idle: bool) -> bool:
        """Returns whether `search` should be called now; `idle`: whether all photos of the last one are processed."""
        now = time.monotonic()
        if now >= self._aside_until:
            self._aside, self._aside_until = Hashes(), math.inf
            return True
        return (idle and self.has_more) or now >= (self._soon_at if self._must_search else self._latest_at)

    def search(self) -> list[Photo]:
        """Searches all folders, and returns the photos that are not marked: the oldest first, at most `MAX_FOUND`.

        Raises:
            SourceLostError: the folder was removed or cannot be read.
        """
        begin = time.monotonic()
        self._must_search = False
        self._present, self._unreadable, self._others = array("q"), set(), Counter()
        found = heapq.nsmallest(MAX_FOUND, self._undecided())
        self.has_more = len(found) == MAX_FOUND
        self._log_others()
        if self._inotify is not None:
            self._inotify.end_others()
        if not self._unreadable:
            self._decided.keep(np.array(self._present, np.int64))
        for name in sorted(self._logged_unreadable - self._unreadable):
            logger.warning("the subfolder %r can be read again or was removed", name)
        self._logged_unreadable = self._unreadable
        end = time.monotonic()
        self._soon_at = end + _PAUSE_AFTER_CHANGE * (end - begin)
        least_s, factor = (_MIN_PAUSE_S, _PAUSE) if self._inotify else (_MIN_POLLED_PAUSE_S, _POLLED_PAUSE)
        self._latest_at = end + max(least_s, factor * (end - begin))
        return found

    def wait(self, wait_s: float, *, poll: bool) -> None:
        """Waits until there may be a new photo or the folders must be listed again, at most `wait_s` seconds.

        With `poll` it waits only 20 ms, because a file that is still being written must be checked again.
        """
        at = min(self._latest_at, self._aside_until)
        soon = _POLL_S if poll or self._must_search or self.has_more else at - time.monotonic()
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
                    logger.warning("the subfolder %r cannot be read: %s", inside, error.strerror)

    def _photos_in(self, inside: str, folders: FolderWalk) -> Iterator[Photo]:
        self._changed_ns = max(self._changed_ns, (self.root / inside).stat().st_mtime_ns)
        with os.scandir(self.root / inside) as entries:
            for entry in entries:
                if is_system_file(entry.name):
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
        except OSError:  # the file is a broken link, or was removed meanwhile
            return None
        # Opening a pipe or a device may never end.
        if not stat.S_ISREG(found.st_mode) or self._is_explanation(name):
            return None
        # A program that copies or moves a photo may set its time of modification back, but not that of the change.
        self._changed_ns = max(self._changed_ns, found.st_mtime_ns, found.st_ctime_ns)
        return Photo(found.st_mtime_ns, name, found.st_size)

    def _log_others(self) -> None:
        """Logs each suffix of files that are not photos once, up to 20: an upload may give each file a new suffix."""
        new = {suffix: count for suffix, count in self._others.items() if count and suffix not in self._logged_suffixes}
        if new and len(self._logged_suffixes) < _MAX_LOGGED_SUFFIXES:
            self._logged_suffixes.update(new)
            remedy = how_to_read(f"photo{suffix}" for suffix in new)
            logger.warning(
                "files that are not photos are skipped: %s%s", counts_in_words(new), remedy and f"; {remedy}"
            )

    def _is_explanation(self, name: str) -> bool:
        if not is_explanation(self.root / name):
            return False
        if not self._logged_explanation:
            self._logged_explanation = True
            logger.warning("pictures that predict --explain wrote are skipped; the first one is %r", name)
        return True

    def _watch(self, inside: str) -> None:
        """Adds a watch for a folder; called before listing it, so that files which arrive meanwhile cause an event."""
        if self._inotify is None:
            return
        path = self.root / inside
        try:
            self._inotify.add(path, inside)
        except OSError as error:
            if path.is_dir() and os.access(path, os.R_OK):  # otherwise listing the folder raises the reason
                self._search_regularly(error)

    def _search_regularly(self, error: OSError) -> None:
        logger.info("the folder '%s' is searched regularly, because it reports no changes: %s", self.root, error)
        self.close()

    def _lost(self, error: OSError) -> SourceLostError:
        return SourceLostError(
            f"the folder of photos '{self.root}'", error.strerror or "an error", "the agent will try again"
        )

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

from agridistill.edge.sources.inotify import Inotify
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
# Pauses in units of a search's duration, which bound the processor's time: after a change, and as a safety net for
# changes without an event. A photo that arrives during a search waits for its end.
_PAUSE_AFTER_CHANGE, _PAUSE_WITHOUT, _MIN_PAUSE_S = 2, 200, 2.0
# Photos that the system refuses are retried after these pauses, which double.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
# A folder's modification time may stand still for so long while files arrive.
_TIME_GRAIN_NS = 100_000_000
_UNFINISHED = (".part", ".tmp")
_MAX_LOGGED_SUFFIXES = 20
# The system reports no changes that other hosts make on these.
_NETWORK = ("nfs", "cifs", "smb", "9p", "fuse.", "afs", "ceph", "virtiofs")


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
        self._recent: set[int] = set()

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
            recent = np.fromiter(self._recent, np.int64, len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent.clear()


class Listing:
    """The photos below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._decided, self._aside = Hashes(), Hashes()
        self._aside_until: float | None = None
        self._aside_pause_s, self._aside_ended = _FIRST_PAUSE_S, -math.inf
        self._inotify: Inotify | None = None
        self._logged_explanation = False
        self._folder_times: dict[str, int | None] = {}
        self._unreadable: set[str] = set()
        self._others: Counter[str] = Counter()  # by suffix
        self._logged_suffixes: set[str] = set()
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
        if not _is_on_network(self.root):
            try:
                self._inotify = Inotify()
            except OSError as error:
                logger.info("the folder '%s' is polled: %s", self.root, error)
        self._must_search, self._soon_at = True, 0.0

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
        if self._aside_until is None:
            now = time.monotonic()
            # After a good while this is a new problem.
            doubled = 2 * self._aside_pause_s if now - self._aside_ended < _LONGEST_PAUSE_S else _FIRST_PAUSE_S
            self._aside_pause_s = min(doubled, _LONGEST_PAUSE_S)
            self._aside_until = now + self._aside_pause_s
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
        """Whether a search is worth its time now; `idle` when all photos of the last one are done.

        Raises:
            SourceLostError: the folder is gone.
        """
        now = time.monotonic()
        if self._aside_until is not None and now >= self._aside_until:
            self._aside, self._aside_until, self._aside_ended = Hashes(), None, now
            return True
        if (idle and self._has_more) or now >= self._latest_at:
            return True
        return now >= self._soon_at and (self._must_search or (self._inotify is None and self._has_changed()))

    def search(self) -> list[Photo]:
        """The oldest photos that are neither decided nor set aside, in order, at most `MAX_FOUND`.

        Raises:
            SourceLostError: the folder is gone.
        """
        begin = time.monotonic()
        self._must_search = False
        self._folder_times = {}
        self._others.clear()
        unreadable_before, self._unreadable = self._unreadable, set()
        present, watches = array("q"), set[int]()
        found = heapq.nsmallest(MAX_FOUND, self._undecided(present, watches, unreadable_before))
        self._has_more = len(found) == MAX_FOUND
        self._log_others()
        if self._inotify is not None:
            self._inotify.keep(watches)
        if not self._unreadable:
            self._decided.keep(np.array(present, np.int64))
        for name in sorted(unreadable_before - self._unreadable):
            logger.warning("the folder %r can be read again, or is gone", name)
        end = time.monotonic()
        self._soon_at = end + _PAUSE_AFTER_CHANGE * (end - begin)
        self._latest_at = end + max(_MIN_PAUSE_S, _PAUSE_WITHOUT * (end - begin))
        return found

    def wait(self, wait_s: float, *, poll: bool) -> None:
        """Returns when there may be work, at most after `wait_s`; `poll` where a file has to be checked again soon."""
        if self._inotify is None:
            time.sleep(min(wait_s, _POLL_S))
        else:
            at = min(self._latest_at, math.inf if self._aside_until is None else self._aside_until)
            soon = _POLL_S if poll or self._must_search or self._has_more else at - time.monotonic()
            self._inotify.wait(min(wait_s, soon))

    def _undecided(self, present: array[int], watches: set[int], logged: set[str]) -> Iterator[Photo]:
        photos = self._photos(watches, logged)
        while chunk := list(itertools.islice(photos, _CHUNK)):
            hashes = np.fromiter((photo.number for photo in chunk), np.int64, len(chunk))
            present.frombytes(hashes.tobytes())
            yield from itertools.compress(chunk, ~(self._decided.include(hashes) | self._aside.include(hashes)))

    def _photos(self, watches: set[int], logged: set[str]) -> Iterator[Photo]:
        folders = FolderWalk(self.root)
        for inside in folders:
            try:
                self._watch(inside, watches)
                yield from self._photos_in(inside, folders)
            except OSError as error:
                if not inside:
                    raise self._lost(error) from None
                if isinstance(error, FileNotFoundError):
                    continue
                self._unreadable.add(inside)
                if inside not in logged:
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

    def _watch(self, inside: str, watches: set[int]) -> None:
        """Before the folder is listed: what arrives meanwhile causes an event, or changes its time."""
        path = self.root / inside
        written = path.stat().st_mtime_ns
        self._folder_times[inside] = None if abs(time.time_ns() - written) < _TIME_GRAIN_NS else written
        if self._inotify is not None:
            try:
                watches.add(self._inotify.add(path, inside))
            except OSError as error:
                if path.is_dir() and os.access(path, os.R_OK):  # else listing it reports the reason
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


def _is_on_network(folder: Path) -> bool:
    """By Linux's table of mounts; False elsewhere, and where it does not say."""
    try:
        device = folder.stat().st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, AttributeError):
        return False
    mounts = (line.partition(" - ") for line in lines)
    return any(mount.split()[2] == wanted and kind.startswith(_NETWORK) for mount, _, kind in mounts)

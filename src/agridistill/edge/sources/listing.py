"""The photos of a folder that are not decided on yet: found soon, without wearing out the processor."""

from __future__ import annotations

import ctypes
import hashlib
import heapq
import itertools
import logging
import math
import os
import select
import stat
import struct
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
_CREATE, _CLOSE_WRITE, _MOVED_TO, _MOVED_FROM = 0x100, 0x8, 0x80, 0x40
_DELETE_SELF, _MOVE_SELF, _ONLY_DIRECTORIES = 0x400, 0x800, 0x0100_0000
_WATCHED = _CREATE | _CLOSE_WRITE | _MOVED_TO | _MOVED_FROM | _DELETE_SELF | _MOVE_SELF | _ONLY_DIRECTORIES
_IS_DIRECTORY, _OVERFLOW, _IGNORED, _UNMOUNTED = 0x4000_0000, 0x4000, 0x8000, 0x2000
_FOLDER_EVENTS = _OVERFLOW | _IGNORED | _UNMOUNTED | _DELETE_SELF | _MOVE_SELF | _IS_DIRECTORY
_EVENT = struct.Struct("iIII")


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


class Inotify:
    """Linux's events of new files. Why not watchfiles: docs/decisions/0011-the-field-agent.md.

    Raises:
        OSError: not on Linux, or the system has no more watches.
    """

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("inotify needs Linux")
        self._library = ctypes.CDLL(None, use_errno=True)
        self._folders: dict[int, str] = {}
        self._descriptor = self._library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "no inotify")

    def add(self, folder: Path, prefix: str) -> int:
        """Watches a folder without its subfolders, also one that was replaced; returns its number.

        Args:
            folder: its path.
            prefix: of its files' names: "" or "subfolder/".

        Raises:
            OSError: it is gone, or the system has no more watches.
        """
        watch = int(self._library.inotify_add_watch(self._descriptor, os.fsencode(folder), _WATCHED))
        if watch < 0:
            raise OSError(ctypes.get_errno(), "no watch")
        self._folders[watch] = prefix
        return watch

    def keep(self, watches: set[int]) -> None:
        """Ends all other watches."""
        for watch in set(self._folders) - watches:
            self._library.inotify_rm_watch(self._descriptor, watch)
            del self._folders[watch]

    def wait(self, wait_s: float) -> None:
        """Returns when there are events, or after `wait_s`."""
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLIN)
        waiting.poll(max(0.0, wait_s) * 1000)

    def events(self) -> tuple[list[str], bool]:
        """Names of files that were created, written or moved here, and whether a search is needed.

        It is where folders changed, or the system dropped events.
        """
        files: list[str] = []
        search = False
        try:
            data = os.read(self._descriptor, 65_536)
        except BlockingIOError:
            return files, search
        place = 0
        while place < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, place)
            place += _EVENT.size + length
            name = os.fsdecode(data[place - length : place].rstrip(b"\0"))
            if mask & _FOLDER_EVENTS:
                # Ended watches report their end, too.
                search = search or bool(mask & _OVERFLOW) or watch in self._folders
            elif watch in self._folders and not mask & _MOVED_FROM:
                files.append(self._folders[watch] + name)
        return files, search

    def close(self) -> None:
        """Ends all watches."""
        os.close(self._descriptor)


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

"""Which files below a folder are photos: one list of suffixes, one of what machines put beside them, one walk."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from agridistill.heic import HEIC_SUFFIXES, INSTALL_HEIC, READS_HEIC

# Pillow's JPEG reader opens .jfif and .jpe, which are JPEGs, and .mpo, a JPEG of two photos.
PHOTO_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff",
    *(HEIC_SUFFIXES if READS_HEIC else ()),
})  # fmt: skip

# What systems, file servers and programs keep for themselves, in lower case. Hidden names are passed over as well.
_OF_MACHINES = frozenset({
    "@eadir", "#recycle", "#snapshot", "@tmp",  # Synology
    "@recycle", "@recently-snapshot",  # QNAP
    "~snapshot",  # NetApp
    "$recycle.bin", "recycler", "system volume information", "found.000",  # Windows
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
    "__macosx", "icon\r", "network trash folder", "temporary items",  # macOS
    "lost+found",  # Linux
    "lost.dir",  # Android
    "zbthumbnail.info", "picasa.ini",  # cameras and photo programs
})  # fmt: skip
_MOST_SUFFIXES = 5


def is_of_machine(name: str) -> bool:
    """Whether a file or folder is none of the user's: hidden, a thumbnail folder, a recycle bin, …

    Example:
        >>> [is_of_machine(name) for name in ("@eaDir", "._leaf.jpg", "Thumbs.db", "rust")]
        [True, True, True, False]
    """
    return name.startswith(".") or name.lower() in _OF_MACHINES


def is_photo(name: str) -> bool:
    """Whether a file's name is that of a photo which can be read here."""
    return not is_of_machine(name) and suffix_of(name) in PHOTO_SUFFIXES


def suffix_of(name: str) -> str:
    """The suffix in lower case, with its dot; empty where there is none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path takes four times as long


class _Folder(NamedTuple):
    """A folder that waits to be listed.

    Attributes:
        inside: its path below the root, "" or "sub/folder/".
        real: its resolved path.
        places: the resolved folders of the links that lead to it.
    """

    inside: str
    real: str
    places: tuple[str, ...]


class FolderWalk:
    """The folders from a root down, linked ones too, each once: real ones first, then by name.

    Iteration gives "" and paths such as "sub/folder/". The caller lists each one and adds the subfolders that it wants.
    A link to a folder that the link itself lies in is a loop and is left out.

    Args:
        root: where it begins.
    """

    def __init__(self, root: Path) -> None:
        self._now = _Folder("", os.path.realpath(root), ())
        self._real = [self._now]
        self._linked: list[_Folder] = []
        self._met: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        """Gives the next folder as long as there is one; folders may be added meanwhile."""
        while self._real or self._linked:
            self._now = self._real.pop() if self._real else heapq.heappop(self._linked)
            if self._now.real not in self._met:
                self._met.add(self._now.real)
                yield self._now.inside

    def add(self, entry: os.DirEntry[str]) -> None:
        """Takes a subfolder of the folder that was given last."""
        inside, real, places = self._now
        name = f"{inside}{entry.name}/"
        if not entry.is_symlink():
            self._real.append(_Folder(name, os.path.join(real, entry.name), places))  # noqa: PTH118 - hot
            return
        target, places = os.path.realpath(entry.path), (*places, real)
        if not any(_lies_in(place, target) for place in places):
            heapq.heappush(self._linked, _Folder(name, target, places))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link that leads nowhere is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not suffix_of(entry.name) and not os.path.exists(entry.path)  # noqa: PTH110 - hot


def subfolders(root: Path) -> list[str]:
    """The names of a folder's subfolders, linked ones too, sorted, without those of machines and loops.

    A link that leads nowhere, without a suffix, is one too: its disk may be missing, and a class with it.

    Raises:
        OSError: the folder cannot be listed.
    """
    place = os.path.realpath(root)
    with os.scandir(root) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not is_of_machine(entry.name)
            and (is_folder(entry) or _leads_nowhere(entry))
            and not (entry.is_symlink() and _lies_in(place, os.path.realpath(entry.path)))
        )


def files_below(root: Path, refuse: Callable[[OSError], None]) -> Iterator[tuple[str, list[str]]]:
    """The folders from a root down as `FolderWalk` gives them, each with the names of its files; nothing of machines.

    Args:
        root: where it begins.
        refuse: called with the error of a folder that cannot be listed.
    """
    walk = FolderWalk(root)
    for inside in walk:
        names: list[str] = []
        try:
            with os.scandir(root / inside) as entries:
                for entry in entries:
                    if is_of_machine(entry.name):
                        continue
                    if is_folder(entry):
                        walk.add(entry)
                    else:
                        names.append(entry.name)
        except OSError as error:
            refuse(error)
            continue
        yield inside, names


def counts_by_suffix(names: Iterable[str]) -> str:
    """How many files of each suffix, the most frequent first.

    Example:
        >>> counts_by_suffix(["a/1.heic", "a/2.HEIC", "b/notes"])
        '2 .heic, 1 without suffix'
    """
    return counts_in_words(Counter(map(suffix_of, names)))


def counts_in_words(counts: Mapping[str, int]) -> str:
    """`counts_by_suffix` of files that are counted already, by their suffix."""
    most = [f"{count:,} {suffix or 'without suffix'}" for suffix, count in Counter(counts).most_common(_MOST_SUFFIXES)]
    return ", ".join(most) + (", …" if len(counts) > len(most) else "")


def passed_over(names: Sequence[str]) -> str:
    """Files that are no photos, by suffix, and how to read those that are photos in HEIC.

    Args:
        names: or paths, at least one.

    Example:
        >>> passed_over(["rust/notes.txt"])
        "1 file that is no photo (1 .txt), the first 'rust/notes.txt'"
    """
    what = f"{len(names):,} files that are no photos" if len(names) > 1 else "1 file that is no photo"
    remedy = how_to_read(names)
    return f"{what} ({counts_by_suffix(names)}), the first '{names[0]}'" + (f"; {remedy}" if remedy else "")


def how_to_read(names: Iterable[str], *, otherwise: str = "") -> str:
    """The remedy where photos in HEIC are among files that are no photos here, and what else there is to do.

    Example:
        >>> how_to_read(["a/notes.txt"], otherwise="name another folder")
        'name another folder'
    """
    if READS_HEIC or not any(suffix_of(name) in HEIC_SUFFIXES for name in names):
        return otherwise
    return f"HEIC photos are read after {INSTALL_HEIC}" + (f"; or {otherwise}" if otherwise else "")


def _lies_in(place: str, folder: str) -> bool:
    return place == folder or place.startswith(folder.rstrip(os.sep) + os.sep)

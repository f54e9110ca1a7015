"""Finds the photos in a folder tree by their suffix, and skips files that systems and programs create.

HEIC photos count only if the extra `heic` is installed.
"""

from __future__ import annotations

import heapq
import os
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

try:
    import pi_heif
except ImportError:  # not installed, or its library does not load on this machine
    READS_HEIC = False
else:
    pi_heif.register_heif_opener()
    READS_HEIC = True

HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
INSTALL_HEIC = "pip install 'agridistill[heic]'"
# Files named .jfif and .jpe are JPEGs, .mpo is a JPEG with two photos; Pillow's JPEG reader opens them all.
PHOTO_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff",
    *(HEIC_SUFFIXES if READS_HEIC else ()),
})  # fmt: skip

# Files and folders that systems, file servers and programs create, in lower case. Hidden names are skipped as well.
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
_HEAD_BYTES = 64
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx")
# The part ("box") of a HEIC file that holds the size of one of its pictures.
_SIZE_BOX, _SIZE = re.compile(rb"ispe\0\0\0\0"), struct.Struct(">II")
_EXPLANATION = re.compile(r"-explained(-\d+)?\.png", re.IGNORECASE)
_MARK_KEY, _MARK = "Software", "AgriDistill: where a model looked"


def is_system_file(name: str) -> bool:
    """Returns whether a name is that of a hidden file or folder, or of one that systems and programs create.

    Example:
        >>> [is_system_file(name) for name in ("@eaDir", "._leaf.jpg", "Thumbs.db", "rust")]
        [True, True, True, False]
    """
    return name.startswith(".") or name.lower() in _OF_MACHINES


def is_photo(name: str) -> bool:
    """Returns whether a file name has the suffix of a photo format that can be read here.

    HEIC can be read only if the extra `heic` is installed. Files that systems create do not count.
    """
    return not is_system_file(name) and suffix_of(name) in PHOTO_SUFFIXES


def suffix_of(name: str) -> str:
    """Returns the suffix of a file name in lower case with its dot, such as ".jpg"; "" if there is none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path takes four times as long


def is_heic(source: Path | bytes) -> bool:
    """Returns whether the content of a file or its bytes are HEIC: some programs name such files `.jpg`."""
    if isinstance(source, bytes):
        head = source[:_HEAD_BYTES]
    else:
        with source.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    return head[4:8] == b"ftyp" and any(brand in head for brand in _HEIC_BRANDS)


def heic_pixels(source: Path | bytes) -> int:
    """Returns the number of pixels of the largest picture in a HEIC file, which the decoder holds in memory.

    Pillow may report a smaller picture. The result is 0 if no size is found.
    """
    content = source if isinstance(source, bytes) else source.read_bytes()
    sizes = (_SIZE.unpack_from(content, found.end()) for found in _SIZE_BOX.finditer(content[: -_SIZE.size]))
    return max((width * height for width, height in sizes), default=0)


def explanation_mark() -> PngInfo:
    """Returns the PNG metadata that marks a picture of `predict --explain`, so that it is never read as a photo."""
    mark = PngInfo()
    mark.add_text(_MARK_KEY, _MARK)
    return mark


def is_explanation(path: str | os.PathLike[str]) -> bool:
    """Returns whether `predict --explain` wrote a file; to find out, it opens files named `…-explained.png`."""
    if not _EXPLANATION.search(str(path)):
        return False
    try:
        with Image.open(path) as picture:
            return picture.info.get(_MARK_KEY) == _MARK
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # the error is reported when the file is read as a photo


class _Folder(NamedTuple):
    """A folder that is still to be listed."""

    inside: str  # its path relative to the root: "" or "sub/folder/"
    real: str  # its resolved path
    places: tuple[str, ...]  # the resolved folders that contain the links on the way to it


class FolderWalk:
    """Yields a folder and all folders below it, each once; it follows links.

    It yields "" for the root, then paths such as "sub/folder/": real folders before linked ones, then by name. The
    caller lists each folder and passes its subfolders to `add`. A link to a folder that contains the link is skipped.
    """

    def __init__(self, root: Path) -> None:
        self._now = _Folder("", os.path.realpath(root), ())
        self._real = [self._now]
        self._linked: list[_Folder] = []
        self._done: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        """Yields folder after folder until none is left; folders may be added during the iteration."""
        while self._real or self._linked:
            self._now = self._real.pop() if self._real else heapq.heappop(self._linked)
            if self._now.real not in self._done:
                self._done.add(self._now.real)
                yield self._now.inside

    def add(self, entry: os.DirEntry[str]) -> None:
        """Adds a subfolder of the folder that the iteration yielded last."""
        inside, real, places = self._now
        name = f"{inside}{entry.name}/"
        if not entry.is_symlink():
            self._real.append(_Folder(name, os.path.join(real, entry.name), places))  # noqa: PTH118 - hot
            return
        target, places = os.path.realpath(entry.path), (*places, real)
        if not any(_lies_in(place, target) for place in places):
            heapq.heappush(self._linked, _Folder(name, target, places))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is a folder or a link to one; a broken link is not a folder."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def subfolders(root: Path) -> list[str]:
    """Returns the sorted names of the subfolders of a folder, linked ones included.

    Folders that systems create and links that form a loop are left out. A broken link without a suffix is included,
    because it may lead to a class folder on a disk that is not connected.
    """
    place = os.path.realpath(root)

    def is_subfolder(entry: os.DirEntry[str]) -> bool:
        if is_system_file(entry.name):
            return False
        if not entry.is_symlink():
            return is_folder(entry)
        broken = not suffix_of(entry.name) and not os.path.exists(entry.path)  # noqa: PTH110 - hot
        return (is_folder(entry) or broken) and not _lies_in(place, os.path.realpath(entry.path))

    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if is_subfolder(entry))


def files_below(root: Path, refuse: Callable[[OSError], None]) -> Iterator[tuple[str, list[str]]]:
    """Yields (folder, file names) for a folder and all folders below it, in the order of `FolderWalk`.

    The folder is "" or a path such as "sub/folder/". Hidden files and those that systems create are left out. `refuse`
    is called with the error if a folder cannot be listed.
    """
    walk = FolderWalk(root)
    for inside in walk:
        names: list[str] = []
        try:
            with os.scandir(root / inside) as entries:
                for entry in entries:
                    if is_system_file(entry.name):
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
    """Counts the files of each suffix, in words, the most frequent suffix first.

    Example:
        >>> counts_by_suffix(["a/1.heic", "a/2.HEIC", "b/notes"])
        '2 .heic, 1 without suffix'
    """
    return counts_in_words(Counter(map(suffix_of, names)))


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Returns the text of `counts_by_suffix` for a mapping suffix -> number of files."""
    most = [f"{count:,} {suffix or 'without suffix'}" for suffix, count in Counter(counts).most_common(_MOST_SUFFIXES)]
    return ", ".join(most) + (", …" if len(counts) > len(most) else "")


def passed_over(names: Sequence[str]) -> str:
    """Describes files that are not photos, with their suffixes and, for HEIC, the command that makes them readable.

    Example:
        >>> passed_over(["rust/notes.txt"])
        "1 file that is not a photo (1 .txt), the first 'rust/notes.txt'"
    """
    what = f"{len(names):,} files that are not photos" if len(names) > 1 else "1 file that is not a photo"
    remedy = how_to_read(names)
    return f"{what} ({counts_by_suffix(names)}), the first '{names[0]}'" + (f"; {remedy}" if remedy else "")


def how_to_read(names: Iterable[str], *, otherwise: str = "") -> str:
    """Returns the remedy for files that are not read as photos: how to read HEIC if some are HEIC, then `otherwise`.

    Example:
        >>> how_to_read(["a/notes.txt"], otherwise="name another folder")
        'name another folder'
    """
    if READS_HEIC or not any(suffix_of(name) in HEIC_SUFFIXES for name in names):
        return otherwise
    return f"to read HEIC photos, run {INSTALL_HEIC}" + (f"; or {otherwise}" if otherwise else "")


def _lies_in(place: str, folder: str) -> bool:
    return place == folder or place.startswith(folder.rstrip(os.sep) + os.sep)

"""Which files below a folder are photos: by suffix (HEIC with the extra `heic`), without the files of machines."""

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
# Pillow's JPEG reader opens .jfif and .jpe, which are JPEGs, and .mpo, a JPEG of two photos.
PHOTO_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff",
    *(HEIC_SUFFIXES if READS_HEIC else ()),
})  # fmt: skip

# Files and folders of systems, file servers and programs, in lower case. Hidden names are left out as well.
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
# The box with the size of each picture in a file.
_SIZE_BOX, _SIZE = re.compile(rb"ispe\0\0\0\0"), struct.Struct(">II")
_EXPLANATION = re.compile(r"-explained(-\d+)?\.png", re.IGNORECASE)
_MARK_KEY, _MARK = "Software", "AgriDistill: where a model looked"


def is_of_machine(name: str) -> bool:
    """Whether a file or folder belongs to a system or program: hidden, a thumbnail folder, a recycle bin, …

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


def is_heic(source: Path | bytes) -> bool:
    """Whether a file's content is HEIC; phones and mail programs also name such files .jpg.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(source, bytes):
        head = source[:_HEAD_BYTES]
    else:
        with source.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    return head[4:8] == b"ftyp" and any(brand in head for brand in _HEIC_BRANDS)


def heic_pixels(source: Path | bytes) -> int:
    """The pixels of the largest picture in a HEIC file, which is decoded whole, whatever size Pillow reports."""
    content = source if isinstance(source, bytes) else source.read_bytes()
    sizes = (_SIZE.unpack_from(content, found.end()) for found in _SIZE_BOX.finditer(content[: -_SIZE.size]))
    return max((width * height for width, height in sizes), default=0)


def explanation_mark() -> PngInfo:
    """The metadata of an explanation PNG, by which it is recognised and never read as a photo."""
    mark = PngInfo()
    mark.add_text(_MARK_KEY, _MARK)
    return mark


def is_explanation(path: str | os.PathLike[str]) -> bool:
    """Whether `predict --explain` wrote a file; only files with such a name are opened."""
    if not _EXPLANATION.search(str(path)):
        return False
    try:
        with Image.open(path) as picture:
            return picture.info.get(_MARK_KEY) == _MARK
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # reading it as a photo reports the error


class _Folder(NamedTuple):
    """A folder that waits to be listed."""

    inside: str  # its path below the root, "" or "sub/folder/"
    real: str  # its resolved path
    places: tuple[str, ...]  # the resolved folders of the links that lead to it


class FolderWalk:
    """The folders from a root down, linked ones too, each once: real ones first, then by name.

    Iteration gives "" and paths such as "sub/folder/". The caller lists each folder and adds subfolders.
    A link to a folder that contains the link is a loop and is left out.

    Args:
        root: where it begins.
    """

    def __init__(self, root: Path) -> None:
        self._now = _Folder("", os.path.realpath(root), ())
        self._real = [self._now]
        self._linked: list[_Folder] = []
        self._done: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        """Gives the next folder as long as there is one; folders may be added meanwhile."""
        while self._real or self._linked:
            self._now = self._real.pop() if self._real else heapq.heappop(self._linked)
            if self._now.real not in self._done:
                self._done.add(self._now.real)
                yield self._now.inside

    def add(self, entry: os.DirEntry[str]) -> None:
        """Adds a subfolder of the folder that was given last."""
        inside, real, places = self._now
        name = f"{inside}{entry.name}/"
        if not entry.is_symlink():
            self._real.append(_Folder(name, os.path.join(real, entry.name), places))  # noqa: PTH118 - hot
            return
        target, places = os.path.realpath(entry.path), (*places, real)
        if not any(_lies_in(place, target) for place in places):
            heapq.heappush(self._linked, _Folder(name, target, places))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a broken link is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def subfolders(root: Path) -> list[str]:
    """The names of a folder's subfolders, linked ones too, sorted, without those of machines and loops.

    A broken link without a suffix counts: its disk may be missing, and a class with it.

    Raises:
        OSError: the folder cannot be listed.
    """
    place = os.path.realpath(root)

    def is_subfolder(entry: os.DirEntry[str]) -> bool:
        if is_of_machine(entry.name):
            return False
        if not entry.is_symlink():
            return is_folder(entry)
        broken = not suffix_of(entry.name) and not os.path.exists(entry.path)  # noqa: PTH110 - hot
        return (is_folder(entry) or broken) and not _lies_in(place, os.path.realpath(entry.path))

    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if is_subfolder(entry))


def files_below(root: Path, refuse: Callable[[OSError], None]) -> Iterator[tuple[str, list[str]]]:
    """The folders from a root down as `FolderWalk` gives them, each with its file names, without those of machines.

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
    """`counts_by_suffix` from suffix -> number of files."""
    most = [f"{count:,} {suffix or 'without suffix'}" for suffix, count in Counter(counts).most_common(_MOST_SUFFIXES)]
    return ", ".join(most) + (", …" if len(counts) > len(most) else "")


def passed_over(names: Sequence[str]) -> str:
    """Describes files that are no photos, by suffix, with the remedy for HEIC.

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
    """The remedy where HEIC photos are among files that cannot be read here, before the remedy `otherwise`.

    Example:
        >>> how_to_read(["a/notes.txt"], otherwise="name another folder")
        'name another folder'
    """
    if READS_HEIC or not any(suffix_of(name) in HEIC_SUFFIXES for name in names):
        return otherwise
    return f"HEIC photos are read after {INSTALL_HEIC}" + (f"; or {otherwise}" if otherwise else "")


def _lies_in(place: str, folder: str) -> bool:
    return place == folder or place.startswith(folder.rstrip(os.sep) + os.sep)

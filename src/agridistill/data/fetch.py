"""Downloads a public data set and unpacks its photos, without trusting the server or the archive.

The sizes of all files, the number of files and, if it is known, the sha256 of the archive are checked. Paths that lead
out of the archive, links and devices are refused.
"""

from __future__ import annotations

import http.client
import lzma
import re
import stat
import struct
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any, NamedTuple, cast
from urllib.parse import urlsplit

from agridistill.data.datasets import Dataset
from agridistill.data.folder import scan
from agridistill.data.inspection import MAX_BAD_SHARE, inspect_photos
from agridistill.errors import DataError, FetchError
from agridistill.manifest import sha256_of
from agridistill.photo_files import is_photo, is_system_file
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.storage import replacing_folder, require_writable

ATTEMPTS = 4
PAUSE_S = 1.0  # pause before the second attempt; doubled before each further attempt
TIMEOUT_S = 30.0  # limit for connecting, and for each read
# Sizes in bytes above which a download or an archive is an attack or an accident.
MAX_DOWNLOAD_BYTES = 20_000_000_000
MAX_FILE_BYTES = 64_000_000  # one unpacked file
MAX_TOTAL_BYTES = 8_000_000_000  # all unpacked files
MAX_MEMBERS = 2_000_000  # number of files in an archive

_CHUNK_BYTES = 1 << 20
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_REPLACE = "get the archive again or pass another --source"
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, struct.error, NotImplementedError, ValueError, OSError),
)


class _InterruptedError(Exception):
    """A download failed in a way that may not occur again."""


@dataclass(frozen=True)
class FetchResult:
    """The data folder that `fetch_dataset` created, where it came from, and how many photos it has."""

    out: Path  # the data folder
    source: str  # URL or local file of the archive
    archive_sha256: str
    classes: int  # number of classes
    photos: int  # number of photos in the class folders, readable or not
    unreadable: tuple[str, ...]  # paths of the photos that cannot be read
    has_leaf_map: bool  # whether the archive contained the leaf map of the data set

    def to_json(self) -> dict[str, Any]:
        """Returns the result as a dict that `json.dumps` accepts; the keys are the names of the attributes."""
        return {**asdict(self), "out": str(self.out)}


def fetch_dataset(
    dataset: Dataset, out: Path, *, source: str | None = None, progress: ProgressCallback = silent
) -> FetchResult:
    """Downloads a data set, unpacks it and reads its photos. If this fails, no folder is created.

    Args:
        out: the folder to create; it must not exist, or must be empty.
        source: the http(s) address or the local path of a .zip or .tar archive, in which the class folders may be at
            any depth; None downloads `dataset.address`. If the text ends with `#sha256=HEX`, an archive with another
            sha256 is refused.
        progress: called for each stage: bytes downloaded, then files unpacked, then photos read.

    Raises:
        FetchError: `out` is not empty, or the archive is unreachable, damaged, unsafe or without photos of a class.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FetchError("a new or empty folder", f"'{out}', which is not empty", "choose another --out")
    if out.name in ("", ".."):
        # The finished folder is renamed to this path, which is impossible for the current folder.
        raise FetchError("a path that ends with the name of a new folder", f"'{out}'", "choose another --out")
    require_writable(out, folder=True)
    place, sha256 = _split_source(source) if source is not None else (dataset.address, dataset.sha256)
    out.parent.mkdir(parents=True, exist_ok=True)
    if "://" not in place:
        archive = Path(place)
        if not archive.is_file():
            got = f"the folder '{archive}'" if archive.is_dir() else f"'{archive}', which does not exist"
            raise FetchError("the path of an archive or an http(s) address", got, "correct --source")
        return _unpack_verified(dataset, archive, _verified(archive, sha256, place), out, place, progress)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        archive = Path(folder) / "archive"
        archive_sha256 = download(place, archive, sha256=sha256, progress=progress)
        return _unpack_verified(dataset, archive, archive_sha256, out, _without_secrets(place), progress)


def _split_source(source: str) -> tuple[str, str | None]:
    address, mark, digits = source.partition("#sha256=")
    if mark and not re.fullmatch("[0-9a-fA-F]{64}", digits):
        raise FetchError("64 hex digits after '#sha256='", f"'{digits}'", "correct --source")
    return address, digits or None


def _verified(archive: Path, expected: str | None, source: str) -> str:
    found = sha256_of(archive)
    if expected is not None and found != expected.lower():
        got = f"the sha256 {found[:12]}… of '{source}'"
        raise FetchError(
            f"an archive with the sha256 {expected[:12]}…", got, "check --source and get the archive again"
        )
    return found


def _unpack_verified(
    dataset: Dataset, archive: Path, sha256: str, out: Path, source: str, progress: ProgressCallback
) -> FetchResult:
    places = _places(dataset, archive, list_files(archive))
    with replacing_folder(out) as folder:
        begin(progress, "unpacking")
        unpack(archive, folder, places, progress=progress)
        scanned = scan(folder)
        has_leaf_map = bool(dataset.leaf_map) and (folder / dataset.leaf_map).exists()
        if has_leaf_map:
            try:
                dataset.leaf_ids(folder, scanned.samples, scanned.classes)
            except DataError:
                got = f"a damaged one in '{archive.name}'"
                raise FetchError(f"an archive with an intact '{dataset.leaf_map}'", got, _REPLACE) from None
        begin(progress, "reading photos")
        records = inspect_photos(scanned, progress=progress)
        bad = tuple(path for path, record in records.items() if record.error is not None)
        if len(bad) > MAX_BAD_SHARE * len(records):
            raise FetchError(
                f"an archive with at most {MAX_BAD_SHARE:.0%} unreadable photos",
                f"{len(bad)} of {len(records)}, the first '{bad[0]}' ({records[bad[0]].error})",
                _REPLACE,
            )
    return FetchResult(out, source, sha256, len(scanned.classes), len(records), bad, has_leaf_map)


def _places(dataset: Dataset, archive: Path, names: Iterable[str]) -> dict[str, PurePosixPath]:
    """Returns name in the archive -> path in the data folder, for the photos of the classes and the leaf map."""
    found: dict[PurePosixPath, dict[str, PurePosixPath]] = {}
    leaf_maps: list[str] = []
    for name in names:
        path = PurePosixPath(name)
        if path.name == dataset.leaf_map:
            leaf_maps.append(name)
        if len(path.parts) < 2 or path.parts[-2] not in dataset.classes or dataset.other_roots & set(path.parts[:-2]):
            continue
        if is_photo(path.name) and not any(is_system_file(part) for part in path.parts[:-1]):
            found.setdefault(path.parent.parent, {})[name] = PurePosixPath(path.parts[-2], path.name)
    roots = sorted(found)
    if len(roots) > 1:
        roots = [root for root in roots if root.name == dataset.photo_root]
        if len(roots) != 1:
            several = " and ".join(f"'{root}'" for root in sorted(found)[:2])
            raise FetchError(
                f"an archive with one folder that holds the class folders of {dataset.title}",
                f"{len(found)} such folders in '{archive.name}' ({several})",
                "remove all but one of them from the archive",
            )
    places = dict(found[roots[0]]) if roots else {}
    counts = Counter(place.parent.name for place in places.values())
    missing = [name for name in dataset.classes if not counts[name]]
    if missing:
        got = f"none of {', '.join(missing)}" if counts else "none of them"
        expected = f"photos of the {len(dataset.classes)} classes of {dataset.title}"
        raise FetchError(expected, f"{got} in '{archive.name}'", "pass the archive of this data set as --source")
    if leaf_maps:
        places[min(leaf_maps, key=lambda name: (name.count("/"), name))] = PurePosixPath(dataset.leaf_map)
    return places


def download(url: str, target: Path, *, sha256: str | None = None, progress: ProgressCallback = silent) -> str:
    """Downloads an archive over HTTP to `target` and returns its sha256; an interrupted download starts again.

    The total that `progress` gets is 0 if the server does not send it. Raises a FetchError if the server does not send
    the whole file, or it exceeds `MAX_DOWNLOAD_BYTES` or has another sha256 than the expected one.
    """
    _require_http(url)
    for attempt in range(ATTEMPTS):
        try:
            with target.open("wb") as file:
                _receive(url, file, progress)
            break
        except _InterruptedError as error:
            if attempt == ATTEMPTS - 1:
                expected = f"the complete file '{_without_secrets(url)}'"
                raise FetchError(expected, str(error), "try again later or pass another --source") from None
            time.sleep(PAUSE_S * 2**attempt)
    return _verified(target, sha256, _without_secrets(url))


def _without_secrets(url: str) -> str:
    """Removes user, password and query from a URL, which must not appear in messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _require_http(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or " " in url or not url.isascii():
        scheme = url.split("://")[0]
        got = f"one that starts with '{scheme}://'" if scheme not in ("http", "https") else "one that cannot be parsed"
        raise FetchError("an http or https address", got, "correct --source or pass a local archive")


def _receive(url: str, file: IO[bytes], progress: ProgressCallback) -> None:
    """Requests a file and writes it. Errors of the network are `_InterruptedError`, those of the disk `OSError`."""
    with _response(url) as response:
        length = response.headers.get("Content-Length") or ""
        done, total = 0, int(length) if length.isdigit() else 0
        while max(done, total) <= MAX_DOWNLOAD_BYTES:
            try:
                chunk = response.read(_CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise _InterruptedError(f"only {done:,} bytes ({str(error) or type(error).__name__})") from None
            if not chunk:
                if total and done != total:
                    raise _InterruptedError(f"only {done:,} of {total:,} bytes")
                return
            file.write(chunk)
            done += len(chunk)
            progress(done, total)
    got = f"a larger one from '{_without_secrets(url)}'"
    raise FetchError(f"an archive of at most {MAX_DOWNLOAD_BYTES:,} bytes", got, "pass another --source")


def _response(url: str) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "agridistill", "Accept-Encoding": "identity"})  # noqa: S310 - the scheme was checked
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310 - as above
    except urllib.error.HTTPError as error:
        error.close()
        got = f"status {error.code} {error.reason} from '{_without_secrets(url)}'"
        if error.code in _RETRIED_STATUSES:
            raise _InterruptedError(got) from None
        raise FetchError("an archive at the address", got, "check the address or pass another --source") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _InterruptedError(f"no answer from the server ({str(reason) or type(error).__name__})") from None
    return cast("http.client.HTTPResponse", response)


class _Member(NamedTuple):
    name: str
    is_regular: bool
    open: Callable[[], IO[bytes] | None]  # None only for a member that is not regular


def list_files(archive: Path) -> list[str]:
    """Returns the names of all files in a .zip or .tar archive, with forward slashes; refuses it as `unpack` does."""
    with _members(archive) as members:
        return [member.name for member in members]


def unpack(
    archive: Path, target: Path, places: Mapping[str, PurePosixPath], *, progress: ProgressCallback = silent
) -> None:
    """Unpacks some files of a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz archive, which is recognised by its content.

    `places` has, for each file to unpack, its name in the archive -> the path to write, relative to the folder
    `target`. Raises a FetchError if the archive is damaged, encrypted or too large, has a path that is absolute or
    contains "..", or a file to unpack is a link or a device.
    """
    written: set[PurePosixPath] = set()
    room = MAX_TOTAL_BYTES
    with _members(archive) as members:
        for member in members:
            place = places.get(member.name)
            if place is None:
                continue
            if not member.is_regular:
                got = f"'{member.name}' in '{archive.name}'"
                raise FetchError("an archive without links and devices", got, _REPLACE)
            if place in written:
                raise FetchError("an archive with each file once", f"'{place}' twice in '{archive.name}'", _REPLACE)
            written.add(place)
            room -= _write(archive, member, target / place, min(room, MAX_FILE_BYTES))
            progress(len(written), len(places))


def _write(archive: Path, member: _Member, path: Path, limit: int) -> int:
    """Writes a file of at most `limit` bytes and returns its size; the size in the archive's index is not trusted."""
    with cast("IO[bytes]", member.open()) as source:
        content = source.read(limit + 1)
    if len(content) > limit:
        raise _too_much(archive, f"more than {limit:,} bytes in '{member.name}'")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        return file.write(content)


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    """Yields an iterator over all entries of an archive except folders, after checking them; damage is a FetchError."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                yield _checked(archive, _zip_members(archive, opened))
        else:
            with tarfile.open(archive) as opened_tar:
                members = (
                    _Member(info.name, info.isreg(), partial(opened_tar.extractfile, info))
                    for info in opened_tar
                    if not info.isdir()
                )
                yield _checked(archive, members)
    except _DAMAGE as error:
        # gzip and bz2 report damage as an OSError without an error number; the error of a full disk has a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        got = f"'{archive.name}' ({str(error) or type(error).__name__})"
        raise FetchError("an intact .zip or .tar archive", got, _REPLACE) from None


def _checked(archive: Path, members: Iterator[_Member]) -> Iterator[_Member]:
    for count, member in enumerate(members, start=1):
        if count > MAX_MEMBERS:
            raise _too_much(archive, f"more than {MAX_MEMBERS:,} files")
        # Check also files that will not be unpacked: such a path shows that the archive is malicious.
        path = PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]) or "\0" in member.name:
            got = f"'{member.name}' in '{archive.name}'"
            raise FetchError("an archive with relative paths and without '..'", got, "do not use this archive")
        yield member


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        # Some Windows programs write backslashes instead of slashes; no file of a data set has one in its name.
        name = info.filename.replace("\\", "/")
        if name.endswith("/"):
            continue
        if info.flag_bits & 1:
            got = f"'{archive.name}', which has a password"
            raise FetchError("an archive without a password", got, "unpack it and pack it again without a password")
        kind = stat.S_IFMT(info.external_attr >> 16)
        yield _Member(name, kind in (0, stat.S_IFREG), partial(opened.open, info))


def _too_much(archive: Path, got: str) -> FetchError:
    return FetchError("an archive within the size limits", f"{got} in '{archive.name}'", "do not use this archive")

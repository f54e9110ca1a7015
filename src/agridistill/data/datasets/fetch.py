"""`data fetch`: PlantVillage's tomato photos, downloaded, verified and unpacked, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import json
import lzma
import os
import re
import shutil
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
from typing import IO, Any
from urllib.parse import urlsplit

from agridistill.data.datasets.plantvillage import LEAF_MAP_NAME, read_leaf_map
from agridistill.data.folder import scan
from agridistill.data.inspection import MAX_BAD_SHARE, inspect_photos
from agridistill.errors import DataError, FetchError
from agridistill.manifest import sha256_of
from agridistill.photo_files import is_of_machine, is_photo
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.storage import require_writable, write_json

PLANTVILLAGE_ARCHIVE = "https://github.com/spMohanty/PlantVillage-Dataset/archive/refs/heads/master.zip"
TOMATO_CLASSES = (
    "Tomato___Bacterial_spot",
    "Tomato___Early_blight",
    "Tomato___Late_blight",
    "Tomato___Leaf_Mold",
    "Tomato___Septoria_leaf_spot",
    "Tomato___Spider_mites Two-spotted_spider_mite",
    "Tomato___Target_Spot",
    "Tomato___Tomato_Yellow_Leaf_Curl_Virus",
    "Tomato___Tomato_mosaic_virus",
    "Tomato___healthy",
)
_OTHER_RENDERINGS = frozenset({"grayscale", "segmented"})
_SHA256 = re.compile(r"(?P<source>.*)#sha256=(?P<sha256>[0-9a-fA-F]*)", re.DOTALL)


@dataclass(frozen=True)
class FetchResult:
    """What was fetched.

    Attributes:
        out: the data folder.
        source: address or file that it came from.
        archive_sha256: of the archive.
        classes: number of class folders.
        photos: files in them, readable or not.
        unreadable: paths of the photos that cannot be read.
        has_leaf_map: whether the archive held PlantVillage's `leaf-map.json`.
    """

    out: Path
    source: str
    archive_sha256: str
    classes: int
    photos: int
    unreadable: tuple[str, ...]
    has_leaf_map: bool

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {**asdict(self), "out": str(self.out)}


def fetch_plantvillage_tomato(
    out: Path,
    *,
    source: str | None = None,
    options: DownloadOptions | None = None,
    limits: ArchiveLimits | None = None,
    progress: ProgressCallback = silent,
) -> FetchResult:
    """Makes a data folder of PlantVillage's ten tomato classes (Hughes and Salathé 2015, CC BY-SA 3.0).

    The folder appears whole or not at all. A download that was cut off stays beside it as `OUT.part` and is continued
    by the next call.

    Args:
        out: folder to make; it must not exist or be empty.
        source: http(s) address or local file of a .zip or .tar archive that holds the class folders at any depth, by
            default the data set's public repository; `#sha256=…` at its end is verified.
        options: tries, pauses and timeouts of a download.
        limits: on what the archive may hold.
        progress: called with (done, total): bytes of the download, then files unpacked, then photos verified.

    Raises:
        FetchError: `out` is taken; the source cannot be reached or trusted, or holds something else.
        OSError: the disk is full or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FetchError("a new or empty folder", f"'{out}', which exists", "choose another --out")
    if out.name in ("", ".."):
        # It is renamed into its place at the end, which the folder one stands in cannot be.
        raise FetchError("the name of a folder to make", f"'{out}'", "write --out with a name")
    require_writable(out, folder=True)
    place, sha256 = _parse_source(source or PLANTVILLAGE_ARCHIVE)
    out.parent.mkdir(parents=True, exist_ok=True)
    if "://" not in place:
        archive = _local_archive(Path(place), sha256)
        return _unpack_tomato(archive, out, place, limits, progress)
    archive = out.with_name(f"{out.name}.part")
    download(place, archive, sha256=sha256, options=options, progress=progress)
    try:
        result = _unpack_tomato(archive, out, shown(place), limits, progress)
    except FetchError:
        # It is whole, and wrong: continuing it would give the same again.
        discard(archive)
        raise
    discard(archive)
    return result


def _parse_source(source: str) -> tuple[str, str | None]:
    match = _SHA256.fullmatch(source)
    if match is None:
        return source, None
    if len(match["sha256"]) != 64:
        raise FetchError("a sha256 of 64 hex digits", f"'{match['sha256']}'", "correct the source")
    return match["source"], match["sha256"].lower()


def _local_archive(path: Path, sha256: str | None) -> Path:
    if not path.is_file():
        got = f"the folder '{path}'" if path.is_dir() else f"'{path}', which does not exist"
        raise FetchError("an archive file or an http(s) address", got, "correct --source")
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise FetchError(
            f"an archive with sha256 {sha256[:12]}…", f"{found[:12]}… in '{path}'", "get the archive again"
        )
    return path


def _unpack_tomato(
    archive: Path, out: Path, source: str, limits: ArchiveLimits | None, progress: ProgressCallback
) -> FetchResult:
    places = _places(archive, list_files(archive, limits=limits))
    folder = out.with_name(f".{out.name}.{os.getpid()}.unpacking")
    folder.mkdir()
    try:
        begin(progress, "unpacking")
        unpack(archive, folder, places, limits=limits, progress=progress)
        result = _verified(folder, out, source, sha256_of(archive), progress)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _places(archive: Path, names: Iterable[str]) -> dict[str, PurePosixPath]:
    """Where each wanted file goes: the colour photos of the ten classes, and the leaf map nearest to the top."""
    found: dict[PurePosixPath, dict[str, PurePosixPath]] = {}
    leaf_maps: list[str] = []
    for name in names:
        path = PurePosixPath(name)
        if path.name == LEAF_MAP_NAME:
            leaf_maps.append(name)
        if len(path.parts) < 2 or path.parts[-2] not in TOMATO_CLASSES or _OTHER_RENDERINGS & set(path.parts[:-2]):
            continue
        if is_photo(path.name) and not any(is_of_machine(part) for part in path.parts[:-1]):
            found.setdefault(path.parent.parent, {})[name] = PurePosixPath(path.parts[-2], path.name)
    places = _one_root(archive, found)
    _check_classes(archive, places)
    if leaf_maps:
        places[min(leaf_maps, key=lambda name: (name.count("/"), name))] = PurePosixPath(LEAF_MAP_NAME)
    return places


def _one_root(archive: Path, found: Mapping[PurePosixPath, dict[str, PurePosixPath]]) -> dict[str, PurePosixPath]:
    """The files of the one folder that holds class folders; of several, the one named `color`."""
    roots = sorted(found)
    if len(roots) > 1:
        roots = [root for root in roots if root.name == "color"]
    if len(found) > 1 and len(roots) != 1:
        shown_roots = " and ".join(f"'{root}'" for root in sorted(found)[:2])
        raise FetchError(
            "one folder of tomato class folders", f"{len(found)} in '{archive.name}' ({shown_roots})", "pack only one"
        )
    return dict(found[roots[0]]) if roots else {}


def _check_classes(archive: Path, places: Mapping[str, PurePosixPath]) -> None:
    counts = Counter(place.parent.name for place in places.values())
    missing = [name for name in TOMATO_CLASSES if not counts[name]]
    if not missing:
        return
    got = "none of them" if not counts else f"none of {', '.join(missing)}"
    raise FetchError(
        f"photos of the {len(TOMATO_CLASSES)} tomato classes of PlantVillage",
        f"{got} in '{archive.name}'",
        "name another --source",
    )


def _verified(folder: Path, out: Path, source: str, sha256: str, progress: ProgressCallback) -> FetchResult:
    """Reads every photo and the leaf map before anybody else does."""
    try:
        has_leaf_map = (folder / LEAF_MAP_NAME).exists() and read_leaf_map(folder) is not None
    except DataError as error:
        raise FetchError("an archive with a usable leaf map", error.got, "name another --source") from None
    scanned = scan(folder)
    begin(progress, "reading photos")
    records = inspect_photos(scanned, progress=progress).records
    bad = tuple(path for path, record in records.items() if record.error is not None)
    if len(bad) > MAX_BAD_SHARE * len(records):
        raise FetchError(
            "readable photos",
            f"{len(bad)} of {len(records)} unreadable, the first '{bad[0]}' ({records[bad[0]].error})",
            "name another --source",
        )
    return FetchResult(out, source, sha256, len(scanned.classes), len(records), bad, has_leaf_map)


MAX_DOWNLOAD_BYTES = 20_000_000_000
_CHUNK_BYTES = 1 << 20
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_AGAIN = "run the same command again: it goes on where it stopped"


@dataclass(frozen=True)
class DownloadOptions:
    """How patient a download is.

    Attributes:
        attempts: tries in a row that bring nothing new before it is given up.
        pause_s: before the second try; doubled before each further one.
        timeout_s: for a connection, and for each read.
        max_bytes: a larger file is refused.
    """

    attempts: int = 4
    pause_s: float = 1.0
    timeout_s: float = 30.0
    max_bytes: int = MAX_DOWNLOAD_BYTES


@dataclass(frozen=True)
class _Version:
    """Which version of which file the partial download belongs to; kept beside it.

    The address is kept as a sha256, for it may hold a password or a token.
    """

    url_sha256: str
    validator: str


class _CutOffError(Exception):
    """The server or the network stopped; what came so far is kept."""


class _TooLargeError(Exception):
    """More than the limit; what came so far is of no use."""


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    options: DownloadOptions | None = None,
    progress: ProgressCallback = silent,
) -> None:
    """Downloads a file, or the rest of it.

    An earlier, unfinished `target` is continued where the server vouches (If-Range) that the file is the same, and
    replaced where it does not.

    Args:
        url: http or https.
        target: file to write; it stays after a failure, to be continued, unless it is refused. `discard` removes it.
        sha256: of the whole file, in hex; a file that differs is removed.
        options: tries, pauses, timeouts and limits.
        progress: called with (bytes so far, bytes in all; 0 where unknown).

    Raises:
        FetchError: not reachable, refused by the server, cut off again and again, too large, or of another sha256.
        OSError: the disk is full or cannot be written.
    """
    _check_address(url)
    options = options or DownloadOptions()
    failures, best = 0, -1
    while True:
        try:
            _continue(url, target, options, progress)
            break
        except _TooLargeError:
            discard(target)
            raise FetchError(
                f"at most {options.max_bytes:,} bytes", f"more from '{shown(url)}'", "name another --source"
            ) from None
        except _CutOffError as error:
            size = _size(target)
            failures = failures + 1 if size <= best else 1
            best = max(best, size)
            if failures >= options.attempts:
                raise FetchError(f"the whole of '{shown(url)}'", f"{size:,} bytes ({error})", _AGAIN) from None
            time.sleep(options.pause_s * 2 ** (failures - 1))
    if sha256 is not None and (found := sha256_of(target)) != sha256.lower():
        discard(target)
        raise FetchError(
            f"an archive with sha256 {sha256[:12]}…",
            f"{found[:12]}… from '{shown(url)}'",
            "check the source and the sha256",
        )


def discard(target: Path) -> None:
    """Removes a download, finished or not, and what is known about it."""
    target.unlink(missing_ok=True)
    _version_file(target).unlink(missing_ok=True)


def shown(url: str) -> str:
    """The address as it may stand in a message: without a password or a token."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        url.encode("ascii")
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or " " in url:
        scheme = url.split("://")[0]
        got = f"one that starts with '{scheme}://'" if scheme not in ("http", "https") else "one that cannot be parsed"
        raise FetchError("an http or https address", got, "correct it or name a local archive")


def _continue(url: str, target: Path, options: DownloadOptions, progress: ProgressCallback) -> None:
    """One request: the rest of the file, or all of it."""
    start = _resumable_size(url, target)
    with _opened(url, start, target, options) as response:
        if response is None:
            return
        if response.status == http.client.PARTIAL_CONTENT:
            _check_same(target, start, response)
        else:
            start = 0
            # In this order: a cut between the two must not leave old bytes under a new version.
            target.unlink(missing_ok=True)
            _remember(url, target, response)
        length = response.headers.get("Content-Length") or ""
        total = start + int(length) if length.isdigit() else 0
        _check_size(total, options)
        with target.open("ab" if start else "wb") as file:
            done = start
            while chunk := _read(response):
                done += len(chunk)
                _check_size(done, options)
                file.write(chunk)
                progress(done, total)
    if total and done != total:
        raise _CutOffError(f"of {total:,}")


@contextmanager
def _opened(url: str, start: int, target: Path, options: DownloadOptions) -> Iterator[http.client.HTTPResponse | None]:
    """The server's answer; None where the file is complete already."""
    headers = {"User-Agent": "agridistill", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": _known_version(target).validator}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was checked
    try:
        response = urllib.request.urlopen(request, timeout=options.timeout_s)  # noqa: S310 - as above
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                if error.headers.get("Content-Range") == f"bytes */{start}":
                    yield None
                    return
                discard(target)
                raise _CutOffError("a file that became shorter") from None
            if error.code in _RETRIED_STATUSES:
                raise _CutOffError(f"status {error.code} {error.reason}") from None
            got = f"status {error.code} {error.reason} from '{shown(url)}'"
            raise FetchError("a file to download", got, "check the address or name another --source") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _CutOffError(str(reason) or type(error).__name__) from None
    with response:
        yield response


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _CutOffError(str(error) or type(error).__name__) from None


def _check_size(size: int, options: DownloadOptions) -> None:
    if size > options.max_bytes:
        raise _TooLargeError


def _resumable_size(url: str, target: Path) -> int:
    """Bytes that the server may be asked to continue; without a known version of the same address, none."""
    version = _known_version(target)
    return _size(target) if version.url_sha256 == _hashed(url) and version.validator else 0


def _check_same(target: Path, start: int, response: http.client.HTTPResponse) -> None:
    """Discards the first part where the rest comes from elsewhere: some servers ignore If-Range."""
    validator = _validator(response)
    if validator and validator != _known_version(target).validator:
        discard(target)
        raise _CutOffError("a file that changed")
    if not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
        discard(target)
        raise _CutOffError("another range than the one asked for")


def _remember(url: str, target: Path, response: http.client.HTTPResponse) -> None:
    write_json(_version_file(target), asdict(_Version(_hashed(url), _validator(response))))


def _validator(response: http.client.HTTPResponse) -> str:
    etag = response.headers.get("ETag") or ""
    # A weak ETag does not promise the same bytes.
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified") or ""


def _known_version(target: Path) -> _Version:
    try:
        return _Version(**json.loads(_version_file(target).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return _Version("", "")


def _hashed(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _version_file(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _size(target: Path) -> int:
    return target.stat().st_size if target.exists() else 0


_CHUNK_BYTES = 1 << 20
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    NotImplementedError,
    UnicodeError,
    ValueError,
)


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold; above it is an attack or an accident.

    Attributes:
        members: entries in all.
        files: unpacked files.
        file_bytes: of one unpacked file.
        total_bytes: of all unpacked files.
        content_bytes: of all entries, unpacked or not.
    """

    members: int = 2_000_000
    files: int = 200_000
    file_bytes: int = 64_000_000
    total_bytes: int = 8_000_000_000
    content_bytes: int = 100_000_000_000


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    is_regular: bool
    open: Callable[[], IO[bytes]]


def list_files(archive: Path, *, limits: ArchiveLimits | None = None) -> list[str]:
    """The names of all files in an archive, with slashes.

    Raises:
        FetchError: no archive, damaged, above the limits, or with a path that leads out of it.
    """
    with _members(archive, limits or ArchiveLimits()) as members:
        return [member.name for member in members]


def unpack(
    archive: Path,
    target: Path,
    places: Mapping[str, PurePosixPath],
    *,
    limits: ArchiveLimits | None = None,
    progress: ProgressCallback = silent,
) -> None:
    """Writes chosen files of an archive into a folder.

    Args:
        archive: .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz, told by its content.
        target: an existing folder of our own.
        places: name in the archive -> where to write it, relative to `target`.
        limits: on counts and sizes; sizes are measured, not believed.
        progress: called with (files done, files in all).

    Raises:
        FetchError: damaged, above the limits, encrypted, or a chosen entry is a link or a device.
    """
    limits = limits or ArchiveLimits()
    if len(places) > limits.files:
        raise _too_much(archive, f"{len(places):,} files")
    written: set[PurePosixPath] = set()
    total = 0
    with _members(archive, limits) as members:
        for member in members:
            place = places.get(member.name)
            if place is None:
                continue
            _check_place(archive, member, place, written)
            written.add(place)
            total += _write(archive, member, target / place, limits, total)
            progress(len(written), len(places))
    missing = sorted(str(place) for place in set(places.values()) - written)
    if missing:
        raise FetchError("a whole archive", f"'{archive.name}' without '{missing[0]}'", _REPLACE)


def _check_place(archive: Path, member: _Member, place: PurePosixPath, written: set[PurePosixPath]) -> None:
    if not member.is_regular:
        raise FetchError("plain files", f"'{member.name}' in '{archive.name}', a link or a device", _REPLACE)
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"a place outside the target: {place}")
    if place in written:
        raise FetchError("each file once", f"'{place}' twice in '{archive.name}'", _REPLACE)


def _write(archive: Path, member: _Member, path: Path, limits: ArchiveLimits, total: int) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with member.open() as source, path.open("xb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > limits.file_bytes or total + size > limits.total_bytes:
                raise _too_much(archive, f"more than {size - len(chunk):,} bytes in '{member.name}'")
            file.write(chunk)
    if size != member.size:
        raise FetchError("a whole archive", f"'{member.name}' cut off in '{archive.name}'", _REPLACE)
    return size


@contextmanager
def _members(archive: Path, limits: ArchiveLimits) -> Iterator[Iterator[_Member]]:
    """All entries but folders, checked, in the archive's order; damage becomes a FetchError."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                yield _checked(archive, _zip_members(archive, opened), limits)
        else:
            with tarfile.open(archive) as opened_tar:
                yield _checked(archive, _tar_members(opened_tar), limits)
    except _DAMAGE as error:
        got = f"'{archive.name}' ({error or type(error).__name__})"
        raise FetchError("an intact .zip or .tar archive", got, _REPLACE) from None
    except OSError as error:
        # gzip and bz2 tell damage as an OSError without a number; a full disk has one.
        if error.errno is not None:
            raise
        raise FetchError("an intact .zip or .tar archive", f"'{archive.name}' ({error})", _REPLACE) from None


def _checked(archive: Path, members: Iterator[_Member], limits: ArchiveLimits) -> Iterator[_Member]:
    content = 0
    for count, member in enumerate(members, start=1):
        content += member.size
        if count > limits.members or content > limits.content_bytes:
            raise _too_much(archive, f"{count:,} entries of {content:,} bytes")
        # Also of files that are not wanted: an archive with such a path was made to do harm.
        path = PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]) or "\0" in member.name:
            raise FetchError(
                "paths inside the archive", f"'{member.name}' in '{archive.name}'", "do not use this archive"
            )
        yield member


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        # Against the format, programs on Windows write backslashes; no file of a data set has one in its name.
        name = info.filename.replace("\\", "/")
        if name.endswith("/"):
            continue
        if info.flag_bits & 1:
            raise FetchError("an archive without a password", f"'{archive.name}'", "unpack and pack it again")
        kind = stat.S_IFMT(info.external_attr >> 16)
        is_regular = kind in (0, stat.S_IFREG)
        yield _Member(name, info.file_size, is_regular, partial(opened.open, info))


def _tar_members(opened: tarfile.TarFile) -> Iterator[_Member]:
    for info in opened:
        if info.isdir():
            continue
        yield _Member(info.name, info.size, info.isreg(), partial(_extracted, opened, info))


def _extracted(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    source = opened.extractfile(info)
    if source is None:
        raise tarfile.ReadError(f"no content in '{info.name}'")
    return source


def _too_much(archive: Path, got: str) -> FetchError:
    return FetchError("an archive of ordinary size", f"{got} of '{archive.name}'", "do not use this archive")


_REPLACE = "get the archive again or name another --source"

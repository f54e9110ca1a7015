"""`data fetch`: PlantVillage's tomato photos, downloaded, verified and unpacked, whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from agridistill.data.archive import ArchiveLimits, list_files, unpack
from agridistill.data.download import DownloadOptions, discard, download, shown
from agridistill.data.inspection import MAX_BAD_SHARE, inspect_photos
from agridistill.data.plantvillage import LEAF_MAP_NAME, read_leaf_map
from agridistill.data.samples import scan
from agridistill.errors import DataError, FetchError
from agridistill.manifest import sha256_of
from agridistill.photo_files import is_of_machine, is_photo
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.storage import require_writable

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

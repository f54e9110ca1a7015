"""Public data sets: `DATASETS` has one row for each, and `data fetch` downloads them.

To add a data set, write one module with its classes and the meaning of its file names, and add one row here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from agridistill.data.datasets import plantvillage
from agridistill.data.datasets.archive import download, list_files, require_sha256, unpack, without_secrets
from agridistill.data.folder import Sample, scan
from agridistill.data.inspection import MAX_BAD_SHARE, inspect_photos
from agridistill.errors import DataError, FetchError
from agridistill.photo_files import is_of_machine, is_photo
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.storage import replacing_folder, require_writable

__all__ = ["DATASETS", "Dataset", "FetchResult", "fetch_dataset", "leaves_by_name"]


_SOURCE = re.compile(r"(?P<source>.*)#sha256=(?P<sha256>[0-9a-fA-F]*)", re.DOTALL)


@dataclass(frozen=True)
class Dataset:
    """A public data set that can be downloaded as one archive with a folder of photos for each class."""

    address: str  # URL of an archive of one commit, never of a branch, so that the content cannot change
    sha256: str | None  # sha256 of the archive; None if the server packs it again for each download
    classes: tuple[str, ...]  # names of the class folders; other folders of the archive are left out
    leaf_ids: Callable[[Path, Sequence[Sample], Sequence[str]], dict[str, str]]
    """A function of (data folder, samples, classes) that returns sample path -> leaf id, for all known leaves."""
    title: str  # the name for messages
    leaf_map: str = ""  # name of a file that `leaf_ids` reads from the data folder; "" for none
    photo_root: str = ""  # the folder that holds the class folders, if the archive has several versions of the photos
    other_roots: frozenset[str] = frozenset()  # folders with the other versions, which are not used


DATASETS: Mapping[str, Dataset] = {
    "plantvillage-tomato": Dataset(
        address="https://github.com/spMohanty/PlantVillage-Dataset/archive/40789680ba2e6382608dba47b397688fcbd0d04a.zip",
        sha256=None,
        classes=plantvillage.TOMATO_CLASSES,
        leaf_ids=plantvillage.leaf_ids,
        # Hughes and Salathé 2015, CC BY-SA 3.0.
        title="PlantVillage's tomatoes",
        leaf_map=plantvillage.LEAF_MAP_NAME,
        photo_root="color",
        other_roots=frozenset({"grayscale", "segmented"}),
    ),
}


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


def leaves_by_name(root: Path, samples: Sequence[Sample], classes: Sequence[str]) -> dict[str, str]:
    """Finds photos of the same leaf by their file names, for photos of the data sets in `DATASETS`.

    Args:
        root: the data folder. If it or its parent holds the leaf map of a data set (`leaf-map.json`), this is used too.
        samples: the photos.
        classes: the class names; a label is an index into them.

    Returns:
        `Sample.path` -> leaf id, without the photos whose file names are not those of a data set.

    Raises:
        DataError: a leaf map is damaged.
    """
    found: dict[str, str] = {}
    for dataset in DATASETS.values():
        found = dataset.leaf_ids(root, samples, classes) | found
    return found


def fetch_dataset(
    dataset: Dataset, out: Path, *, source: str | None = None, progress: ProgressCallback = silent
) -> FetchResult:
    """Downloads a data set, unpacks it and reads its photos. If this fails, no folder is created.

    Args:
        dataset: one of the values of `DATASETS`.
        out: the folder to create; it must not exist, or must be empty.
        source: the http(s) address or the local path of a .zip or .tar archive, in which the class folders may be at
            any depth; None downloads `dataset.address`. If the text ends with `#sha256=HEX`, an archive with another
            sha256 is refused.
        progress: called with (done, total) for each stage: bytes downloaded, then files unpacked, then photos read.

    Raises:
        FetchError: `out` is not empty, the download fails, the archive is damaged or unsafe, or it lacks photos of a
            class.
        OSError: the disk is full or cannot be written.
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
        archive_sha256 = require_sha256(archive, sha256, f"in '{archive}'", "get the archive again")
        return _unpack_verified(dataset, archive, archive_sha256, out, place, progress)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        archive = Path(folder) / "archive"
        archive_sha256 = download(place, archive, sha256=sha256, progress=progress)
        return _unpack_verified(dataset, archive, archive_sha256, out, without_secrets(place), progress)


def _split_source(source: str) -> tuple[str, str | None]:
    """Splits `ADDRESS#sha256=HEX` into the address and the sha256; the latter is None if it is not given."""
    match = _SOURCE.fullmatch(source)
    if match is None:
        return source, None
    if len(match["sha256"]) != 64:
        raise FetchError("64 hex digits after '#sha256='", f"'{match['sha256']}'", "correct --source")
    return match["source"], match["sha256"].lower()


def _unpack_verified(
    dataset: Dataset, archive: Path, sha256: str, out: Path, source: str, progress: ProgressCallback
) -> FetchResult:
    """Unpacks to a temporary folder, reads every photo and the leaf map, then renames the folder to `out`."""
    places = _places(dataset, archive, list_files(archive))
    with replacing_folder(out) as folder:
        begin(progress, "unpacking")
        unpack(archive, folder, places, progress=progress)
        scanned = scan(folder)
        has_leaf_map = bool(dataset.leaf_map) and (folder / dataset.leaf_map).exists()
        if has_leaf_map:
            try:
                dataset.leaf_ids(folder, scanned.samples, scanned.classes)
            except DataError as error:
                expected = f"an archive with an intact '{dataset.leaf_map}'"
                raise FetchError(expected, error.got, "download it again or pass another --source") from None
        begin(progress, "reading photos")
        records = inspect_photos(scanned, progress=progress)
        bad = tuple(path for path, record in records.items() if record.error is not None)
        if len(bad) > MAX_BAD_SHARE * len(records):
            raise FetchError(
                f"an archive with at most {MAX_BAD_SHARE:.0%} unreadable photos",
                f"{len(bad)} of {len(records)}, the first '{bad[0]}' ({records[bad[0]].error})",
                "download it again or pass another --source",
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
        if is_photo(path.name) and not any(is_of_machine(part) for part in path.parts[:-1]):
            found.setdefault(path.parent.parent, {})[name] = PurePosixPath(path.parts[-2], path.name)
    roots = sorted(found)
    if len(roots) > 1:
        roots = [root for root in roots if root.name == dataset.photo_root]
    if len(found) > 1 and len(roots) != 1:
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
        raise FetchError(
            f"photos of the {len(dataset.classes)} classes of {dataset.title}",
            f"{got} in '{archive.name}'",
            "pass the archive of this data set as --source",
        )
    if leaf_maps:
        places[min(leaf_maps, key=lambda name: (name.count("/"), name))] = PurePosixPath(dataset.leaf_map)
    return places

"""Public data sets: `DATASETS`, at the end, has one row for each; `fetch` downloads them.

To add a data set, write a function that finds the photos of one leaf by the file names, and add a row with it.

PlantVillage's names look like `<uuid>___RS_Late.B 4892.jpg` (a series and the shot number of the camera) or
`<uuid>___GHLB Leaf 2.1 Day 12.jpg` (leaf 2, photo 1). Copies have no uuid, and end with ` copy`, ` 2`, `_flipLR` and
the like. The leaves were photographed one after another, mostly two to five photos each, but the shot numbers do not
show where the next leaf starts. Groups are therefore large: a group of several leaves makes the split a little less
balanced, but a leaf in two groups could be in both train and test.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from agridistill.data.folder import Sample
from agridistill.data.likeness import merge_groups
from agridistill.errors import DataError


@dataclass(frozen=True)
class Dataset:
    """A public data set that can be downloaded as one archive with a folder of photos for each class."""

    address: str  # URL of an archive of one commit, never of a branch, so that the content cannot change
    sha256: str | None  # sha256 of the archive; None if the server packs it again for each download
    classes: tuple[str, ...]  # names of the class folders; other folders of the archive are not unpacked
    leaf_ids: Callable[[Path, Sequence[Sample], Sequence[str]], dict[str, str]]
    """Function of (data folder, samples, classes) that returns `Sample.path` -> leaf id, for photos of known leaves."""
    title: str  # the name for messages
    leaf_map: str = ""  # name of a file that `leaf_ids` reads from the data folder; "" for none
    photo_root: str = ""  # the folder that holds the class folders, if the archive has several versions of the photos
    other_roots: frozenset[str] = frozenset()  # folders with other versions, which are never used, such as grey photos


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
LEAF_MAP_NAME = "leaf-map.json"
# Largest gap between two shot numbers in one group. Some photos are missing in the data: in the series "Matt.S_CG" the
# shots 1019 and 1027 show one leaf, and none between them exists. A leaf of "UF.GRC_YLCV_Lab" has 25 shots.
MAX_SHOT_GAP = 8

LeafMap = Mapping[str, tuple[str, ...]]
"""File name in lower case, without uuid and suffix -> leaf ids, each `class:::number` as in the data set."""

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}_+")
# Cameras count with four digits or more. The number of a leaf has at most three digits, or is followed by a point and
# the number of the photo.
_NAMED_LEAF = re.compile(r"(?P<series>[a-z][a-z0-9_.-]*)[ _]+leaf[ _]+(?P<leaf>\d{1,3}(?![0-9a-z])|\d+(?=\.\d))")
_SHOT = re.compile(r"(?P<series>.*?[a-z.])[ _]+(?P<number>\d{1,6})(?![0-9a-z])")
# "_ps" (background removed) and "es" mark other photos of the same plants.
_VARIANT = re.compile(r"(?:_ps|es)$")
# The series of the tomato classes. A name without uuid is recognised only with one of them: "IMG 0001" may be anything.
_TOMATO_SERIES = frozenset({
    "com.g_fl", "com.g_spm_fl", "com.g_tgs_fl", "crnl_l.mold", "gcrec_bact.sp", "gh_hl leaf", "ghlb leaf", "ghlb2 leaf",
    "jr_sept.l.s", "keller.st_cg", "matt.s_cg", "psu_cg", "rs_erly.b", "rs_hl", "rs_late.b", "uf.grc_bs_lab leaf",
    "uf.grc_ylcv_lab", "ylcv_gcrec", "ylcv_nrec",
})  # fmt: skip


class _Name(NamedTuple):
    """The parts of a file name, which names a leaf or a shot in a series; for the latter, `leaf` is None."""

    stem: str
    series: str
    number: str
    leaf: str | None


def leaves_of(samples: Iterable[Sample], classes: Sequence[str], leaf_map: LeafMap | None) -> dict[str, str]:
    """Finds PlantVillage's photos of the same leaf, first by the leaf map, then by their file names.

    Names such as `GHLB Leaf 2.1.jpg` hold the number of the leaf (2). Names such as `RS_HL 4892.jpg` only hold a series
    and a shot number: shots of a class and a series count as one leaf if no gap is larger than `MAX_SHOT_GAP`.

    Returns `Sample.path` -> leaf id, without the photos whose file names are not those of PlantVillage.
    """
    names: dict[str, _Name] = {}
    mapped: dict[str, list[str]] = {}
    class_of = {sample.path: classes[sample.label] for sample in samples}
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    shots: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for path, class_name in class_of.items():
        name = _parse_name(path)
        if name is None:
            continue
        names[path] = name
        leaves = (leaf_map or {}).get(name.stem) or (leaf_map or {}).get(f"{name.series} {name.number}") or ()
        # Different crops have series with the same name: entries of other classes are ignored.
        mapped[path] = [leaf for leaf in leaves if ":::" not in leaf or leaf.split(":::", 1)[0] == class_name]
        for leaf in mapped[path]:
            groups["", leaf].append(path)
        if name.leaf is None:
            shots[class_name, name.series].append((int(name.number), path))
        elif not mapped[path]:
            groups[class_name, name.leaf].append(path)
    neighbours = [
        (path, next_path)
        for series in shots.values()
        for (number, path), (next_number, next_path) in pairwise(sorted(series))
        if next_number - number <= MAX_SHOT_GAP and not (mapped[path] and mapped[next_path])
    ]
    found: dict[str, str] = {}
    for group in merge_groups(names, (*groups.values(), *neighbours)):
        # The smallest id is taken, so that the order of the samples does not matter.
        ids = [leaf for path in group for leaf in mapped[path]]
        ids = ids or [
            f"{class_of[path]}:{names[path].leaf or f'{names[path].series} {names[path].number}'}" for path in group
        ]
        found.update(dict.fromkeys(group, min(ids)))
    return found


def read_leaf_map(root: Path) -> LeafMap | None:
    """Reads `leaf-map.json` from the data folder or its parent folder; returns None if it does not exist.

    Raises a DataError if the file is not a JSON object that has a leaf id, or a list of them, for each file name.
    """
    places = (root / LEAF_MAP_NAME, root.resolve().parent / LEAF_MAP_NAME)
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        return None

    remedy = "restore or remove the file"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("a leaf map in JSON format", f"'{path}' ({error})", remedy) from None
    if not isinstance(raw, dict):
        raise DataError('a JSON object {"name": ["id"]}', f"something else in '{path}'", remedy)
    leaf_map: dict[str, tuple[str, ...]] = {}
    for key, value in raw.items():
        entries = [value] if isinstance(value, str) else value
        if not (isinstance(entries, list) and entries and all(isinstance(entry, str) and entry for entry in entries)):
            raise DataError(f"a list of leaf ids for '{key}' in '{path}'", f"{value!r}", remedy)
        leaf_map[" ".join(key.lower().split())] = tuple(entries)
    return leaf_map


def _parse_name(path: str) -> _Name | None:
    stem = " ".join(os.path.splitext(path.rpartition("/")[2])[0].lower().split())  # noqa: PTH122 - Path is slow
    rest = _UUID.sub("", stem, count=1)
    has_uuid = rest != stem
    leaf = _NAMED_LEAF.match(rest)
    if leaf is not None:
        plant = _VARIANT.sub("", leaf["series"])
        known = has_uuid or f"{plant} leaf" in _TOMATO_SERIES
        return _Name(rest, leaf["series"], leaf["leaf"], f"{plant} leaf {int(leaf['leaf'])}") if known else None
    shot = _SHOT.match(rest)
    if shot is None or not (has_uuid or shot["series"] in _TOMATO_SERIES):
        return None
    return _Name(rest, shot["series"], shot["number"], None)


DATASETS: Mapping[str, Dataset] = {
    "plantvillage-tomato": Dataset(
        address="https://github.com/spMohanty/PlantVillage-Dataset/archive/40789680ba2e6382608dba47b397688fcbd0d04a.zip",
        sha256=None,
        classes=TOMATO_CLASSES,
        leaf_ids=lambda root, samples, classes: leaves_of(samples, classes, read_leaf_map(root)),
        # Hughes and Salathé 2015, CC BY-SA 3.0.
        title="PlantVillage's tomatoes",
        leaf_map=LEAF_MAP_NAME,
        photo_root="color",
        other_roots=frozenset({"grayscale", "segmented"}),
    )
}


def leaves_by_name(root: Path, samples: Sequence[Sample], classes: Sequence[str]) -> dict[str, str]:
    """Finds photos of the same leaf by the file names and leaf maps of the data sets in `DATASETS`.

    Returns `Sample.path` -> leaf id, without the photos whose file names are not those of a data set. Raises a
    DataError if a leaf map, in `root` or its parent folder, is damaged.
    """
    found: dict[str, str] = {}
    for dataset in DATASETS.values():
        found = dataset.leaf_ids(root, samples, classes) | found
    return found

"""Which PlantVillage photos show the same leaf, from their names and from the data set's `leaf-map.json`.

Names look like `<uuid>___RS_Late.B 4892.jpg` (a series and a camera's shot number) or
`<uuid>___GHLB Leaf 2.1 Day 12.jpg` (the leaf is named; the figure after the point counts its photos). Copies drop the
uuid, and append ` copy`, ` 2`, `_flipLR` and the like.

Leaves were shot in a row, mostly two to five photos each, but the names do not tell where one leaf ends. Groups are
therefore made coarse: a group too large costs a little balance, a group too small leaks a leaf from training into the
test.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from agridistill.data.folder import Sample
from agridistill.data.likeness import DisjointSets
from agridistill.errors import DataError

LEAF_MAP_NAME = "leaf-map.json"
# Copies of the data lack photos, and missing numbers may hide shots of the same leaf: of "Matt.S_CG" the shots 1019
# and 1027, with none between them, show one leaf; a leaf of "UF.GRC_YLCV_Lab" has 25 shots.
MAX_SHOT_GAP = 8

LeafMap = Mapping[str, tuple[str, ...]]
"""Lower-cased name without uuid and suffix -> leaf ids, each `class:::number` as in the data set."""

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}_+")
# Cameras count with four and more digits; a leaf's own number has at most three, or a point and its photo's number.
_NAMED_LEAF = re.compile(r"(?P<series>[a-z][a-z0-9_.-]*)[ _]+leaf[ _]+(?P<leaf>\d{1,3}(?![0-9a-z])|\d+(?=\.\d))")
_SHOT = re.compile(r"(?P<series>.*?[a-z.])[ _]+(?P<number>\d{1,6})(?![0-9a-z])")
# "_ps" (background cut away) and "es" mark other photos of the same plants.
_VARIANT = re.compile(r"(?:_ps|es)$")
# Without its uuid a name such as "IMG 0001" says nothing; these are the series of the tomato classes.
_TOMATO_SERIES = frozenset({
    "com.g_fl", "com.g_spm_fl", "com.g_tgs_fl", "crnl_l.mold", "gcrec_bact.sp", "gh_hl leaf", "ghlb leaf", "ghlb2 leaf",
    "jr_sept.l.s", "keller.st_cg", "matt.s_cg", "psu_cg", "rs_erly.b", "rs_hl", "rs_late.b", "uf.grc_bs_lab leaf",
    "uf.grc_ylcv_lab", "ylcv_gcrec", "ylcv_nrec",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Name:
    """What a file name tells: a named leaf, or a shot in a series (then `leaf` is None)."""

    stem: str
    series: str
    number: str
    leaf: str | None

    @property
    def mark(self) -> str:
        return self.leaf or f"{self.series} {self.number}"


def read_leaf_map(root: Path) -> LeafMap | None:
    """Reads `leaf-map.json` from the data folder or its parent; None where there is none.

    Raises:
        DataError: the file is not a JSON object of lists of leaf ids.
    """
    for path in (root / LEAF_MAP_NAME, root.resolve().parent / LEAF_MAP_NAME):
        if path.is_file():
            return _parse_leaf_map(path)
    return None


def leaf_ids(samples: Iterable[Sample], classes: Sequence[str], leaf_map: LeafMap | None) -> dict[str, str]:
    """The leaf of each photo whose name is understood.

    The leaf map wins over names. Photos that it does not list are joined with the photos of the same class and series
    that are at most `MAX_SHOT_GAP` shot numbers away.

    Returns:
        Sample path -> leaf id; photos with other names are absent.
    """
    names = {sample.path: name for sample in samples if (name := _parse_name(sample.path)) is not None}
    class_of = {sample.path: classes[sample.label] for sample in samples}
    mapped = {path: _mapped_leaves(name, class_of[path], leaf_map or {}) for path, name in names.items()}
    sets = DisjointSets(names)
    same_leaf: dict[tuple[str, str], list[str]] = defaultdict(list)
    shots: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for path, name in names.items():
        for leaf in mapped[path]:
            same_leaf["", leaf].append(path)
        if name.leaf is None:
            shots[class_of[path], name.series].append((int(name.number), path))
        elif not mapped[path]:
            same_leaf[class_of[path], name.leaf].append(path)
    for paths in same_leaf.values():
        sets.join_all(paths)
    for series in shots.values():
        for (number, path), (next_number, next_path) in pairwise(sorted(series)):
            if next_number - number <= MAX_SHOT_GAP and not (mapped[path] and mapped[next_path]):
                sets.join(path, next_path)
    found: dict[str, str] = {}
    for group in sets.groups():
        # The smallest mark of all, so that the order of the samples does not matter.
        marks = [leaf for path in group for leaf in mapped[path]]
        marks = marks or [f"{class_of[path]}:{names[path].mark}" for path in group]
        found.update(dict.fromkeys(group, min(marks)))
    return found


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


def _mapped_leaves(name: _Name, class_name: str, leaf_map: LeafMap) -> tuple[str, ...]:
    """The map's leaves of a photo; entries of other classes are left out, for series of several crops share names."""
    entries = leaf_map.get(name.stem) or leaf_map.get(f"{name.series} {name.number}") or ()
    return tuple(entry for entry in entries if ":::" not in entry or entry.split(":::", 1)[0] == class_name)


def _parse_leaf_map(path: Path) -> LeafMap:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("a leaf map in JSON", f"'{path}' ({error})", "restore the file or remove it") from None
    if not isinstance(raw, dict):
        raise DataError(
            "a leaf map: name -> [leaf]", f"'{path}', which holds no object", "restore the file or remove it"
        )
    leaf_map: dict[str, tuple[str, ...]] = {}
    for key, value in raw.items():
        entries = [value] if isinstance(value, str) else value
        if not (isinstance(entries, list) and entries and all(isinstance(entry, str) and entry for entry in entries)):
            raise DataError(
                "a leaf map: name -> [leaf]", f"{value!r} for '{key}' in '{path}'", "restore the file or remove it"
            )
        leaf_map[" ".join(key.lower().split())] = tuple(entries)
    return leaf_map

"""Training, validation and test photos: no leaf in two of them, every class in each where it can be."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from agridistill.data.augmented_names import sibling_groups
from agridistill.data.duplicates import exact_groups, near_groups
from agridistill.data.grouping import DisjointSets
from agridistill.data.inspection import Inspection, looks_of
from agridistill.data.looks import copy_groups
from agridistill.data.placement import leaf_groups, place
from agridistill.data.plantvillage import leaf_ids, read_leaf_map
from agridistill.data.samples import SPLIT_NAMES, PhotoFolder, Sample
from agridistill.errors import DataError
from agridistill.manifest import composed
from agridistill.storage import write_json

FORMAT_VERSION = 1
_REMAKE = "make it again with 'agridistill data split'"


@dataclass(frozen=True)
class Split:
    """The photos of each part, as sorted `Sample.path`."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Name -> paths, in the order train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}


def assign_leaf_ids(folder: PhotoFolder, samples: Iterable[Sample], inspection: Inspection) -> tuple[Sample, ...]:
    """Gives each sample the id of its leaf.

    From `leaf-map.json` or PlantVillage's names where they are understood. The other photos of a class form groups by
    likeness (`near_groups`), and all photos of a class by the names that augmentation tools write (`sibling_groups`).
    Identical files and copies of one photo, also flipped, turned or scaled (`copy_groups`), are one leaf everywhere,
    also across classes.

    Returns:
        The samples in their order, with new leaf ids.

    Raises:
        DataError: `leaf-map.json` is damaged.
    """
    chosen = tuple(samples)
    named = leaf_ids(chosen, folder.classes, read_leaf_map(folder.root))
    sets = DisjointSets(sample.path for sample in chosen)
    by_leaf: dict[str, list[str]] = defaultdict(list)
    hashes: dict[int, dict[str, int]] = defaultdict(dict)
    for sample in sorted(chosen, key=lambda sample: sample.path):
        if sample.path in named:
            by_leaf[named[sample.path]].append(sample.path)
        value = inspection.records[sample.path].phash
        if value is not None:
            hashes[sample.label][sample.path] = value
    for paths in by_leaf.values():
        sets.join_all(paths)
    for paths in exact_groups({sample.path: inspection.records[sample.path].digest for sample in chosen}):
        sets.join_all(paths)
    for paths in copy_groups(looks_of(chosen, inspection)):
        sets.join_all(paths)
    for paths in sibling_groups(chosen, split_folders=folder.in_split_folders):
        sets.join_all(paths)
    for of_class in hashes.values():
        for paths in near_groups(of_class):
            # Names know better than likeness: different PlantVillage leaves in one pose look alike.
            if any(path not in named for path in paths):
                sets.join_all(paths)
    leaf_of: dict[str, str] = {}
    for group in sets.groups():
        leaf_of.update(dict.fromkeys(group, min((named[path] for path in group if path in named), default=min(group))))
    return tuple(replace(sample, leaf_id=leaf_of[sample.path]) for sample in chosen)


def make_split(
    samples: Iterable[Sample], *, val_fraction: float = 0.15, test_fraction: float = 0.15, seed: int = 0
) -> Split:
    """Divides photos by leaves, each class near its fractions.

    Large leaf groups are placed first, each where its classes lack most; of many seeded orders the one with the least
    deviation is taken. Every class gets photos in train, with two leaves also in test, and with three in all.

    Args:
        samples: with their leaf ids; their order does not matter.
        val_fraction: share of each class's photos in val; 0 for none.
        test_fraction: share of each class's photos in test; 0 for none.
        seed: of the orders that are tried.

    Raises:
        DataError: impossible fractions, or too few leaves to fill a wanted part.
    """
    _check_fractions(val_fraction, test_fraction)
    groups = leaf_groups(samples)
    fractions = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
    parts: list[list[str]] = [[], [], []]
    for group, part in zip(groups, place(groups, fractions, seed), strict=True):
        parts[part] += group.paths
    for name, paths, fraction in zip(SPLIT_NAMES, parts, fractions, strict=True):
        if fraction > 0 and not paths:
            raise DataError(
                "enough leaves for train, val and test",
                f"{len(groups)} leaf groups, none left for {name}",
                "add photos of other leaves",
            )
    return Split(*(tuple(sorted(paths)) for paths in parts))


def labelled_share(samples: Iterable[Sample], share: float, *, seed: int = 0) -> tuple[Sample, ...]:
    """The photos that have labels where only a share of them has: drawn from each class, at least one of it.

    A smaller share of the same seed is part of a larger one, and a photo more or less moves few others.

    Args:
        samples: in any order, which the result keeps.
        share: of each class's photos, above 0 and up to 1; rounded up.
        seed: of the drawing.

    Example:
        >>> photos = [Sample(f"{name}/{i}.jpg", label, "") for label, name in enumerate("ab") for i in range(10)]
        >>> [len(labelled_share(photos, share)) for share in (1.0, 0.25, 0.01)]
        [20, 6, 2]
    """
    chosen = tuple(samples)
    if share == 1:
        return chosen
    by_class: dict[int, list[str]] = defaultdict(list)
    for sample in chosen:
        by_class[sample.label].append(sample.path)
    kept: set[str] = set()
    for paths in by_class.values():
        paths.sort(key=lambda path: sha256(f"{seed}/{path}".encode("utf-8", "surrogateescape")).digest())
        kept.update(paths[: math.ceil(share * len(paths))])
    return tuple(sample for sample in chosen if sample.path in kept)


def write_split(
    path: Path,
    split: Split,
    *,
    seed: int | None,
    val_fraction: float | None,
    test_fraction: float | None,
    fingerprint: str,
) -> None:
    """Writes a split as JSON, whole or not at all, with what it was made from; None where it was given."""
    write_json(
        path,
        {
            "format_version": FORMAT_VERSION,
            "seed": seed,
            "val_fraction": val_fraction,
            "test_fraction": test_fraction,
            "data_fingerprint": fingerprint,
            "splits": {name: list(paths) for name, paths in split.parts().items()},
        },
    )


def read_split(path: Path) -> Split:
    """Reads and checks a split file.

    Raises:
        DataError: not there, damaged, of another format, or a photo named twice.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("a split file", f"no file '{path}'", "make one with 'agridistill data split'") from None
    except (OSError, ValueError) as error:
        raise DataError("a split file in JSON", f"'{path}' ({error})", _REMAKE) from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"a split file of format {FORMAT_VERSION}", f"format {version!r} in '{path}'", _REMAKE)
    parts = raw.get("splits")
    if not isinstance(parts, dict) or set(parts) != set(SPLIT_NAMES):
        raise DataError("the splits train, val and test", f"others in '{path}'", _REMAKE)
    seen: dict[str, str] = {}
    for name in SPLIT_NAMES:
        paths = parts[name]
        if not isinstance(paths, list) or not all(isinstance(item, str) for item in paths):
            raise DataError(f"a list of photos in '{name}'", f"something else in '{path}'", _REMAKE)
        for item in paths:
            if item in seen:
                raise DataError("each photo once", f"'{item}' in {seen[item]} and in {name} of '{path}'", _REMAKE)
            seen[item] = name
    return Split(**{name: tuple(sorted(parts[name])) for name in SPLIT_NAMES})


def digests_of(split: Split) -> dict[str, str]:
    """Names the photos for validation and for the test, without telling them: `{"val": sha256, "test": sha256}`."""
    return {
        name: sha256("\n".join(sorted(split.parts()[name])).encode("utf-8", "surrogateescape")).hexdigest()
        for name in ("val", "test")
    }


def match_split(split: Split, samples: Iterable[Sample]) -> dict[str, str]:
    """Looks the photos of a split up in the data.

    Returns:
        Sample path -> "train", "val" or "test"; samples that the split does not name are absent.

    Raises:
        DataError: the split names a photo that the data does not hold.
    """
    paths = {sample.path for sample in samples}
    # The same names on another system may have another normal form.
    by_name = {composed(path): path for path in sorted(paths)}
    wanted = {
        path if path in paths else by_name.get(composed(path), path): name
        for name, part in split.parts().items()
        for path in part
    }
    absent = sorted(set(wanted) - paths)
    if absent:
        raise DataError(
            "a split of this data",
            f"{len(absent)} of its {len(wanted)} photos are not there, the first '{absent[0]}'",
            "use the data that the split was made from, or make another with 'agridistill data split'",
        )
    return wanted


def unnamed_photos(samples: Iterable[Sample], part_of: Mapping[str, str]) -> list[str]:
    """One sentence on the photos that a split file does not name; none where it names all."""
    paths = sorted(sample.path for sample in samples if sample.path not in part_of)
    if not paths:
        return []
    count = f"{len(paths):,} photo{'' if len(paths) == 1 else 's'}"
    return [f"left out: {count} that the split file does not name, the first '{paths[0]}'"]


def _check_fractions(val_fraction: float, test_fraction: float) -> None:
    for name, fraction in (("val", val_fraction), ("test", test_fraction)):
        if not 0 <= fraction < 1:
            raise DataError(f"a {name} fraction from 0 to below 1", str(fraction), "correct it")
    if val_fraction + test_fraction >= 1:
        raise DataError("val and test fractions below 1 together", f"{val_fraction} + {test_fraction}", "lower them")

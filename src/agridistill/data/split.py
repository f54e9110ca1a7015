"""Splits photos into train, val and test: no leaf is in two parts, and each part has all classes if possible."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from agridistill.data.folder import SPLIT_NAMES, Sample, photos_left_out
from agridistill.errors import DataError
from agridistill.manifest import composed
from agridistill.storage import write_json

FORMAT_VERSION = 1
_REMAKE = "make it again with 'agridistill data split'"
# Number of photos times number of trials: limits the time for large folders and allows many trials for small ones.
_PLACEMENTS = 100_000
_MAX_TRIALS = 100


@dataclass(frozen=True)
class Split:
    """The photos of each part of a split, as sorted tuples of `Sample.path`."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Returns part -> paths, in the order train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def part_of(self) -> dict[str, str]:
        """Returns path -> "train", "val" or "test"."""
        return {path: name for name, paths in self.parts().items() for path in paths}


def make_split(
    samples: Iterable[Sample], *, val_fraction: float = 0.15, test_fraction: float = 0.15, seed: int = 0
) -> Split:
    """Splits photos so that no leaf is in two parts and the shares of each class are near the given fractions.

    Leaves are placed in many random orders, those with many photos first, and the best split is returned. A class with
    one leaf is only in train, one with two leaves is in train and test, and one with more leaves is in all parts. A
    fraction of 0 leaves its part empty. The order of the samples does not matter.

    Raises a DataError if a fraction is negative, their sum is not below 1, or there are too few leaves to fill a part.
    """
    if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        got = f"{val_fraction} and {test_fraction}"
        raise DataError("val and test fractions of at least 0 with a sum below 1", got, "correct the fractions")
    fractions = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
    placement = _Placement(samples, fractions)
    trials = max(1, min(_MAX_TRIALS, _PLACEMENTS // max(1, len(placement.groups))))
    attempts = (placement.attempt(np.random.default_rng([seed, trial])) for trial in range(trials))
    part_of_group = min(attempts, key=lambda attempt: attempt[0])[1]
    parts: list[list[str]] = [[], [], []]
    for group, part in zip(placement.groups, part_of_group, strict=True):
        parts[part] += group.paths
    for name, paths, fraction in zip(SPLIT_NAMES, parts, fractions, strict=True):
        if fraction > 0 and not paths:
            raise DataError(
                "enough leaves for train, val and test",
                f"{len(placement.groups)}, of which none is left for {name}",
                "add photos of other leaves",
            )
    return Split(*(tuple(sorted(paths)) for paths in parts))


class _LeafGroup(NamedTuple):
    paths: tuple[str, ...]  # sorted
    counts: tuple[tuple[int, int], ...]  # (class, number of photos); several pairs only if the leaf has two labels


class _Placement:
    """Places the leaves into the parts train (0), val (1) and test (2); a part with the fraction 0 stays empty."""

    def __init__(self, samples: Iterable[Sample], fractions: Sequence[float]) -> None:
        by_leaf: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            by_leaf[sample.leaf_id].append(sample)
        # Sorted, so that the order of the samples does not matter.
        self.groups = sorted(
            _LeafGroup(
                tuple(sorted(one.path for one in leaf)), tuple(sorted(Counter(one.label for one in leaf).items()))
            )
            for leaf in by_leaf.values()
        )
        self._used = [part for part in range(3) if fractions[part] > 0]
        n_classes = 1 + max((label for group in self.groups for label, _ in group.counts), default=-1)
        self._totals = [0.0] * n_classes
        leaves = [0] * n_classes
        for group in self.groups:
            for label, count in group.counts:
                self._totals[label] += count
                leaves[label] += 1
        self._targets = [[fraction * total for total in self._totals] for fraction in fractions]
        # A class with one leaf needs train, with two also test, with three also val.
        wanted = [part for part in (0, 2, 1) if part in self._used]
        self._required = [wanted[:count] for count in leaves]

    def attempt(self, rng: np.random.Generator) -> tuple[float, list[int]]:
        """Places all leaves in one random order; returns the deviation (lower is better) and the part of each leaf."""
        sizes = np.array([len(group.paths) for group in self.groups])
        order = np.argsort(-sizes * np.exp(0.5 * rng.standard_normal(len(sizes))), kind="stable")
        counts = [[0.0] * len(self._totals) for _ in range(3)]
        parts = [0] * len(self.groups)
        for index in order.tolist():
            group = self.groups[index]
            parts[index] = min(self._used, key=lambda part: self._added_cost(counts, group, part))
            for label, count in group.counts:
                counts[parts[index]][label] += count
        missing = self._repair(parts, counts)
        deviation = sum(
            ((counts[part][label] - self._targets[part][label]) / total) ** 2
            for part in self._used
            for label, total in enumerate(self._totals)
            if total
        )
        return missing + deviation, parts

    def _added_cost(self, counts: list[list[float]], group: _LeafGroup, part: int) -> float:
        """Returns how much the squared deviation grows if a leaf is placed into a part; takes constant time."""
        return sum(
            count * (2 * (counts[part][label] - self._targets[part][label]) + count) / self._totals[label] ** 2
            for label, count in group.counts
        )

    def _repair(self, parts: list[int], counts: list[list[float]]) -> int:
        """Moves leaves into parts where a required class is missing; returns how many such gaps remain."""
        by_class: dict[int, list[int]] = defaultdict(list)
        for index, group in enumerate(self.groups):
            for label, _ in group.counts:
                by_class[label].append(index)
        missing = 0
        for label, required in enumerate(self._required):
            for part in required:
                if counts[part][label]:
                    continue
                donors = [index for index in by_class[label] if self._may_leave(index, parts, by_class)]
                if not donors:
                    missing += 1
                    continue
                moved = min(donors, key=lambda index: (self._added_cost(counts, self.groups[index], part), index))
                for moved_label, count in self.groups[moved].counts:
                    counts[parts[moved]][moved_label] -= count
                    counts[part][moved_label] += count
                parts[moved] = part
        return missing

    def _may_leave(self, index: int, parts: list[int], by_class: Mapping[int, list[int]]) -> bool:
        """Returns whether a leaf can leave its part without removing the last leaf of a required class from it."""
        part = parts[index]
        return all(
            part not in self._required[label] or sum(parts[other] == part for other in by_class[label]) > 1
            for label, _ in self.groups[index].counts
        )


def labelled_share(samples: Iterable[Sample], share: float, *, seed: int = 0) -> tuple[Sample, ...]:
    """Chooses a share of each class's photos, rounded up, that keep their labels in an experiment with fewer labels.

    With the same seed, a larger share contains the photos of a smaller one. The order of the samples is kept.

    Example:
        >>> photos = [Sample(f"{name}/{i}.jpg", label, "") for label, name in enumerate("ab") for i in range(10)]
        >>> [len(labelled_share(photos, share)) for share in (1.0, 0.25, 0.01)]
        [20, 6, 2]
    """
    chosen = tuple(samples)
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
    unlabelled: Sequence[str] | None = None,
) -> None:
    """Writes a split to a JSON file atomically.

    `seed` and the fractions are None where train/val/test folders, a column or a file gave the split. `fingerprint` is
    the result of `inspection.fingerprint`. `unlabelled` are the photos without labels of a run, relative to their own
    folder.
    """
    made_by = {"seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction}
    document = {"format_version": FORMAT_VERSION, **made_by, "data_fingerprint": fingerprint, "splits": asdict(split)}
    write_json(path, document if unlabelled is None else {**document, "unlabelled": list(unlabelled)})


def read_split(path: Path) -> Split:
    """Reads and checks a file that `write_split` wrote.

    Raises a DataError if it does not exist, is damaged or has another format version, or a photo is in it twice.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("a split file", f"no file '{path}'", "make one with 'agridistill data split'") from None
    except (OSError, ValueError) as error:
        raise DataError("a split file in JSON format", f"'{path}' ({error})", _REMAKE) from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"a split file of format {FORMAT_VERSION}", f"format {version!r} in '{path}'", _REMAKE)
    try:
        split = TypeAdapter(Split).validate_python(raw.get("splits"))
    except ValidationError:
        raise DataError("lists of paths for train, val and test", f"something else in '{path}'", _REMAKE) from None
    seen: dict[str, str] = {}
    for name, paths in split.parts().items():
        for item in paths:
            if item in seen:
                raise DataError("each photo once", f"'{item}' in {seen[item]} and in {name} of '{path}'", _REMAKE)
            seen[item] = name
    return Split(**{name: tuple(sorted(paths)) for name, paths in split.parts().items()})


def digests_of(split: Split) -> dict[str, str]:
    """Returns `{"val": sha256, "test": sha256}` of the sorted paths of the photos, by which two splits are compared."""
    return {
        name: sha256("\n".join(sorted(split.parts()[name])).encode("utf-8", "surrogateescape")).hexdigest()
        for name in ("val", "test")
    }


def match_split(split: Split, samples: Iterable[Sample]) -> dict[str, str]:
    """Returns `Sample.path` -> "train", "val" or "test" for the photos of a split, also in another Unicode normal form.

    Raises a DataError if a photo of the split is not in the data folder.
    """
    paths = {sample.path for sample in samples}
    # On another system, the same names may have another Unicode normal form.
    by_name = {composed(path): path for path in sorted(paths)}
    wanted = {
        path if path in paths else by_name.get(composed(path), path): name for path, name in split.part_of().items()
    }
    absent = sorted(set(wanted) - paths)
    if absent:
        raise DataError(
            "a split of this data",
            f"{len(absent)} of its {len(wanted)} photos do not exist, the first '{absent[0]}'",
            "use the data that the split was made from, or make another split with 'agridistill data split'",
        )
    return wanted


def unnamed_photos(samples: Iterable[Sample], part_of: Mapping[str, str]) -> list[str]:
    """Returns a list with one sentence about the photos that are in no part of a split; empty if there are none."""
    paths = sorted(sample.path for sample in samples if sample.path not in part_of)
    return photos_left_out(paths, "that the split file does not name")

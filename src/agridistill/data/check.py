"""What is wrong with a data folder, before a night is spent on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agridistill.data.folder import SPLIT_NAMES, PhotoFolder, Sample, described_without_photos, left_out
from agridistill.data.inspection import Inspection, inspect_photos, looks_of, phashes_of
from agridistill.data.labels import FOLDERS, Layout, read_layout
from agridistill.data.leaf_ids import unknown_originals, without_original
from agridistill.data.likeness import DisjointSets, copy_groups, exact_groups, near_groups
from agridistill.data.prepare import conflicting_groups
from agridistill.data.split import assign_leaf_ids, match_split, read_split
from agridistill.data.structure import alike_in_words
from agridistill.photo_files import passed_over
from agridistill.preprocess import MAX_PIXELS
from agridistill.progress import ProgressCallback, begin, silent

MAX_IMBALANCE = 10
# One for each of train, val and test.
MIN_LEAVES = 3


@dataclass(frozen=True)
class ClassCheck:
    """One class of the folder.

    Attributes:
        name: of the class.
        photos: readable ones.
        leaves: groups of photos that stay together in a split.
        photos_per_split: train/val/test -> readable photos; None where no split is given.
    """

    name: str
    photos: int
    leaves: int
    photos_per_split: dict[str, int] | None


@dataclass(frozen=True)
class Straddling:
    """Photos that belong together and stand in several splits.

    Attributes:
        paths: all photos of the leaf, or all identical files.
        splits: where they stand.
    """

    paths: tuple[str, ...]
    splits: tuple[str, ...]


@dataclass(frozen=True)
class CheckResult:
    """What `check` found.

    Attributes:
        root: the data folder.
        classes: counts of each class, in label order.
        unreadable: (path, reason).
        oversize: (path, reason): photos above the pixel limit.
        strays: files among the photos that are no photos.
        without_photos: class folders without a photo -> the files that they do hold.
        alike_names: groups of class folders' names that differ in capitals, spaces or normal form alone.
        exact_duplicates: groups of identical files.
        conflicting_duplicates: groups of identical files that stand in several classes.
        conflicting_copies: groups of copies of one photo, also flipped, turned, scaled or saved again, that stand in
            several classes and are no identical files.
        near_duplicates: groups of photos that look alike, also flipped or turned, but are no identical files.
        without_original: photos of an augmentation tool whose originals neither names nor looks tell.
        straddling_leaves: leaves in several splits.
        straddling_duplicates: identical files in several splits.
        straddling_lookalikes: look-alikes of different leaves in several splits.
        cut_from_train: of train/val/test folders those that are lacking: their photos are taken from train.
        unassigned: readable photos that the split does not name.
        imbalance: photos of the largest class by those of the smallest.
        problems: what is wrong, a sentence each.
        notes: what is worth knowing, a sentence each.
    """

    root: Path
    classes: tuple[ClassCheck, ...]
    unreadable: tuple[tuple[str, str], ...]
    oversize: tuple[tuple[str, str], ...]
    strays: tuple[str, ...]
    without_photos: Mapping[str, tuple[str, ...]]
    alike_names: tuple[tuple[str, ...], ...]
    exact_duplicates: tuple[tuple[str, ...], ...]
    conflicting_duplicates: tuple[tuple[str, ...], ...]
    conflicting_copies: tuple[tuple[str, ...], ...]
    near_duplicates: tuple[tuple[str, ...], ...]
    without_original: tuple[str, ...]
    straddling_leaves: tuple[Straddling, ...]
    straddling_duplicates: tuple[Straddling, ...]
    straddling_lookalikes: tuple[Straddling, ...]
    cut_from_train: tuple[str, ...]
    unassigned: int
    imbalance: float | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The whole result as plain JSON values; counts are photos unless the key says otherwise."""
        document = asdict(self)
        document["root"] = str(self.root)
        document["imbalance_ratio"] = document.pop("imbalance")
        document["unassigned_photos"] = document.pop("unassigned")
        for key in ("unreadable", "oversize"):
            document[key] = [{"path": path, "reason": reason} for path, reason in document[key]]
        return document


def check(
    root: Path,
    *,
    layout: Layout = FOLDERS,
    split_file: Path | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: ProgressCallback = silent,
) -> CheckResult:
    """Reads every photo of a data folder and tells what is wrong with it.

    Args:
        root: folder of class folders, or of train/val/test folders of them.
        layout: how the labels are found.
        split_file: from `agridistill data split`; goes before train/val/test folders.
        max_pixels: photos with more are a problem.
        progress: called with (done, total).

    Raises:
        DataError: no such folder, fewer than two classes, or the split file is not of this data.
    """
    split = read_split(split_file) if split_file is not None else None
    folder = read_layout(root, layout)
    split_of = match_split(split, folder.samples) if split is not None else folder.given_split
    inspection = inspect_photos(folder, max_pixels=max_pixels, progress=progress)
    records = inspection.records
    readable = [sample for sample in folder.samples if records[sample.path].error is None]
    samples = assign_leaf_ids(folder, readable, inspection)
    classes = _class_checks(folder, samples, split_of)
    unreadable, oversize = _bad_photos(folder, inspection, max_pixels)
    exact = tuple(
        tuple(group) for group in exact_groups({sample.path: records[sample.path].digest for sample in samples})
    )
    label_of = {sample.path: sample.label for sample in samples}
    leaf_of = {sample.path: sample.leaf_id for sample in samples}
    begin(progress, "comparing photos")
    copies, near = _look_alikes(samples, inspection, {path for group in exact for path in group[1:]})
    smallest = min((one.photos for one in classes), default=0)
    found: dict[str, Any] = {
        "classes": classes,
        "unreadable": unreadable,
        "oversize": oversize,
        "strays": folder.strays,
        "without_photos": dict(folder.without_photos),
        "alike_names": folder.alike_names,
        "exact_duplicates": exact,
        "conflicting_duplicates": conflicting_groups(exact, label_of),
        "conflicting_copies": conflicting_groups(copies, label_of),
        "near_duplicates": near,
        "without_original": without_original(samples),
        "straddling_leaves": _straddling(_leaves(samples), split_of),
        "straddling_duplicates": _straddling(exact, split_of),
        "straddling_lookalikes": tuple(
            one for one in _straddling(near, split_of) if len({leaf_of[path] for path in one.paths}) > 1
        ),
        "cut_from_train": _lacking(folder) if split is None else (),
        "unassigned": sum(sample.path not in split_of for sample in samples) if split_of is not None else 0,
        "imbalance": max(one.photos for one in classes) / smallest if smallest else None,
    }
    draft = CheckResult(root=root, **found, problems=(), notes=())
    return CheckResult(
        root=root,
        **found,
        problems=(*folder.problems, *_problems(draft, max_pixels)),
        notes=(*folder.notes, *left_out(replace(folder, problems=())), *_notes(draft)),
    )


def _class_checks(
    folder: PhotoFolder, samples: Iterable[Sample], split_of: Mapping[str, str] | None
) -> tuple[ClassCheck, ...]:
    of_class: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        of_class[sample.label].append(sample)
    checks = []
    for label, name in enumerate(folder.classes):
        members = of_class[label]
        per_split = None
        if split_of is not None:
            counts = Counter(split_of.get(sample.path) for sample in members)
            per_split = {split: counts[split] for split in SPLIT_NAMES}
        checks.append(ClassCheck(name, len(members), len({sample.leaf_id for sample in members}), per_split))
    return tuple(checks)


def _lacking(folder: PhotoFolder) -> tuple[str, ...]:
    """The parts for which train/val/test folders hold nothing at all; training cuts them from train."""
    if folder.given_split is None:
        return ()
    present = set(folder.given_split.values())
    return tuple(name for name in SPLIT_NAMES if name not in present)


def _bad_photos(
    folder: PhotoFolder, inspection: Inspection, max_pixels: int
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Unreadable ones, and those above the pixel limit."""
    unreadable: list[tuple[str, str]] = []
    oversize: list[tuple[str, str]] = []
    for sample in folder.samples:
        record = inspection.records[sample.path]
        if record.error is not None:
            (oversize if record.width * record.height > max_pixels else unreadable).append((sample.path, record.error))
    return tuple(unreadable), tuple(oversize)


def _look_alikes(
    samples: Iterable[Sample], inspection: Inspection, identical: set[str]
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    """Groups of copies of one photo, and of look-alikes, copies included; of identical files the first counts."""
    compared = [sample for sample in samples if sample.path not in identical]
    copies = copy_groups(looks_of(compared, inspection))
    alike = DisjointSets(sample.path for sample in compared)
    for group in (*copies, *near_groups(phashes_of(compared, inspection))):
        alike.join_all(group)
    near = sorted(sorted(group) for group in alike.groups() if len(group) > 1)
    return tuple(map(tuple, copies)), tuple(map(tuple, near))


def _leaves(samples: Iterable[Sample]) -> list[list[str]]:
    by_leaf: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        by_leaf[sample.leaf_id].append(sample.path)
    return list(by_leaf.values())


def _straddling(groups: Iterable[Sequence[str]], split_of: Mapping[str, str] | None) -> tuple[Straddling, ...]:
    if split_of is None:
        return ()
    found = []
    for paths in groups:
        splits = {split_of[path] for path in paths if path in split_of}
        if len(splits) > 1:
            found.append(Straddling(tuple(paths), tuple(name for name in SPLIT_NAMES if name in splits)))
    return tuple(found)


def _problems(result: CheckResult, max_pixels: int) -> Iterable[str]:
    for bad, what in ((result.unreadable, "cannot be read"), (result.oversize, f"above {max_pixels:,} pixels")):
        if bad:
            path, reason = bad[0]
            yield f"{_count(bad, 'photo')} {what}, the first '{path}' ({reason})"
    if result.strays:
        yield passed_over(result.strays)
    for name, files in result.without_photos.items():
        yield f"class folder {described_without_photos(name, files)}"
    yield from map(alike_in_words, result.alike_names)
    if result.conflicting_duplicates:
        group = result.conflicting_duplicates[0]
        yield (
            f"{_count(result.conflicting_duplicates, 'group')} of identical files in several classes, "
            f"the first '{group[0]}' and '{group[-1]}'"
        )
    if result.conflicting_copies:
        group = result.conflicting_copies[0]
        yield (
            f"{_count(result.conflicting_copies, 'group')} of copies of one photo (also flipped, turned or scaled) in "
            f"several classes, the first '{group[0]}' and '{group[-1]}'"
        )
    if result.without_original:
        yield unknown_originals(result.without_original)
    for one in result.classes:
        if one.leaves < MIN_LEAVES:
            yield f"'{one.name}' has {_count(range(one.leaves), 'leaf')}; train, val and test need one each"
        yield from (
            f"'{one.name}' has no photos in {split}"
            for split, photos in (one.photos_per_split or {}).items()
            if not photos and split not in result.cut_from_train
        )
    for groups, what in ((result.straddling_leaves, "leaf"), (result.straddling_duplicates, "group")):
        if groups:
            kind = " of identical files" if what == "group" else ""
            splits = " and ".join(groups[0].splits)
            yield f"{_count(groups, what)}{kind} in several splits, the first in {splits}: '{groups[0].paths[0]}'"


def _notes(result: CheckResult) -> Iterable[str]:
    if result.cut_from_train:
        yield f"no photos in {' and '.join(result.cut_from_train)}: training takes them from train, leaf by leaf"
    if result.exact_duplicates:
        photos = sum(len(group) for group in result.exact_duplicates)
        yield f"{_count(result.exact_duplicates, 'group')} of identical files ({photos} photos)"
    if result.near_duplicates:
        photos = sum(len(group) for group in result.near_duplicates)
        yield f"{_count(result.near_duplicates, 'group')} of photos that look alike ({photos} photos)"
    if result.straddling_lookalikes:
        groups = _count(result.straddling_lookalikes, "group")
        yield f"{groups} of look-alikes in several splits, of different leaves by name"
    if result.imbalance is not None and result.imbalance > MAX_IMBALANCE:
        yield f"the largest class has {result.imbalance:.1f} times the photos of the smallest"
    if result.unassigned:
        yield f"{_count(range(result.unassigned), 'photo')} in no split"


def _count(items: Sequence[object], noun: str) -> str:
    plural = {"leaf": "leaves"}.get(noun, f"{noun}s")
    return f"{len(items):,} {noun if len(items) == 1 else plural}"

"""Finds the problems of a data folder before a long training run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agridistill.data.folder import SPLIT_NAMES, PhotoFolder, Sample, described_without_photos, left_out
from agridistill.data.inspection import groups_of_copies, identical_groups, inspect_photos, phashes_of
from agridistill.data.labels import FOLDERS, Layout, read_layout
from agridistill.data.leaf_ids import assign_leaf_ids, unknown_originals, without_original
from agridistill.data.likeness import merge_groups, near_groups
from agridistill.data.prepare import conflicting_groups
from agridistill.data.split import match_split, read_split
from agridistill.data.structure import alike_in_words
from agridistill.photo_files import passed_over
from agridistill.preprocess import MAX_PIXELS
from agridistill.progress import ProgressCallback, begin, silent

MAX_IMBALANCE = 10
# Each class needs one leaf for train, one for val and one for test.
MIN_LEAVES = 3

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ClassCheck:
    """The numbers of photos and leaves of one class."""

    name: str
    photos: int  # number of readable photos
    leaves: int  # number of leaves; all photos of a leaf must be in the same split
    photos_per_split: dict[str, int] | None  # train/val/test -> number of readable photos; None without a split


@dataclass(frozen=True)
class Straddling:
    """Photos that should all be in one split, because they show one leaf or look alike, but are in several splits."""

    paths: tuple[str, ...]
    splits: tuple[str, ...]


@dataclass(frozen=True)
class CheckResult:
    """The classes, problems and notes that `check` reports.

    All paths are relative to `root`. A group is a tuple of paths.
    """

    root: Path
    classes: tuple[ClassCheck, ...]  # in label order
    unreadable: tuple[tuple[str, str], ...]  # (path, reason)
    oversize: tuple[tuple[str, str], ...]  # (path, reason) of photos with more pixels than allowed
    non_photo_files: tuple[str, ...]  # files in the class folders that are not photos
    without_photos: Mapping[str, tuple[str, ...]]  # class folder without a photo -> the files in it
    alike_names: Groups  # names of class folders that differ only in capitals, spaces or Unicode normal form
    exact_duplicates: Groups  # identical files
    conflicting_duplicates: Groups  # identical files in several classes
    conflicting_copies: Groups  # other copies of one photo (also flipped, turned, scaled) in several classes
    near_duplicates: Groups  # photos that look alike (also flipped or turned) but are not identical files
    without_original: tuple[str, ...]  # photos made by an augmentation tool whose original was not found
    straddling_leaves: tuple[Straddling, ...]  # leaves with photos in several splits
    straddling_duplicates: tuple[Straddling, ...]  # identical files in several splits
    straddling_lookalikes: tuple[Straddling, ...]  # similar photos of different leaves in several splits
    cut_from_train: tuple[str, ...]  # missing train/val/test folders: their photos are taken from train
    unassigned_photos: int  # number of readable photos that the split does not name
    imbalance_ratio: float | None  # photos of the largest class to those of the smallest; None if that has none
    problems: tuple[str, ...] = ()  # one text for each problem
    notes: tuple[str, ...] = ()  # one text for each other fact that the user should know

    def to_json(self) -> dict[str, Any]:
        """Returns the result as a dict that `json.dumps` accepts.

        The keys are the names of the attributes, but `strays` for `non_photo_files`. `unreadable` and `oversize` are
        lists of `{"path": …, "reason": …}`.
        """
        document = asdict(self)
        document["root"] = str(self.root)
        document["strays"] = document.pop("non_photo_files")
        for key in ("unreadable", "oversize"):
            document[key] = [{"path": path, "reason": reason} for path, reason in document[key]]
        return document


def check(
    root: Path, *, layout: Layout = FOLDERS, split_file: Path | None = None, progress: ProgressCallback = silent
) -> CheckResult:
    """Reads every photo of a data folder and reports problems, such as damaged photos, copies and mixed splits.

    `split_file` replaces a split by train/val/test folders. Raises a DataError if the folder does not exist or has
    fewer than two classes, or the split file names photos that are not in the folder.
    """
    folder = read_layout(root, layout)
    given = folder.given_split
    split_of = match_split(read_split(split_file), folder.samples) if split_file is not None else given
    inspection = inspect_photos(folder, progress=progress)
    readable: list[Sample] = []
    unreadable: list[tuple[str, str]] = []
    oversize: list[tuple[str, str]] = []
    for sample in folder.samples:
        record = inspection[sample.path]
        if record.error is None:
            readable.append(sample)
        else:
            is_large = record.width * record.height > MAX_PIXELS
            (oversize if is_large else unreadable).append((sample.path, record.error))
    samples = assign_leaf_ids(folder, readable, inspection)
    label_of = {sample.path: sample.label for sample in samples}
    leaf_of = {sample.path: sample.leaf_id for sample in samples}
    by_leaf: dict[str, list[str]] = defaultdict(list)
    for path, leaf in leaf_of.items():
        by_leaf[leaf].append(path)
    exact = identical_groups(samples, inspection)
    begin(progress, "comparing photos")
    # Of each group of identical files, only the first is compared with other photos.
    repeated = {path for group in exact for path in group[1:]}
    compared = [sample for sample in samples if sample.path not in repeated]
    copies = groups_of_copies(compared, inspection)
    alike = (*copies, *near_groups(phashes_of(compared, inspection)))
    merged = merge_groups((sample.path for sample in compared), alike)
    near = sorted(sorted(group) for group in merged if len(group) > 1)
    classes = _class_checks(folder, samples, split_of)
    smallest = min((one.photos for one in classes), default=0)
    # Training takes the photos of a missing split from train, unless a split file is given.
    present = SPLIT_NAMES if given is None or split_file is not None else set(given.values())
    found = CheckResult(
        root=root,
        classes=classes,
        unreadable=tuple(unreadable),
        oversize=tuple(oversize),
        non_photo_files=folder.non_photo_files,
        without_photos=dict(folder.without_photos),
        alike_names=folder.alike_names,
        exact_duplicates=tuple(map(tuple, exact)),
        conflicting_duplicates=conflicting_groups(exact, label_of),
        conflicting_copies=conflicting_groups(copies, label_of),
        near_duplicates=tuple(map(tuple, near)),
        without_original=without_original(samples),
        straddling_leaves=_straddling(by_leaf.values(), split_of),
        straddling_duplicates=_straddling(exact, split_of),
        straddling_lookalikes=_straddling(
            (group for group in near if len({leaf_of[path] for path in group}) > 1), split_of
        ),
        cut_from_train=tuple(name for name in SPLIT_NAMES if name not in present),
        unassigned_photos=sum(sample.path not in split_of for sample in samples) if split_of is not None else 0,
        imbalance_ratio=max(one.photos for one in classes) / smallest if smallest else None,
    )
    return replace(
        found,
        problems=(*folder.problems, *_problems(found)),
        notes=(*folder.notes, *left_out(replace(folder, problems=())), *_notes(found)),
    )


def _class_checks(
    folder: PhotoFolder, samples: Sequence[Sample], split_of: Mapping[str, str] | None
) -> tuple[ClassCheck, ...]:
    checks = []
    for label, name in enumerate(folder.classes):
        members = [sample for sample in samples if sample.label == label]
        per_split = None
        if split_of is not None:
            counts = Counter(split_of.get(sample.path) for sample in members)
            per_split = {split: counts[split] for split in SPLIT_NAMES}
        checks.append(ClassCheck(name, len(members), len({sample.leaf_id for sample in members}), per_split))
    return tuple(checks)


def _straddling(groups: Iterable[Sequence[str]], split_of: Mapping[str, str] | None) -> tuple[Straddling, ...]:
    if split_of is None:
        return ()
    found = []
    for paths in groups:
        splits = {split_of[path] for path in paths if path in split_of}
        if len(splits) > 1:
            found.append(Straddling(tuple(paths), tuple(name for name in SPLIT_NAMES if name in splits)))
    return tuple(found)


def _problems(result: CheckResult) -> Iterable[str]:
    for bad, what in ((result.unreadable, "cannot be read"), (result.oversize, f"above {MAX_PIXELS:,} pixels")):
        if bad:
            path, reason = bad[0]
            yield f"{_count(bad, 'photo')} {what}, the first '{path}' ({reason})"
    if result.non_photo_files:
        yield passed_over(result.non_photo_files)
    for name, files in result.without_photos.items():
        yield f"class folder {described_without_photos(name, files)}"
    yield from map(alike_in_words, result.alike_names)
    for groups, what in (
        (result.conflicting_duplicates, "identical files"),
        (result.conflicting_copies, "copies of one photo (also flipped, turned or scaled)"),
    ):
        if groups:
            first = f"the first '{groups[0][0]}' and '{groups[0][-1]}'"
            yield f"{_count(groups, 'group')} of {what} in several classes, {first}"
    if result.without_original:
        yield unknown_originals(result.without_original)
    for one in result.classes:
        if one.leaves < MIN_LEAVES:
            yield f"'{one.name}' has {_count(range(one.leaves), 'leaf')}; train, val and test each need at least one"
        yield from (
            f"'{one.name}' has no photos in {split}"
            for split, photos in (one.photos_per_split or {}).items()
            if not photos and split not in result.cut_from_train
        )
    for mixed, what in (
        (result.straddling_leaves, _count(result.straddling_leaves, "leaf")),
        (result.straddling_duplicates, f"{_count(result.straddling_duplicates, 'group')} of identical files"),
    ):
        if mixed:
            splits = " and ".join(mixed[0].splits)
            yield f"{what} in several splits, the first in {splits}: '{mixed[0].paths[0]}'"


def _notes(result: CheckResult) -> Iterable[str]:
    if result.cut_from_train:
        yield f"no photos in {' and '.join(result.cut_from_train)}: training will move leaves from train there"
    if result.exact_duplicates:
        photos = sum(len(group) for group in result.exact_duplicates)
        yield f"{_count(result.exact_duplicates, 'group')} of identical files ({photos} photos)"
    if result.near_duplicates:
        photos = sum(len(group) for group in result.near_duplicates)
        yield f"{_count(result.near_duplicates, 'group')} of photos that look alike ({photos} photos)"
    if result.straddling_lookalikes:
        groups = _count(result.straddling_lookalikes, "group")
        yield f"{groups} of similar photos in several splits; by their names, they show different leaves"
    if result.imbalance_ratio is not None and result.imbalance_ratio > MAX_IMBALANCE:
        yield f"the largest class has {result.imbalance_ratio:.1f} times the photos of the smallest"
    if result.unassigned_photos:
        yield f"{_count(range(result.unassigned_photos), 'photo')} that the split does not name"


def _count(items: Sequence[object], noun: str) -> str:
    plural = {"leaf": "leaves"}.get(noun, f"{noun}s")
    return f"{len(items):,} {noun if len(items) == 1 else plural}"

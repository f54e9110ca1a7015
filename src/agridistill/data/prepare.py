"""Prepares a data folder for training and evaluation: reads all photos, groups them by leaf and splits them."""

from __future__ import annotations

import gc
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agridistill.data.folder import (
    MAX_CONFLICT_SHARE,
    SPLIT_NAMES,
    PhotoFolder,
    Sample,
    described_without_photos,
    left_out,
    require_outside,
)
from agridistill.data.inspection import Inspection, fingerprint, groups_of_copies, identical_groups
from agridistill.data.labels import FOLDERS, Layout, read_layout
from agridistill.data.leaf_ids import read_samples, unknown_originals, without_original
from agridistill.data.likeness import merge_groups
from agridistill.data.split import Split, make_split, match_split, read_split, unnamed_photos, write_split
from agridistill.data.structure import alike_in_words
from agridistill.data.unlabelled import UnlabelledPhotos
from agridistill.errors import DataError
from agridistill.photo_files import how_to_read, passed_over
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import require_writable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """The readable photos of a data folder, split into train, val and test."""

    root: Path
    classes: tuple[str, ...]  # names in label order
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    skipped: tuple[tuple[str, str], ...]  # (path, reason) of each photo that cannot be read
    non_photo_files: tuple[str, ...]  # files among the photos that are not photos
    fingerprint: str  # sha256 over paths, labels and contents of the readable photos
    split: Split
    cut: frozenset[str] = frozenset()  # the parts that were made by fractions and seed, not given by a file or folders
    inspection: Inspection = field(default_factory=dict)  # the records of all photos
    layout: Layout = FOLDERS
    conflicting: tuple[tuple[str, ...], ...] = ()  # groups of copies of one photo under several labels
    alike_names: tuple[tuple[str, ...], ...] = ()  # see `PhotoFolder.alike_names`
    unlabelled: UnlabelledPhotos | None = None  # photos of another folder, for a teacher's terms only

    def report(self, *, conflicts: float, option: str) -> None:
        """Warns of files that are not photos, of similar class names, and of copies of a photo under several labels.

        Raises a DataError if a larger share of photos than `conflicts` (set by `option`) has copies under other labels.
        """
        if self.non_photo_files:
            logger.warning("left out: %s", passed_over(self.non_photo_files))
        for group in self.alike_names:
            logger.warning("data folder '%s': %s", self.root, alike_in_words(group))
        if not self.conflicting:
            return
        label_of = {sample.path: sample.label for sample in (*self.train, *self.val, *self.test)}
        photos = sum(len(group) for group in self.conflicting)
        first = self.conflicting[0][0]
        second = next(path for path in self.conflicting[0] if label_of[path] != label_of[first])
        if photos / len(label_of) > conflicts:
            raise DataError(
                f"at most {conflicts:.0%} of photos with copies (also flipped, turned or scaled) under other labels",
                f"{photos:,} of {len(label_of):,} photos in '{self.root}', the first '{first}' and '{second}'",
                f"remove the wrong copies ('agridistill data check {self.root} --json' lists all), "
                f"or pass {option} if the labels are right",
            )
        logger.warning(
            "%d of %d photos have copies (also flipped, turned or scaled) under other labels, the first '%s' and '%s'; "
            "'agridistill data check' lists all",
            *(photos, len(label_of), first, second),
        )


@contextmanager
def _older_objects_frozen() -> Iterator[None]:
    """Excludes objects that already exist, such as torch's modules, from garbage collection; this saves a quarter of
    the time.

    The garbage collector stays on, because reading a photo leaves reference cycles.
    """
    if gc.get_freeze_count():  # the caller has frozen objects itself: do not unfreeze them
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@_older_objects_frozen()
def prepare_data(
    root: Path,
    *,
    layout: Layout = FOLDERS,
    split_file: Path | None = None,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    split_seed: int = 0,
    progress: ProgressCallback = silent,
) -> PreparedData:
    """Reads all photos of a data folder and splits them into train, val and test, with no leaf in two parts.

    A split may be given by a split file, by train/val/test folders or by a column of the label file. It is not changed,
    but a warning is logged if a leaf is in several parts. A part that folders or a column lack is taken from train, by
    `split_seed` and the share of each class's photos that it should have.

    Raises:
        DataError: the folder, its labels or the split cannot be used, too many photos are unreadable, a class has no
            training photo, or val or test is empty.
    """
    # Check the split file before reading the photos, which takes longest.
    given = read_split(split_file) if split_file is not None else None
    folder = read_layout(root, layout)
    _require_photos_in_classes(folder)
    part_of: Mapping[str, str] | None = match_split(given, folder.samples) if given is not None else None
    # The notes of a label file only describe how it was read; those of folders report that class names are lost.
    notes = folder.notes if layout.label_file is None else ()
    unnamed = unnamed_photos(folder.samples, part_of) if part_of is not None else ()
    for line in (*left_out(folder), *notes, *unnamed):
        logger.warning("data folder '%s': %s", root, line)
    cut: frozenset[str] = frozenset()
    samples, skipped, inspection = read_samples(folder, progress=progress)
    if part_of is None:
        part_of, cut = _made_or_given(folder, samples, val_fraction, test_fraction, split_seed)
    parts = {name: tuple(one for one in samples if part_of.get(one.path) == name) for name in SPLIT_NAMES}
    check_parts(folder.classes, **parts)
    if given is not None or folder.given_split is not None:
        warn_of_shared_leaves(parts)
    if unknown := without_original(samples):
        logger.warning("data folder '%s': %s", root, unknown_originals(unknown))
    return PreparedData(
        root=root,
        classes=folder.classes,
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        skipped=skipped,
        non_photo_files=folder.non_photo_files,
        fingerprint=fingerprint(folder.classes, samples, inspection),
        split=Split(**{name: tuple(sample.path for sample in part) for name, part in parts.items()}),
        cut=cut,
        inspection=inspection,
        layout=layout,
        conflicting=_conflicting([sample for part in parts.values() for sample in part], inspection),
        alike_names=folder.alike_names,
    )


def split_data(
    root: Path,
    out: Path,
    *,
    layout: Layout = FOLDERS,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
    conflicts: float = MAX_CONFLICT_SHARE,
    force: bool = False,
    progress: ProgressCallback = silent,
) -> PreparedData:
    """Splits a data folder as `prepare_data` does, and writes the split to a JSON file that several runs can use.

    `conflicts` is the largest allowed share, 0 to 1, of photos that have copies under other labels.

    Raises:
        DataError: `out` exists and `force` is False or it is in the data folder, too many photos have copies under
            other labels, or `prepare_data` fails.
    """
    if out.exists() and not force:
        raise DataError("a new split file", f"'{out}', which already exists", "choose another name or pass --force")
    require_writable(out)
    require_outside(out, root)
    prepared = prepare_data(
        root, layout=layout, val_fraction=val_fraction, test_fraction=test_fraction, split_seed=seed, progress=progress
    )
    prepared.report(conflicts=conflicts, option="--conflicts SHARE")
    write_split(
        out,
        prepared.split,
        seed=seed if prepared.cut else None,
        val_fraction=val_fraction if "val" in prepared.cut else None,
        test_fraction=test_fraction if "test" in prepared.cut else None,
        fingerprint=prepared.fingerprint,
    )
    return prepared


def check_parts(classes: Sequence[str], train: Sequence[Sample], val: Sequence[Sample], test: Sequence[Sample]) -> None:
    """Raises a DataError if a class has no photo in train, or val or test is empty."""
    learnt = {sample.label for sample in train}
    for label, name in enumerate(classes):
        if label not in learnt:
            raise DataError("training photos of every class", f"none of '{name}'", "add photos or correct the split")
    for name, part in (("val", val), ("test", test)):
        if not part:
            raise DataError(f"photos in {name}", "none", f"correct the split or raise the fraction of {name}")


def warn_of_shared_leaves(parts: Mapping[str, Sequence[Sample]]) -> None:
    """Logs a warning if photos of one leaf are in several parts; `parts` maps train, val and test to their photos."""
    parts_of: dict[str, set[str]] = defaultdict(set)
    for name, samples in parts.items():
        for sample in samples:
            parts_of[sample.leaf_id].add(name)
    shared = {leaf for leaf, names in parts_of.items() if len(names) > 1}
    if shared:
        logger.warning(
            "the given split has photos of one leaf in several parts (such leaves: %d; their test photos: %d of %d): "
            "the test accuracy may be too high; 'agridistill data check' lists the photos",
            len(shared),
            sum(sample.leaf_id in shared for sample in parts["test"]),
            len(parts["test"]),
        )


def conflicting_groups(groups: Iterable[Sequence[str]], label_of: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    """Returns those groups of paths, copies of one photo each, whose photos have different labels."""
    return tuple(tuple(group) for group in groups if len({label_of[path] for path in group}) > 1)


def _conflicting(samples: Sequence[Sample], inspection: Inspection) -> tuple[tuple[str, ...], ...]:
    """Finds copies of one photo (also flipped, turned, scaled or saved again) that have several labels."""
    labels_of: dict[str, set[int]] = defaultdict(set)
    for sample in samples:
        labels_of[sample.leaf_id].add(sample.label)
    # All copies of a photo have one leaf id: only leaves with several labels need to be compared.
    mixed = [sample for sample in samples if len(labels_of[sample.leaf_id]) > 1]
    groups = (*identical_groups(mixed, inspection), *groups_of_copies(mixed, inspection))
    merged = merge_groups((sample.path for sample in mixed), groups)
    return conflicting_groups(map(sorted, merged), {sample.path: sample.label for sample in mixed})


def _require_photos_in_classes(folder: PhotoFolder) -> None:
    """Raises a DataError if a class folder has no photos; otherwise the model would silently lack this class."""
    first = next(iter(folder.without_photos.items()), None)
    if first is not None:
        more = len(folder.without_photos) - 1
        raise DataError(
            "photos in every class folder",
            described_without_photos(*first) + (f" and {more} more such folders" if more else ""),
            how_to_read(first[1], otherwise="save the photos as JPEG or move the folder away"),
        )


def _made_or_given(
    folder: PhotoFolder, samples: Sequence[Sample], val_fraction: float, test_fraction: float, seed: int
) -> tuple[Mapping[str, str], frozenset[str]]:
    """Returns path -> part, and the names of those parts that were made by fractions and seed."""
    given = folder.given_split
    if given is None:
        made = make_split(samples, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
        return made.part_of(), frozenset(SPLIT_NAMES)
    missing = set(SPLIT_NAMES) - {given[sample.path] for sample in samples}
    if "train" in missing:
        raise DataError("photos to train on", f"none in '{folder.root}'", "add train photos to the given split")
    if not missing:
        return given, frozenset()
    cut = make_split(
        (sample for sample in samples if given[sample.path] == "train"),
        val_fraction=val_fraction if "val" in missing else 0,
        test_fraction=test_fraction if "test" in missing else 0,
        seed=seed,
    )
    return {**given, **cut.part_of()}, frozenset(missing | {"train"})

"""From a data folder to the photos of each part: where training and evaluation start."""

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
from agridistill.data.inspection import (
    Inspection,
    InspectionStore,
    digests_of_photos,
    fingerprint,
    inspect_photos,
    looks_of,
    phashes_of,
    usable_samples,
)
from agridistill.data.labels import FOLDERS, Layout, read_layout
from agridistill.data.leaf_ids import assign_leaf_ids, unknown_originals, without_original
from agridistill.data.likeness import copy_groups, exact_groups, merge_groups
from agridistill.data.split import Split, make_split, match_split, read_split, unnamed_photos, write_split
from agridistill.data.structure import alike_in_words
from agridistill.errors import DataError
from agridistill.photo_files import how_to_read, passed_over
from agridistill.preprocess import MAX_PIXELS
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import require_writable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """The readable photos of a folder, split into train, val and test."""

    root: Path
    classes: tuple[str, ...]  # names in label order
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    skipped: tuple[tuple[str, str], ...]  # (path, reason) of each photo that cannot be read
    non_photo_files: tuple[str, ...]  # files among the photos that are no photos
    fingerprint: str  # of the readable photos, their labels and their content
    split: Split
    cut: frozenset[str] = frozenset()  # parts made from fractions and seed; none where a file or folders give the split
    phashes: Mapping[str, int] = field(default_factory=dict)  # 64-bit perceptual hashes by `Sample.path`
    layout: Layout = FOLDERS
    conflicting: tuple[tuple[str, ...], ...] = ()  # groups of copies of one photo under several labels
    alike_names: tuple[tuple[str, ...], ...] = ()  # see `PhotoFolder.alike_names`

    def report(self, *, conflicts: float, option: str) -> None:
        """Warns about doubtful photos; to be called before anything is made of them.

        Args:
            conflicts: largest share of the photos that may have copies under other labels, 0 to 1.
            option: that raises it, for the error.

        Raises:
            DataError: the share is larger.
        """
        if self.non_photo_files:
            logger.warning("left out: %s", passed_over(self.non_photo_files))
        for group in self.alike_names:
            logger.warning("%s", alike_in_words(group))
        if not self.conflicting:
            return
        label_of = {sample.path: sample.label for sample in (*self.train, *self.val, *self.test)}
        photos = sum(len(group) for group in self.conflicting)
        first = self.conflicting[0][0]
        second = next(path for path in self.conflicting[0] if label_of[path] != label_of[first])
        found = (
            f"{photos:,} of {len(label_of):,} photos have copies under other labels (also flipped, turned, scaled or "
            "saved again)"
        )
        if photos / len(label_of) > conflicts:
            raise DataError(
                f"each photo under one label, or at most {conflicts:.0%} of them under several",
                f"'{self.root}', in which {found}, the first '{first}' and '{second}'",
                f"remove the wrong copies ('agridistill data check {self.root} --json' names all), "
                f"or pass {option} if they are meant",
            )
        logger.warning("%s, the first '%s' and '%s': see all with agridistill data check", found, first, second)


@contextmanager
def _older_objects_frozen() -> Iterator[None]:
    """Keeps the garbage collector from traversing torch's modules, a quarter of the time here.

    It stays on, because reading a photo leaves cycles behind.
    """
    if gc.get_freeze_count():  # the caller's own
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
    """Reads a data folder once and splits it by leaves.

    The split comes from the split file, from train/val/test folders or a column of the label file, or is made from the
    seed. Where these lack val or test, it is cut from train, leaf by leaf. Leaves in several parts of a given split are
    logged.

    Raises:
        DataError: the folder, the photos or the split cannot be used.
    """
    # Before the photos are read, which takes longest.
    given = read_split(split_file) if split_file is not None else None
    folder = read_layout(root, layout)
    _require_photos_in_classes(folder)
    # Notes on a label file describe how it was read; those on folders, that a level of folders is lost.
    for line in (*left_out(folder), *(folder.notes if layout.label_file is None else ())):
        logger.warning("%s", line)
    part_of = match_split(given, folder.samples) if given is not None else None
    for line in unnamed_photos(folder.samples, part_of) if part_of is not None else ():
        logger.warning("%s", line)
    cut: frozenset[str] = frozenset()
    inspection = inspect_photos(folder, store=InspectionStore(root, MAX_PIXELS), progress=progress)
    readable, skipped = usable_samples(folder, inspection)
    samples = assign_leaf_ids(folder, readable, inspection)
    if part_of is None:
        own, cut = _made_or_given(folder, samples, val_fraction, test_fraction, split_seed)
        part_of = {path: name for name, paths in own.parts().items() for path in paths}
    parts = {name: tuple(one for one in samples if part_of.get(one.path) == name) for name in SPLIT_NAMES}
    check_parts(folder.classes, **parts)
    if given is not None or folder.given_split is not None:
        warn_of_shared_leaves(parts)
    if unknown := without_original(samples):
        logger.warning("%s", unknown_originals(unknown))
    return PreparedData(
        root=root,
        classes=folder.classes,
        **parts,
        skipped=skipped,
        non_photo_files=folder.non_photo_files,
        fingerprint=fingerprint(folder.classes, samples, inspection),
        split=Split(**{name: tuple(sample.path for sample in part) for name, part in parts.items()}),
        cut=cut,
        phashes=phashes_of(samples, inspection),
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
    """Makes the leaf-disjoint split of a folder and writes it to a file for all runs that are to be compared.

    Train/val/test folders are written down as they are. `conflicts` is the largest share of the photos that may have
    copies under other labels.

    Raises:
        DataError: the file exists (and not `force`), or the folder or its photos cannot be used.
    """
    if out.exists() and not force:
        raise DataError("a new split file", f"'{out}', which exists", "choose another name or pass --force")
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
    """Raises a DataError where a class has no training photos, or where val or test is empty."""
    learnt = {sample.label for sample in train}
    for label, name in enumerate(classes):
        if label not in learnt:
            raise DataError("training photos of every class", f"none of '{name}'", "correct the split or add photos")
    for name, part in (("val", val), ("test", test)):
        if not part:
            raise DataError(f"photos in {name}", "none", "correct the split or raise its fraction")


def warn_of_shared_leaves(parts: Mapping[str, Sequence[Sample]]) -> None:
    """Warns of leaves in several parts of a split that is used as it is."""
    parts_of: dict[str, set[str]] = defaultdict(set)
    for name, samples in parts.items():
        for sample in samples:
            parts_of[sample.leaf_id].add(name)
    shared = {leaf for leaf, names in parts_of.items() if len(names) > 1}
    if shared:
        logger.warning(
            "the given split has photos of the same leaf in several parts (leaves: %d; test photos of them: %d of %d): "
            "the result may be too high; see them with agridistill data check",
            len(shared),
            sum(sample.leaf_id in shared for sample in parts["test"]),
            len(parts["test"]),
        )


def conflicting_groups(groups: Iterable[Sequence[str]], label_of: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    """Those of some groups of paths of copies of one photo that have several labels."""
    return tuple(tuple(group) for group in groups if len({label_of[path] for path in group}) > 1)


def _conflicting(samples: Sequence[Sample], inspection: Inspection) -> tuple[tuple[str, ...], ...]:
    """Groups of copies of one photo, also flipped, turned, scaled or saved again, that have several labels."""
    labels_of: dict[str, set[int]] = defaultdict(set)
    for sample in samples:
        labels_of[sample.leaf_id].add(sample.label)
    # Copies are one leaf: where it has one label, nothing needs to be compared.
    mixed = [sample for sample in samples if len(labels_of[sample.leaf_id]) > 1]
    exact, copies = exact_groups(digests_of_photos(mixed, inspection)), copy_groups(looks_of(mixed, inspection))
    merged = merge_groups((sample.path for sample in mixed), (*exact, *copies))
    return conflicting_groups(map(sorted, merged), {sample.path: sample.label for sample in mixed})


def _require_photos_in_classes(folder: PhotoFolder) -> None:
    """Refuses a class that the model would silently lack: its photos may have another format."""
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
) -> tuple[Split, frozenset[str]]:
    """The split, and the parts of it that were made from fractions and seed."""
    given = folder.given_split
    if given is None:
        made = make_split(samples, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
        return made, frozenset(SPLIT_NAMES)
    parts = {name: [sample for sample in samples if given[sample.path] == name] for name in SPLIT_NAMES}
    if not parts["train"]:
        raise DataError("photos to train on", f"none in '{folder.root}'", "correct the split")
    paths = {name: tuple(sample.path for sample in part) for name, part in parts.items()}
    missing = {name for name in ("val", "test") if not parts[name]}
    if not missing:
        return Split(**paths), frozenset()
    cut = make_split(
        parts["train"],
        val_fraction=val_fraction if "val" in missing else 0,
        test_fraction=test_fraction if "test" in missing else 0,
        seed=seed,
    )
    return Split(cut.train, cut.val or paths["val"], cut.test or paths["test"]), frozenset(missing | {"train"})

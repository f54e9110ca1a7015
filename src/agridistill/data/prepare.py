"""From a data folder to the photos of each split: what training and evaluation start from."""

from __future__ import annotations

import gc
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agridistill.data.cache import InspectionStore
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
    fingerprint,
    inspect_photos,
    looks_of,
    phashes_of,
    usable_samples,
)
from agridistill.data.labels import FOLDERS, Layout, read_layout
from agridistill.data.leaf_ids import unknown_originals, without_original
from agridistill.data.likeness import DisjointSets, copy_groups, exact_groups
from agridistill.data.split import (
    Split,
    assign_leaf_ids,
    make_split,
    match_split,
    read_split,
    unnamed_photos,
    write_split,
)
from agridistill.data.structure import alike_in_words
from agridistill.errors import DataError
from agridistill.photo_files import how_to_read, passed_over
from agridistill.preprocess import MAX_PIXELS
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import require_writable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """The readable photos of a folder, parted.

    Attributes:
        root: the data folder.
        classes: class names in label order.
        train: samples to learn from.
        val: samples to choose by.
        test: samples to report.
        skipped: (path, reason) of each photo that cannot be read.
        strays: files among the photos that are no photos.
        fingerprint: names the readable photos, their labels and their content.
        split: the paths of the three parts.
        cut: the parts that were made from the fractions and the seed; none where a file or folders gave the split.
        phashes: 64-bit perceptual hash of each readable photo, by `Sample.path`.
        layout: how the labels were found.
        conflicting: groups of copies of one photo that stand under several labels.
        alike_names: groups of class folders' names that differ in capitals, spaces or normal form alone.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    skipped: tuple[tuple[str, str], ...]
    strays: tuple[str, ...]
    fingerprint: str
    split: Split
    cut: frozenset[str] = frozenset()
    phashes: Mapping[str, int] = field(default_factory=dict)
    layout: Layout = FOLDERS
    conflicting: tuple[tuple[str, ...], ...] = ()
    alike_names: tuple[tuple[str, ...], ...] = ()

    def report(self, *, conflicts: float, option: str) -> None:
        """Warns of what makes the photos doubtful: to be called before anything is made of them.

        Args:
            conflicts: share of the photos that may stand under several labels, 0 to 1.
            option: that raises it, for the error.

        Raises:
            DataError: more of them do.
        """
        if self.strays:
            logger.warning("left out: %s", passed_over(self.strays))
        for group in self.alike_names:
            logger.warning("%s", alike_in_words(group))
        label_of = {sample.path: sample.label for sample in (*self.train, *self.val, *self.test)}
        require_few_conflicts(self.conflicting, label_of, self.root, most=conflicts, option=option)


def prepare_data(
    root: Path,
    *,
    layout: Layout = FOLDERS,
    split_file: Path | None = None,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    split_seed: int = 0,
    max_pixels: int = MAX_PIXELS,
    progress: ProgressCallback = silent,
) -> PreparedData:
    """Reads a data folder once and parts it by leaves.

    The split comes from the split file, from train/val/test folders or a column of the label file, or is made from the
    seed. Where these lack val or test, it is cut from train, leaf by leaf. Leaves that a given split puts into several
    parts are told in the log.

    Raises:
        DataError: the folder, the photos or the split cannot be used.
    """
    with _collector_spared():
        return _prepared(root, layout, split_file, val_fraction, test_fraction, split_seed, max_pixels, progress)


def _prepared(
    root: Path,
    layout: Layout,
    split_file: Path | None,
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
    max_pixels: int,
    progress: ProgressCallback,
) -> PreparedData:
    # Before the photos are read, which takes longest.
    given = read_split(split_file) if split_file is not None else None
    folder = read_layout(root, layout)
    _check_folders(folder)
    # A label file's notes say how it was read; a folder's, that a level of folders is lost.
    for line in (*left_out(folder), *(folder.notes if layout.label_file is None else ())):
        logger.warning("%s", line)
    part_of = match_split(given, folder.samples) if given is not None else None
    for line in unnamed_photos(folder.samples, part_of) if part_of is not None else ():
        logger.warning("%s", line)
    inspection = inspect_photos(
        folder, max_pixels=max_pixels, store=InspectionStore(root, max_pixels), progress=progress
    )
    readable, skipped = usable_samples(folder, inspection)
    samples = assign_leaf_ids(folder, readable, inspection)
    cut: frozenset[str] = frozenset()
    if part_of is None:
        own, cut = _made_or_given(folder, samples, val_fraction, test_fraction, split_seed)
        part_of = {path: name for name, paths in own.parts().items() for path in paths}
    parts = {
        name: tuple(sample for sample in samples if part_of.get(sample.path) == name)
        for name in ("train", "val", "test")
    }
    check_parts(folder.classes, parts["train"], parts["val"], parts["test"])
    if given is not None or folder.given_split is not None:
        tell_shared_leaves(parts)
    if unknown := without_original(samples):
        logger.warning("%s", unknown_originals(unknown))
    return PreparedData(
        root=root,
        classes=folder.classes,
        **parts,
        skipped=skipped,
        strays=folder.strays,
        fingerprint=fingerprint(folder.classes, samples, inspection),
        split=Split(**{name: tuple(sample.path for sample in part) for name, part in parts.items()}),
        cut=cut,
        phashes=phashes_of(samples, inspection),
        layout=layout,
        conflicting=_conflicting([sample for part in parts.values() for sample in part], inspection),
        alike_names=folder.alike_names,
    )


def _conflicting(samples: Sequence[Sample], inspection: Inspection) -> tuple[tuple[str, ...], ...]:
    """Groups of copies of one photo, also flipped, turned, scaled or saved again, that stand under several labels."""
    labels_of: dict[str, set[int]] = defaultdict(set)
    for sample in samples:
        labels_of[sample.leaf_id].add(sample.label)
    # Copies are one leaf: where that has one label, nothing needs to be compared.
    mixed = [sample for sample in samples if len(labels_of[sample.leaf_id]) > 1]
    copies = DisjointSets(sample.path for sample in mixed)
    digests = {sample.path: inspection.records[sample.path].digest for sample in mixed}
    for group in (*exact_groups(digests), *copy_groups(looks_of(mixed, inspection))):
        copies.join_all(group)
    return conflicting_groups(map(sorted, copies.groups()), {sample.path: sample.label for sample in mixed})


@contextmanager
def _collector_spared() -> Iterator[None]:
    """What was there before is not looked through for cycles: torch's modules cost a quarter of the time here.

    The collector stays on, because reading a photo leaves cycles behind.
    """
    if gc.get_freeze_count():  # the caller's own
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _check_folders(folder: PhotoFolder) -> None:
    """A class that would be missing in the model without a word is refused: its photos may have another format."""
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
    if folder.given_split is None:
        return make_split(samples, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed), frozenset(
            SPLIT_NAMES
        )
    given = folder.given_split
    parts = {name: [sample for sample in samples if given[sample.path] == name] for name in ("train", "val", "test")}
    if not parts["train"]:
        raise DataError("photos to train on", f"none in '{folder.root}'", "correct the split")
    lacking = {name for name in ("val", "test") if not parts[name]}
    paths = {name: tuple(sample.path for sample in part) for name, part in parts.items()}
    if not lacking:
        return Split(**paths), frozenset()
    cut = make_split(
        parts["train"],
        val_fraction=val_fraction if "val" in lacking else 0,
        test_fraction=test_fraction if "test" in lacking else 0,
        seed=seed,
    )
    return Split(cut.train, cut.val or paths["val"], cut.test or paths["test"]), frozenset(lacking | {"train"})


def check_parts(classes: Sequence[str], train: Sequence[Sample], val: Sequence[Sample], test: Sequence[Sample]) -> None:
    """Checks that every class can be learnt, and that there is something to watch and to test on.

    Raises:
        DataError: a class without training photos, or an empty part.
    """
    learnt = {sample.label for sample in train}
    for label, name in enumerate(classes):
        if label not in learnt:
            raise DataError("training photos of every class", f"none of '{name}'", "correct the split or add photos")
    for name, part in (("val", val), ("test", test)):
        if not part:
            raise DataError(f"photos in {name}", "none", "correct the split or raise its fraction")


def tell_shared_leaves(parts: Mapping[str, Sequence[Sample]]) -> None:
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
    """Makes the leaf-disjoint split of a folder and writes it to a file, which every compared run then reads.

    Train/val/test folders are written down as they are. `conflicts` is the share of the photos of which copies may
    stand under several labels.

    Raises:
        DataError: the file exists (and not `force`), or the folder or its photos cannot be used.
    """
    if out.exists() and not force:
        raise DataError("a new split file", f"'{out}', which exists", "choose another name or pass --force")
    require_writable(out)
    require_outside(out, root)
    prepared = prepare_data(
        root,
        layout=layout,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        split_seed=seed,
        progress=progress,
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


Groups = Sequence[Sequence[str]]


def conflicting_groups(groups: Iterable[Sequence[str]], label_of: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    """Those groups of copies of one photo that stand under several labels.

    Args:
        groups: paths of copies of one photo.
        label_of: of each path.
    """
    return tuple(tuple(group) for group in groups if len({label_of[path] for path in group}) > 1)


def first_pair(group: Sequence[str], label_of: Mapping[str, int]) -> tuple[str, str]:
    """Two photos of a conflicting group that have different labels."""
    first = group[0]
    return first, next(path for path in group if label_of[path] != label_of[first])


def require_few_conflicts(
    conflicting: Groups, label_of: Mapping[str, int], root: Path, *, most: float = MAX_CONFLICT_SHARE, option: str
) -> None:
    """Warns of photos under several labels, and refuses a folder in which they are many.

    Args:
        conflicting: of `conflicting_groups`.
        label_of: of each readable photo.
        root: the data folder.
        most: share of the photos, 0 to 1.
        option: that raises it, for the error.

    Raises:
        DataError: more than `most` of the photos.
    """
    if not conflicting:
        return
    photos = sum(len(group) for group in conflicting)
    share = photos / len(label_of)
    first, second = first_pair(conflicting[0], label_of)
    found = (
        f"{photos:,} of {len(label_of):,} photos have copies under other labels (also flipped, turned, scaled or "
        "saved again)"
    )
    if share > most:
        raise DataError(
            f"each photo under one label, or at most {most:.0%} of them under several",
            f"'{root}', in which {found}, the first '{first}' and '{second}'",
            f"remove the wrong copies ('agridistill data check {root} --json' names all), "
            f"or pass {option} if they are meant",
        )
    logger.warning("%s, the first '%s' and '%s': see all with agridistill data check", found, first, second)

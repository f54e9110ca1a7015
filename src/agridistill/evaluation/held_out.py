"""Which photos of a data folder a model may fairly be scored on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agridistill.data.inspection import fingerprint, inspect_photos, turned_phashes_of, usable_samples
from agridistill.data.inspection_store import InspectionStore
from agridistill.data.layout import FOLDERS, Layout, read_layout
from agridistill.data.learnt import LearntPhotos, read_learnt
from agridistill.data.samples import SPLIT_NAMES, PhotoFolder, Sample, left_out
from agridistill.data.splits import Split, assign_leaf_ids, digests_of, match_split, read_split, unnamed_photos
from agridistill.errors import DataError
from agridistill.evaluation.class_names import labels_in_model, relabelled, unused_names
from agridistill.evaluation.evaluate import evaluate
from agridistill.evaluation.result import EvaluationResult
from agridistill.manifest import ModelManifest, require_same_classes
from agridistill.photo_files import passed_over
from agridistill.preprocess import MAX_PIXELS
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.runtime.backends import Backend

logger = logging.getLogger(__name__)

SplitChoice = Literal["train", "val", "test", "all"]


@dataclass(frozen=True)
class ChosenPhotos:
    """Photos to evaluate on.

    Attributes:
        root: the data folder.
        classes: the model's class names; `Sample.label` is an index into them.
        samples: the readable photos of the split.
        skipped: one line for each unreadable photo of the split.
        phashes: 64-bit perceptual hashes of each sample, first as it is, then turned.
        trained_here: whether the folder holds the very photos that the model was trained on.
        split: that they are; "all" where the test split was asked for in a folder of new photos alone.
        left_out: photos without a label or a split, rows of a label file without a photo and renamed classes without
            a folder, a sentence each.
        strays: files in the folder that are no photos.
    """

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    skipped: tuple[str, ...]
    phashes: tuple[tuple[int, ...], ...] = ()
    trained_here: bool = False
    split: SplitChoice = "test"
    left_out: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()


def evaluate_folder(
    backend: Backend,
    data: Path,
    *,
    layout: Layout = FOLDERS,
    split: SplitChoice = "test",
    split_file: Path | None = None,
    run: Path | None = None,
    learnt: Path | None = None,
    class_names: Mapping[str, str] | None = None,
    batch_size: int = 64,
    parameters: int | None = None,
    macs: int | None = None,
    progress: ProgressCallback = silent,
) -> EvaluationResult:
    """Scores a model on one split of a data folder.

    Args:
        backend: the model, ready to run.
        data: folder of class folders, or of train/val/test folders of them.
        layout: how the labels are found.
        split: which photos; in a folder without splits, none of whose photos the model has learnt from, "test" takes
            all of them.
        split_file: made by `data split`, or a run's `splits.json`.
        run: the model's run folder, whose own split is used on the data that it was trained on.
        learnt: file that names the photos which the model has learnt from (`data.learnt`), which are logged.
        class_names: the model's class for a folder of another name; the data may lack some of the model's classes.
        batch_size: photos at once.
        parameters: of the model, for the result.
        macs: of the model, for the result.
        progress: told twice, while the photos are checked and while they are classified.

    Raises:
        DataError: the folder or the split cannot be used, or the data has no split and `split` is not "all".
        ModelError: the model lacks a class of the data, or its output is unusable.
    """
    own_split = run / "splits.json" if run is not None else None
    photos = choose_photos(
        backend.manifest,
        data,
        layout=layout,
        split=split,
        split_file=split_file,
        own_split=own_split,
        learnt=learnt,
        class_names=class_names or {},
        progress=progress,
    )
    for line in photos.left_out:
        logger.warning("%s", line)
    if photos.strays:
        logger.warning("left out: %s", passed_over(photos.strays))
    return evaluate(
        backend,
        photos.samples,
        photos.root,
        classes=photos.classes,
        split=photos.split,
        skipped=photos.skipped,
        batch_size=batch_size,
        parameters=parameters,
        macs=macs,
        progress=progress,
    )


def choose_photos(
    manifest: ModelManifest,
    data: Path,
    *,
    layout: Layout = FOLDERS,
    split: SplitChoice = "test",
    split_file: Path | None = None,
    own_split: Path | None = None,
    learnt: Path | None = None,
    class_names: Mapping[str, str] | None = None,
    progress: ProgressCallback = silent,
) -> ChosenPhotos:
    """Finds the photos of a split.

    The split comes from `split_file`; on the data that the model was trained on from its own split, so that it is not
    tested on photos that it learnt from; else from train/val/test folders. Photos that it did learn from are told in
    the log: by the run's own split, or in any folder by `learnt`, the file that names them.

    The data has the model's classes, all of them; with `class_names`, an empty one too, it may have some of them, also
    in folders of other names.

    Raises:
        DataError: the folder or the split cannot be used, or the data has no split and `split` is not "all".
        ModelError: the model has other classes.
    """
    given = read_split(split_file) if split_file is not None else None
    own = read_split(own_split) if own_split is not None and own_split.exists() else None
    begin(progress, "reading photos")
    folder = read_layout(data, layout, min_classes=1)
    if class_names is None:
        require_same_classes(manifest.classes, folder.classes)
    labels = labels_in_model(manifest.classes, folder.classes, class_names or {})
    inspection = inspect_photos(folder, store=InspectionStore(data, MAX_PIXELS), progress=progress)
    readable, unreadable = usable_samples(folder, inspection)
    samples = assign_leaf_ids(folder, readable, inspection)
    trained_here = manifest.lineage.get("data_fingerprint") == fingerprint(folder.classes, samples, inspection)
    parts = _parts(folder, given, own if trained_here else None)
    known = read_learnt(learnt, manifest) if learnt is not None and not (own and trained_here) else None
    if parts is None and split != "all":
        met = known.count(turned_phashes_of(samples, inspection).values()) if known is not None else 0
        if split != "test" or known is None or met:
            of_them = f"{met} of whose {len(samples)} photos the model has learnt from" if met else ""
            raise _no_split(data, split, trained_here, of_them, scored=split == "test")
        split = "all"

    def chosen(path: str) -> bool:
        return parts is None or (path in parts if split == "all" else parts.get(path) == split)

    wanted = tuple(sample for sample in samples if chosen(sample.path))
    photos = ChosenPhotos(
        data,
        manifest.classes,
        relabelled(wanted, labels),
        tuple(f"{path}: {reason}" for path, reason in unreadable if chosen(path)),
        tuple(turned_phashes_of(wanted, inspection).values()),
        trained_here,
        split,
        (
            *left_out(folder),
            *(unnamed_photos(samples, parts or {}) if given is not None else ()),
            *unused_names(folder.classes, class_names or {}),
        ),
        folder.strays,
    )
    if split == "train":
        return photos
    if known is not None:
        _tell_known(photos, known)
    elif own is not None:
        _tell_learnt(photos, own, trained_here)
    elif trained_here:
        readable_parts = {sample.path: parts[sample.path] for sample in samples if parts and sample.path in parts}
        _tell_what_may_be_learnt(manifest, readable_parts, split)
    return photos


def _parts(folder: PhotoFolder, given: Split | None, own: Split | None) -> Mapping[str, str] | None:
    """The split of each photo by its path; None where there is no split."""
    split = given or own
    return match_split(split, folder.samples) if split is not None else folder.given_split


def _no_split(data: Path, split: str, trained_here: bool, learnt: str, *, scored: bool) -> DataError:
    """Why there is no such split.

    Args:
        data: the folder.
        split: that was asked for.
        trained_here: whether the model was trained on these very photos.
        learnt: how many of them it is known to have learnt from, in words.
        scored: whether every photo could be scored as well.
    """
    if trained_here:
        got = "which the model was trained on, without the run's splits.json"
    else:
        got = learnt or "which is not as the model was trained on and has no train/val/test folders"
    leave_out = "leave these out, " if learnt and not trained_here else ""
    remedy = ", or --split all for every photo" if scored else ", or the folder that the run learnt from"
    return DataError(f"a '{split}' split", f"'{data}', {got}", f"{leave_out}pass --splits FILE{remedy}")


def _tell_what_may_be_learnt(manifest: ModelManifest, parts: Mapping[str, str], split: SplitChoice) -> None:
    """For an exported model, which knows the digests of its run's split at most."""
    if split == "all":
        logger.warning(
            "the model was trained on photos of this folder: the result will be too high; pass its run's splits.json "
            "as --splits and --split test"
        )
        return
    known = manifest.lineage.get("split_sha256")
    if not isinstance(known, dict):
        return
    given = Split(*(tuple(path for path, part in parts.items() if part == name) for name in SPLIT_NAMES))
    if digests_of(given)[split] != known.get(split):
        logger.warning(
            "the model was trained on photos of this folder by another split: some of these it may have learnt; pass "
            "its run's splits.json as --splits"
        )


def _tell_known(photos: ChosenPhotos, known: LearntPhotos) -> None:
    met = known.count(photos.phashes)
    if met:
        logger.warning(
            "the model has learnt from at least %d of these %d photos (the same pictures, also under other names, "
            "flipped, turned or in other sizes): the result will be too high; leave them out, or pass its run's "
            "splits.json as --splits",
            met,
            len(photos.samples),
        )


def _tell_learnt(photos: ChosenPhotos, own: Split, trained_here: bool) -> None:
    learnt = len(set(own.train) & {sample.path for sample in photos.samples})
    if learnt:
        logger.warning(
            "%d of these %d photos %s the model was trained on: the result will be too high",
            learnt,
            len(photos.samples),
            "are among those that" if trained_here else "have the names of photos that",
        )

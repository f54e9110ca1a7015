"""Chooses the photos of a folder that a model is evaluated on: finds their split and maps their labels to its classes.

The folders may have other names than the model's classes, and some classes may have no folder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from agridistill.arguments import described, to_path
from agridistill.data.folder import SPLIT_NAMES, Sample, left_out
from agridistill.data.inspection import Inspection, fingerprint, turned_phashes_of
from agridistill.data.labels import FOLDERS, Layout, read_layout
from agridistill.data.leaf_ids import read_samples
from agridistill.data.likeness import count_learnt, read_learnt
from agridistill.data.split import Split, digests_of, match_split, read_split, unnamed_photos
from agridistill.errors import DataError, ModelError, nearest
from agridistill.manifest import ModelManifest, composed, require_same_classes
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.settings_file import read_toml

SplitChoice = Literal["train", "val", "test", "all"]

logger = logging.getLogger(__name__)


def read_class_names(file: Path) -> dict[str, str]:
    """Reads a TOML file that gives the class of each folder: "late blight" = "Tomato___Late_blight".

    Raises a DataError if the file does not exist, is not TOML, or has a value that is not a string.
    """
    remedy = 'write a line for each folder: "folder name" = "model class"'
    document = read_toml(file, "a file of class names", damaged=remedy, error_type=DataError)
    for folder, name in document.items():
        if not isinstance(name, str):
            remedy = 'write "folder name" = "model class", with quotes around both'
            raise DataError(f"a class name for '{folder}' in '{file}'", described(name), remedy)
    return document


def to_class_names(value: object) -> dict[str, str]:
    """Converts the argument `class_names` of the Python API to a mapping: folder name -> class name of the model.

    It may be None (folders are named like the classes), a mapping, or the path of a file for `read_class_names`.
    Raises a ConfigError for another type, and a DataError if the file or a key or value cannot be used.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return read_class_names(to_path("class_names", value))
    for folder, name in value.items():
        if not (isinstance(folder, str) and isinstance(name, str)):
            raise DataError(
                "folder names and classes as strings", f"{folder!r}: {name!r}", "pass {'folder name': 'model class'}"
            )
    return dict(value)


def labels_in_model(model: Sequence[str], data: Sequence[str], names: Mapping[str, str]) -> list[int]:
    """Returns, for each class of the data, the index of the model's class that it belongs to.

    Several classes of the data may belong to one class of the model; the model may have classes that the data lacks.
    `names` maps a class of the data to a class of the model, where these differ. Raises a ModelError if the model lacks
    a class of the data, or a class that `names` maps to.
    """
    place = {composed(name): label for label, name in enumerate(model)}
    names = {composed(folder): name for folder, name in names.items()}
    for folder, name in names.items():
        if composed(name) not in place:
            raise ModelError(f"one of the model's classes for '{folder}'", f"'{name}'", nearest(name, model))
    lacking = [name for name in data if composed(names.get(name, name)) not in place]
    if lacking:
        first, more = lacking[:5], ", …" if len(lacking) > 5 else ""
        raise ModelError(
            "photos of classes that the model knows",
            ", ".join(f"'{name}'" for name in first) + more,
            f"{nearest(lacking[0], model, count=3)}; write a TOML file with one line for each such folder, as "
            f'"{lacking[0]}" = "model class", and pass it as --map, or move the folder out of the data',
        )
    return [place[composed(names.get(name, name))] for name in data]


def _unused_names(data: Sequence[str], names: Mapping[str, str]) -> list[str]:
    present = {composed(name) for name in data}
    unused = [folder for folder in names if composed(folder) not in present]
    if not unused:
        return []
    first, more = unused[:3], ", …" if len(unused) > 3 else ""
    return [f"not used: --map has lines for folders that do not exist: {', '.join(map(repr, first))}{more}"]


@dataclass(frozen=True)
class ChosenPhotos:
    """The photos that a model is evaluated on."""

    root: Path  # the data folder
    samples: tuple[Sample, ...]  # the readable photos of the split; labels are indices into the model's classes
    skipped: tuple[str, ...]  # one line for each unreadable photo of the split
    # The split of `samples`; "all" if "test" was wanted, but the folder has no split and only new photos.
    split: SplitChoice = "test"
    # Sentences about input that was not used: photos without a label or a split, rows of a label file without a photo,
    # and lines of `class_names` without a folder.
    left_out: tuple[str, ...] = ()
    non_photo_files: tuple[str, ...] = ()  # files in the folder that are not photos
    fingerprint: str = ""  # sha256 over the classes of the folder, and over paths, labels and contents of `samples`
    # How many of `samples` the model is known to have learnt from; None if that is not known, or if they are the
    # training photos. The second number is for the model `against`.
    learnt: int | None = None
    against_learnt: int | None = None


class ModelOrigin(NamedTuple):
    """What is known about the photos that a model was trained on."""

    manifest: ModelManifest
    own_split: Path | None = None  # `splits.json` of the run that trained it
    learnt: Path | None = None  # file with fingerprints of its training photos (see `data.likeness`)


class PhotoChoice(TypedDict, total=False):
    """The keyword arguments of `choose_photos` that select photos."""

    layout: Layout
    split: SplitChoice
    split_file: Path | None
    own_split: Path | None
    learnt: Path | None
    class_names: Mapping[str, str] | None
    against: ModelOrigin | None


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
    against: ModelOrigin | None = None,
    progress: ProgressCallback = silent,
) -> ChosenPhotos:
    """Finds the photos of one split of a folder, to evaluate a model on them.

    The split comes from `split_file` if one is passed; otherwise from `own_split` if the model was trained on this
    data; otherwise from train/val/test folders. A warning is logged if the model was trained on some of the photos,
    unless `split` is "train".

    Args:
        data: folder of class folders, or of train/val/test folders that hold class folders.
        split: the split to choose. In a folder without splits, "test" chooses all photos if `learnt` shows that the
            model was trained on none of them.
        split_file: file made by `data split`, or a run's `splits.json`.
        own_split: `splits.json` of the run that trained the model; None if unknown.
        learnt: file with fingerprints of the model's training photos (see `data.likeness`).
        class_names: folder name -> class of the model, for folders with other names. With a mapping, even an empty
            one, the data may lack some of the model's classes; with None it must have exactly these classes.
        against: an older model that is compared on the same photos; a warning is logged if it has learnt from them.

    Raises:
        DataError: the folder or the split cannot be used, or the data has no split and `split` is not "all".
        ModelError: the data has classes that the model lacks, or `class_names` is None and the classes differ.
    """
    given = read_split(split_file) if split_file is not None else None
    begin(progress, "reading photos")
    folder = read_layout(data, layout, min_classes=1)
    if class_names is None:
        require_same_classes(manifest.classes, folder.classes)
    labels = labels_in_model(manifest.classes, folder.classes, class_names or {})
    samples, unreadable, inspection = read_samples(folder, progress=progress)
    whole = fingerprint(folder.classes, samples, inspection)
    training = _Training(ModelOrigin(manifest, own_split, learnt), whole)
    named = given or (training.own if training.on_this_data else None)
    parts = match_split(named, folder.samples) if named is not None else folder.given_split
    if parts is None and split != "all":
        met = training.count(samples, inspection) if training.known is not None else 0
        if split != "test" or training.known is None or met:
            of_them = f"where the model has learnt from {met} of {len(samples)} photos" if met else ""
            raise _no_split(data, split, training.on_this_data, of_them, scored=split == "test")
        split = "all"

    def chosen(path: str) -> bool:
        if split == "all":  # a run's own split lacks the photos whose labels were not used
            return parts is None or given is None or path in parts
        return parts is None or parts.get(path) == split

    wanted = tuple(sample for sample in samples if chosen(sample.path))
    learnt_from, against_learnt_from = None, None
    if split != "train":
        readable_parts = {sample.path: parts[sample.path] for sample in samples if parts and sample.path in parts}
        learnt_from = training.count(wanted, inspection)
        training.warn("the model", learnt_from, len(wanted), readable_parts, split)
        if against is not None:
            others = _Training(against, whole)
            against_learnt_from = others.count(wanted, inspection)
            others.warn("the old model", against_learnt_from, len(wanted), readable_parts, split)
    return ChosenPhotos(
        data,
        tuple(replace(sample, label=labels[sample.label]) for sample in wanted),
        tuple(f"{path}: {reason}" for path, reason in unreadable if chosen(path)),
        split,
        (
            *left_out(folder),
            *(unnamed_photos(samples, parts or {}) if given is not None else ()),
            *_unused_names(folder.classes, class_names or {}),
        ),
        folder.non_photo_files,
        fingerprint(folder.classes, wanted, inspection),
        learnt_from,
        against_learnt_from,
    )


class _Training:
    """What is known about the training photos of a model, in relation to a folder."""

    def __init__(self, origin: ModelOrigin, data_fingerprint: str) -> None:
        self.manifest, own_split, learnt = origin
        self.own = read_split(own_split) if own_split is not None and own_split.exists() else None
        self.on_this_data = self.manifest.lineage.get("data_fingerprint") == data_fingerprint
        # Not read if the names in `own` are exact and all that the model has learnt from.
        by_name = self.own is not None and self.on_this_data and not self.manifest.lineage.get("unlabelled")
        self.known = read_learnt(learnt, self.manifest) if learnt is not None and not by_name else None

    def count(self, photos: Sequence[Sample], inspection: Inspection) -> int | None:
        """Counts the photos that are known to be from the training; None if nothing is known."""
        if self.known is not None:
            return count_learnt(self.known, turned_phashes_of(photos, inspection).values())
        return len(set(self.own.train) & {sample.path for sample in photos}) if self.own is not None else None

    def warn(self, whose: str, met: int | None, photos: int, parts: Mapping[str, str], split: SplitChoice) -> None:
        """Logs a warning if the model has learnt, or may have learnt, from the photos.

        `met` is the result of `count`, and `parts` is the split by path of all readable photos.
        """
        if met and self.known is not None:
            logger.warning(
                "%s has learnt from at least %d of these %d photos (or their flipped, rotated or resized copies): "
                "the result will be too high; leave them out, or pass its run's splits.json as --splits",
                whose,
                met,
                photos,
            )
        elif met:
            logger.warning(
                "%d of these %d photos %s %s was trained on: the result will be too high",
                met,
                photos,
                "are among those that" if self.on_this_data else "have the names of photos that",
                whose,
            )
        elif met is None and self.on_this_data:
            _warn_of_what_may_be_learnt(self.manifest, whose, parts, split)


def _no_split(data: Path, split: str, trained_here: bool, learnt: str, *, scored: bool) -> DataError:
    """Makes the error for data without the split; `learnt` describes known training photos in it, or is ""."""
    if trained_here:
        got = "which the model was trained on, without the run's splits.json"
    else:
        got = learnt or "which is not the data that the model was trained on and has no train/val/test folders"
    leave_out = "leave these out, " if learnt and not trained_here else ""
    remedy = ", or --split all for every photo" if scored else ", or the folder that the run learnt from"
    if scored and not learnt and not trained_here:
        remedy += " (an exported model needs its .learnt file beside it, to know what it has learnt from)"
    return DataError(f"a '{split}' split", f"'{data}', {got}", f"{leave_out}pass --splits FILE{remedy}")


def _warn_of_what_may_be_learnt(
    manifest: ModelManifest, whose: str, parts: Mapping[str, str], split: SplitChoice
) -> None:
    """Warns if an exported model may have learnt from photos in `parts`, by the digests of splits in its manifest."""
    if split == "all":
        logger.warning(
            "%s was trained on photos of this folder: the result will be too high; pass its run's splits.json "
            "as --splits and --split test",
            whose,
        )
        return
    known = manifest.lineage.get("split_sha256")
    if not isinstance(known, dict):
        return
    given = Split(*(tuple(path for path, part in parts.items() if part == name) for name in SPLIT_NAMES))
    if digests_of(given)[split] != known.get(split):
        logger.warning(
            "%s was trained on photos of this folder with another split, so these photos may be among its "
            "training photos; pass its run's splits.json as --splits",
            whose,
        )

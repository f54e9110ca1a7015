"""The photos of a folder that a model is evaluated on: their split, and their labels as the model's classes.

A farm's folders may have other names than the model's classes, and fewer of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict

from agridistill.arguments import described, to_path
from agridistill.data.folder import SPLIT_NAMES, Sample, left_out
from agridistill.data.inspection import InspectionStore, fingerprint, inspect_photos, turned_phashes_of, usable_samples
from agridistill.data.labels import FOLDERS, Layout, read_layout
from agridistill.data.leaf_ids import assign_leaf_ids
from agridistill.data.likeness import read_learnt
from agridistill.data.split import Split, digests_of, match_split, read_split, unnamed_photos
from agridistill.errors import DataError, ModelError, nearest
from agridistill.manifest import ModelManifest, composed, require_same_classes
from agridistill.preprocess import MAX_PIXELS
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.settings_file import read_toml

SplitChoice = Literal["train", "val", "test", "all"]

logger = logging.getLogger(__name__)


def read_class_names(file: Path) -> dict[str, str]:
    """Reads a TOML file with a line for each folder: "late blight" = "Tomato___Late_blight".

    Raises:
        DataError: not there, not TOML, or with a value that is no text.
    """
    remedy = 'write a line for each folder: "folder name" = "model class"'
    document = read_toml(file, "a file of class names", damaged=remedy, error_type=DataError)
    for folder, name in document.items():
        if not isinstance(name, str):
            remedy = 'write "folder name" = "model class", with quotes around both'
            raise DataError(f"a class for '{folder}' in '{file}'", described(name), remedy)
    return document


def to_class_names(value: object) -> dict[str, str]:
    """Names as the Python API takes them: None, a mapping, or the path of such a file.

    Raises:
        ConfigError: another type.
        DataError: as `read_class_names`, or a mapping of something else than texts.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return read_class_names(to_path("class_names", value))
    for folder, name in value.items():
        if not (isinstance(folder, str) and isinstance(name, str)):
            raise DataError(
                "folder names and classes as text", f"{folder!r}: {name!r}", "pass {'folder name': 'model class'}"
            )
    return dict(value)


def labels_in_model(model: Sequence[str], data: Sequence[str], names: Mapping[str, str]) -> list[int]:
    """The model's label for each class of the data; several may have one, and the model may know more.

    Args:
        model: the model's classes, in the order of its logits.
        data: the data's classes, in the order of its labels.
        names: the model's class for a class of the data, where the two have different names.

    Raises:
        ModelError: names each class of the data that the model lacks, or a name that it has none of.
    """
    place = {composed(name): label for label, name in enumerate(model)}
    names = {composed(folder): name for folder, name in names.items()}
    for folder, name in names.items():
        if composed(name) not in place:
            raise ModelError(f"a class of the model for '{folder}'", f"'{name}'", nearest(name, model))
    lacking = [name for name in data if composed(names.get(name, name)) not in place]
    if lacking:
        first, more = lacking[:5], ", …" if len(lacking) > 5 else ""
        raise ModelError(
            "photos of classes that the model knows",
            ", ".join(f"'{name}'" for name in first) + more,
            f"{nearest(lacking[0], model, count=3)}; write its class into a file for --map, one line a folder, as "
            f'"{lacking[0]}" = "model class", or take the folder out',
        )
    return [place[composed(names.get(name, name))] for name in data]


def _unused_names(data: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """One sentence on the renamed folders that the data does not hold; none where it holds all."""
    present = {composed(name) for name in data}
    unused = [folder for folder in names if composed(folder) not in present]
    if not unused:
        return []
    first, more = unused[:3], ", …" if len(unused) > 3 else ""
    return [f"not used: --map names folders that are not there: {', '.join(map(repr, first))}{more}"]


@dataclass(frozen=True)
class ChosenPhotos:
    """Photos to evaluate on.

    Attributes:
        root: the data folder.
        classes: the model's class names; `Sample.label` is an index into them.
        samples: the readable photos of the split.
        skipped: one line for each unreadable photo of the split.
        split: that they are; "all" where the test split was asked for in a folder of new photos alone.
        left_out: photos without a label or a split, rows of a label file without a photo and renamed classes without
            a folder, a sentence each.
        non_photo_files: in the folder.
    """

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    skipped: tuple[str, ...]
    split: SplitChoice = "test"
    left_out: tuple[str, ...] = ()
    non_photo_files: tuple[str, ...] = ()


class PhotoChoice(TypedDict, total=False):
    """Which photos of a folder, as `choose_photos` takes them."""

    layout: Layout
    split: SplitChoice
    split_file: Path | None
    own_split: Path | None
    learnt: Path | None
    class_names: Mapping[str, str] | None


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

    Args:
        manifest: of the model.
        data: folder of class folders, or of train/val/test folders of them.
        layout: how the labels are found.
        split: which photos; in a folder without splits, none of whose photos the model has learnt from, "test" takes
            all of them.
        split_file: made by `data split`, or a run's `splits.json`.
        own_split: the one that the model was trained with.
        learnt: file that names the photos which the model has learnt from (`data.likeness`), which are logged.
        class_names: the model's class for a folder of another name; with a mapping, an empty one too, the data may
            lack some of the model's classes.
        progress: called with (done, total) while the photos are checked.

    The split comes from `split_file`; on the data that the model was trained on from its own split, so that it is not
    tested on photos that it learnt from; else from train/val/test folders. Photos that it did learn from are logged:
    by the run's own split, or in any folder by `learnt`, the file that names them.

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
    named = given or (own if trained_here else None)
    parts = match_split(named, folder.samples) if named is not None else folder.given_split
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
    if split != "train":
        if known is not None:
            _warn_of_known(known.count(turned_phashes_of(wanted, inspection).values()), len(wanted))
        elif own is not None:
            _warn_of_learnt(len(set(own.train) & {sample.path for sample in wanted}), len(wanted), trained_here)
        elif trained_here:
            readable_parts = {sample.path: parts[sample.path] for sample in samples if parts and sample.path in parts}
            _warn_of_what_may_be_learnt(manifest, readable_parts, split)
    return ChosenPhotos(
        data,
        manifest.classes,
        tuple(replace(sample, label=labels[sample.label]) for sample in wanted),
        tuple(f"{path}: {reason}" for path, reason in unreadable if chosen(path)),
        split,
        (
            *left_out(folder),
            *(unnamed_photos(samples, parts or {}) if given is not None else ()),
            *_unused_names(folder.classes, class_names or {}),
        ),
        folder.non_photo_files,
    )


def _no_split(data: Path, split: str, trained_here: bool, learnt: str, *, scored: bool) -> DataError:
    """Why there is no such split; `learnt` says how many of the photos the model is known to have learnt from."""
    if trained_here:
        got = "which the model was trained on, without the run's splits.json"
    else:
        got = learnt or "which is not as the model was trained on and has no train/val/test folders"
    leave_out = "leave these out, " if learnt and not trained_here else ""
    remedy = ", or --split all for every photo" if scored else ", or the folder that the run learnt from"
    return DataError(f"a '{split}' split", f"'{data}', {got}", f"{leave_out}pass --splits FILE{remedy}")


def _warn_of_what_may_be_learnt(manifest: ModelManifest, parts: Mapping[str, str], split: SplitChoice) -> None:
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


def _warn_of_known(met: int, photos: int) -> None:
    if met:
        logger.warning(
            "the model has learnt from at least %d of these %d photos (the same pictures, also under other names, "
            "flipped, turned or in other sizes): the result will be too high; leave them out, or pass its run's "
            "splits.json as --splits",
            met,
            photos,
        )


def _warn_of_learnt(learnt: int, photos: int, trained_here: bool) -> None:
    if learnt:
        logger.warning(
            "%d of these %d photos %s the model was trained on: the result will be too high",
            learnt,
            photos,
            "are among those that" if trained_here else "have the names of photos that",
        )

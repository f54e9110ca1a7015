"""Lists the photos in class folders as labelled samples; only names are read here, not the photos themselves."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agridistill.data.structure import (
    ClassFolder,
    alike_names,
    labels_remedy,
    require_class_folders,
    require_no_splits_inside,
    split_folders,
    split_named,
    wrapped_in,
)
from agridistill.errors import DataError
from agridistill.manifest import composed
from agridistill.photo_files import (
    counts_by_suffix,
    files_below,
    how_to_read,
    is_explanation,
    is_folder,
    is_photo,
    subfolders,
)

SPLIT_NAMES = ("train", "val", "test")
# Largest share of photos with copies under other labels. A few wrong copies do no harm. If one photo in twenty has two
# labels, a folder was copied into another one, or photos show several diseases, which a classifier with one label per
# photo cannot learn.
MAX_CONFLICT_SHARE = 0.05
UNLABELLED = -1
"""The label of a photo without a label, which is in no data folder; see `data.unlabelled`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A photo of a data folder, with its label and the id of the leaf that it shows."""

    path: str  # relative to the data folder, with forward slashes
    label: int  # index into the class list, or `UNLABELLED`
    leaf_id: str  # the same for all photos of one leaf; the path of the photo if its leaf is unknown


@dataclass(frozen=True)
class PhotoFolder:
    """The classes, labelled photos and unused files of a data folder; all paths are relative to `root`."""

    root: Path
    classes: tuple[str, ...]  # sorted names in Unicode's normal form C; a label is an index into this tuple
    samples: tuple[Sample, ...]  # all files with a photo's suffix, sorted by path
    given_split: Mapping[str, str] | None = None  # path -> split, from train/val/test folders or a label file
    non_photo_files: tuple[str, ...] = ()  # files that are not photos, or pictures of `predict --explain`; never used
    without_photos: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Class folder without a photo -> the files in it; such a folder is not in `classes`."""
    unlabelled: tuple[str, ...] = ()  # photos in no class folder, or without a row in a label file; never used
    problems: tuple[str, ...] = ()  # one text for each problem of a label file
    notes: tuple[str, ...] = ()  # how labels were found, if that is not obvious; one text for each fact
    alike_names: tuple[tuple[str, ...], ...] = ()  # classes that differ only in capitals, spaces or normal form
    in_split_folders: bool = False  # whether the first folder of each path is that of its split


def scan(root: Path, *, nested: bool | None = None, min_classes: int = 2) -> PhotoFolder:
    """Lists the photos in a folder of class folders, or in train/val/test folders that hold class folders.

    `nested` tells which folders are classes; see `labels.Layout`.

    Raises:
        DataError: the folder does not exist or has too few classes; val or test has a class that train lacks; a split
            has two folders, or is next to other folders; or the names of the folders are probably not classes.
    """
    require_folder(root)
    folders = subfolders(root)
    splits = _split_folders(root, folders)
    if splits is not None:
        return _scan_given_split(root, splits, nested, min_classes)
    scanned = _scan_classes(root, [(name, composed(name)) for name in folders], nested, min_classes)
    alike = {group: None for names in (folders, scanned.classes if nested else ()) for group in alike_names(names)}
    return replace(scanned, alike_names=tuple(alike))


def require_folder(root: Path, expected: str = "a folder of class folders") -> None:
    """Checks that a data folder exists and can be read; otherwise raises a DataError that names what is expected."""
    if not root.exists():
        raise DataError(expected, f"'{root}', which does not exist", "check the path")
    if not root.is_dir():
        raise DataError(
            "a folder of class folders", f"the file '{root}'", "pass the folder that holds the class folders"
        )
    try:
        os.scandir(root).close()
    except PermissionError:
        raise DataError("a readable folder", f"'{root}' (permission denied)", "change its permissions") from None


def require_outside(path: Path, root: Path) -> None:
    """Raises a DataError if results would be written into the data folder, where their folder would become a class.

    A hidden folder or file (such as `.cache`) is allowed there, because `scan` skips it.
    """
    full, photos = path.resolve(), root.resolve()
    if full.is_relative_to(photos) and not any(part.startswith(".") for part in full.relative_to(photos).parts):
        expected = "--out outside the data folder, because each folder in it is a class"
        raise DataError(expected, f"'{path}' in '{root}'", "choose another --out")


def _split_folders(root: Path, folders: Sequence[str]) -> dict[str, str] | None:
    """Returns split -> folder; None if the folders are classes, one of which may be named like a split.

    A mixture of both is refused: otherwise "train" and "test" would become classes.
    """
    found = split_folders(folders)
    train, named = found.get("train", []), [name for names in found.values() for name in names]
    others = [name for name in folders if name not in named]
    if not found or (others and len(found) == 1 and len(named) == 1):
        return None
    if train and all(not subfolders(root / name) and _loose_photos(root, name) for name in train):
        got = f"photos without class folders in '{root / train[0]}'"
        raise DataError("class folders in the train folder", got, labels_remedy(root))
    for split, names in found.items():
        if len(names) > 1:
            raise DataError(
                f"one folder of {split} photos", f"'{names[0]}' and '{names[1]}' in '{root}'", "merge the two folders"
            )
    splits = {split: found[split][0] for split in SPLIT_NAMES if split in found}
    if not train:
        if others or len(splits) == 1:
            return None
        remedy = f"add it, or pass a folder that holds class folders, such as '{root / splits['test']}'"
        raise DataError("a train folder next to the val and test folders", f"none in '{root}'", remedy)
    if others:
        beside = " and ".join(f"'{name}'" for name in sorted(named))
        expected = "only class folders, or only train, val and test folders that hold them"
        got = f"'{others[0]}' next to {beside} in '{root}'"
        raise DataError(expected, got, f"move '{others[0]}' away, or pass the folder that holds the class folders")
    return splits


def _scan_given_split(root: Path, folder_of: Mapping[str, str], nested: bool | None, min_classes: int) -> PhotoFolder:
    names_of = {split: subfolders(root / folder) for split, folder in folder_of.items()}
    for split, names in names_of.items():
        unknown = sorted(set(map(composed, names)) - set(map(composed, names_of["train"])))
        if unknown:
            raise DataError(
                "the same classes in train, val and test",
                f"'{unknown[0]}' in {folder_of[split]} but not in train",
                "add training photos of this class, or move its folder away"
                if split_named(unknown[0]) is None
                else f"move the folders in '{folder_of[split]}/{unknown[0]}' one level up, and do the same in train",
            )
    pairs = [(f"{folder}/{name}", composed(name)) for split, folder in folder_of.items() for name in names_of[split]]
    split_of = {folder: split for split, folder in folder_of.items()}
    scanned = _scan_classes(root, pairs, nested, min_classes, split_of=split_of)
    loose = [path for folder in folder_of.values() for path in _loose_photos(root, folder)]
    alike = {group: None for names in names_of.values() for group in alike_names(names)}
    unlabelled = tuple(sorted((*scanned.unlabelled, *loose)))
    return replace(scanned, unlabelled=unlabelled, alike_names=tuple(alike))


def _scan_classes(
    root: Path,
    folders: Sequence[tuple[str, str]],
    nested: bool | None,
    min_classes: int,
    split_of: Mapping[str, str] | None = None,
) -> PhotoFolder:
    """Lists the photos in `folders`, given as (path relative to the root, class); `split_of` maps folder to split."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    others: defaultdict[str, list[str]] = defaultdict(list)
    photos_in: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for folder, name in folders:
        photos, other_files = files_in(root, folder)
        photos_in[name].update(path[len(folder) + 1 :].rpartition("/")[0] for path in photos)
        for paths, of_class in ((photos, found), (other_files, others)):
            for path in paths:
                inner = composed(path[len(folder) + 1 :].rpartition("/")[0]) if nested else ""
                of_class[f"{name}/{inner}" if inner else name].append(path)
    classes = tuple(sorted(name for name, photos in found.items() if photos))
    held = [ClassFolder(name, photos_in[name]) for name in sorted(photos_in) if photos_in[name]]
    # With nested classes, a folder that only contains class folders is not a class.
    above = {name[:end] for name in classes for end in range(len(name) + 1) if name[end : end + 1] in ("", "/")}
    without_photos = {name: tuple(sorted(others.get(name, ()))) for name in sorted({*photos_in, *others} - above)}
    loose = _loose_photos(root, "")
    if len(classes) < min_classes:
        raise _too_few_classes(root, held, without_photos, loose=bool(loose))
    if nested:
        require_no_splits_inside(root, classes)
    elif nested is None:
        require_class_folders(root, held, in_splits=split_of is not None)
    samples = [Sample(path, label, path) for label, name in enumerate(classes) for path in found[name]]
    samples.sort(key=lambda sample: sample.path)
    return PhotoFolder(
        root,
        classes,
        tuple(samples),
        {sample.path: split_of[sample.path.split("/", 1)[0]] for sample in samples} if split_of else None,
        tuple(sorted(path for paths in others.values() for path in paths)),
        without_photos,
        unlabelled=tuple(loose),
        notes=tuple(
            f"all photos in the {len(one.first_level)} folders of '{one.name}' get the class '{one.name}'"
            for one in held
            if nested is None and one.loses_a_level
        ),
        in_split_folders=bool(split_of),
    )


def _too_few_classes(
    root: Path, held: Sequence[ClassFolder], without_photos: Mapping[str, Sequence[str]], *, loose: bool
) -> DataError:
    got = f"only '{held[0].name}'" if held else "no photos in class folders"
    besides = "".join(f", {described_without_photos(*one)}" for one in list(without_photos.items())[:1])
    remedy = "put the photos of each class into a separate folder"
    if held and held[0].loses_a_level:
        inner = root / held[0].name / wrapped_in(held[0].photos_in)
        remedy = f"pass the folder that holds the class folders, '{inner}'"
    elif held or loose:
        remedy = f"{remedy}, or {labels_remedy(root)}"
    remedy = how_to_read((path for paths in without_photos.values() for path in paths), otherwise=remedy)
    return DataError("at least two class folders with photos", f"{got} in '{root}'{besides}", remedy)


def described_without_photos(name: str, files: Sequence[str]) -> str:
    """Returns a phrase for messages about a class folder that has no photos, with the types of the files in it.

    Example:
        >>> described_without_photos("rust", ["rust/1.heic", "rust/2.heic"])
        "'rust' without photos (2 .heic)"
    """
    return f"'{name}' without photos ({counts_by_suffix(files) if files else 'an empty folder'})"


def left_out(folder: PhotoFolder) -> list[str]:
    """Returns sentences about what is not used: problems of the label file, and photos that have no label."""
    return [*folder.problems, *photos_left_out(folder.unlabelled, "without a label")]


def photos_left_out(paths: Sequence[str], why: str) -> list[str]:
    """Returns a list with one sentence about photos that are not used; empty if there are none.

    Example:
        >>> photos_left_out(["rust/1.jpg", "rust/2.jpg"], "without a label")
        ["left out: 2 photos without a label, the first 'rust/1.jpg'"]
    """
    count = f"{len(paths):,} photo{'' if len(paths) == 1 else 's'}"
    return [f"left out: {count} {why}, the first '{paths[0]}'"] if paths else []


def _loose_photos(root: Path, folder: str) -> list[str]:
    start = f"{folder}/" if folder else ""
    with os.scandir(root / folder) as entries:
        return sorted(start + entry.name for entry in entries if is_photo(entry.name) and not is_folder(entry))


def files_in(root: Path, folder: str = "") -> tuple[list[str], list[str]]:
    """Lists the photos and the other files in a folder and its subfolders, with paths relative to `root`.

    `folder` is relative to `root` as well; "" means `root` itself. Raises a DataError if a folder cannot be listed.
    """
    start = f"{folder}/" if folder else ""
    photos: list[str] = []
    others: list[str] = []

    def refuse(error: OSError) -> None:
        gone = isinstance(error, FileNotFoundError)
        remedy = "correct the link or remove it" if gone else "change its permissions"
        raise DataError("readable class folders", f"'{error.filename}' ({error.strerror})", remedy)

    for inside, names in files_below(root / folder, refuse):
        for name in names:
            # Strings are used because making a Path for each file would take longer than everything else here.
            path = f"{start}{inside}{name}"
            (photos if is_photo(name) and not is_explanation(f"{root}/{path}") else others).append(path)
    return photos, others

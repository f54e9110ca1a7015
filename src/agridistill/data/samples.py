"""Class folders -> list of samples. Only names are read here, never pixels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from agridistill.errors import DataError
from agridistill.heatmaps import is_explanation
from agridistill.preprocess import PHOTO_SUFFIXES

SPLIT_NAMES = ("train", "val", "test")
_SPLIT_ALIASES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SHOWN_SUFFIXES = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled photo.

    Attributes:
        path: relative to the data folder, with forward slashes.
        label: index into the class list.
        leaf_id: the same for all photos of one leaf; the photo's own path where nothing is known.
    """

    path: str
    label: int
    leaf_id: str


@dataclass(frozen=True)
class PhotoFolder:
    """A scanned data folder.

    Attributes:
        root: the data folder.
        classes: class names, sorted; a label is an index into them.
        samples: all files with a photo's suffix, sorted by path.
        given_split: for folders of train/val/test: the split of each sample's path; None elsewhere.
        strays: other files among the photos (relative paths), pictures of `predict --explain` too; they are never used.
        without_photos: class folders in which no file has a photo's suffix -> the files that they do hold; such a
            folder is none of the classes.
    """

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    given_split: Mapping[str, str] | None = None
    strays: tuple[str, ...] = field(default=())
    without_photos: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def scan(root: Path) -> PhotoFolder:
    """Lists the photos of a folder of class folders, or of train/val/test folders of class folders.

    Raises:
        DataError: not a folder, empty, fewer than two classes, classes that differ between the splits, folders of
            something else beside those of splits, or two folders of one split.
    """
    if not root.exists():
        raise DataError("a folder of class folders", f"'{root}', which does not exist", "check the path")
    if not root.is_dir():
        raise DataError(
            "a folder of class folders", f"the file '{root}'", "name the folder that holds the class folders"
        )
    try:
        folders = _subfolders(root)
    except PermissionError:
        raise DataError("a readable folder", f"'{root}' (permission denied)", "change its permissions") from None
    split_folders = _split_folders(root, folders)
    if split_folders is not None:
        return _scan_given_split(root, split_folders)
    return _scan_classes(root, [(name, name) for name in folders])


def require_outside(path: Path, root: Path, option: str = "--out") -> None:
    """Checks that results do not go into the photo folder, where their folder would become a class.

    Args:
        path: that will be written.
        root: the photo folder.
        option: that named the path, for the error.

    Raises:
        DataError: it lies in the photo folder, not hidden by a dot.
    """
    whole, photos = path.resolve(), root.resolve()
    if not whole.is_relative_to(photos):
        return
    inside = whole.relative_to(photos).parts
    if not any(part.startswith(".") for part in inside):
        raise DataError(
            f"{option} outside the photo folder, in which each folder is a class",
            f"'{path}' in '{root}'",
            f"choose another {option}",
        )


def _split_folders(root: Path, folders: Sequence[str]) -> dict[str, str] | None:
    """The folder of each split; None where the folders are classes, of which one may be called like a split.

    What is neither the one nor the other is refused: read as classes it would make a model of "train" and "test".
    """
    splits: dict[str, str] = {}
    for name in folders:
        split = _SPLIT_ALIASES.get(name.lower())
        if split is not None and split in splits:
            raise DataError(
                f"one folder of {split} photos", f"'{splits[split]}' and '{name}' in '{root}'", "merge them"
            )
        if split is not None:
            splits[split] = name
    others = [name for name in folders if name not in splits.values()]
    if "train" not in splits and len(splits) == 2 and not others:
        raise DataError(
            "a folder of train photos beside val and test",
            f"'{root}' without one",
            f"add it, or name the folder that holds the class folders, such as '{root / splits['test']}'",
        )
    if "train" not in splits or (others and len(splits) == 1):
        return None
    if others:
        named = " and ".join(f"'{name}'" for name in splits.values())
        raise DataError(
            "class folders, or only train, val and test folders of them",
            f"'{others[0]}' beside {named} in '{root}'",
            "move it away, or name the folder that holds the class folders",
        )
    return splits


def _scan_given_split(root: Path, split_folders: Mapping[str, str]) -> PhotoFolder:
    per_split = {split: _subfolders(root / folder) for split, folder in split_folders.items()}
    for split, names in per_split.items():
        unknown = sorted(set(names) - set(per_split["train"]))
        if unknown:
            raise DataError(
                "the same classes in train, val and test",
                f"'{unknown[0]}' in {split_folders[split]} but not in train",
                "correct the folders",
            )
    pairs = [(f"{folder}/{name}", name) for split, folder in split_folders.items() for name in per_split[split]]
    scanned = _scan_classes(root, pairs)
    given = {sample.path: _SPLIT_ALIASES[sample.path.split("/", 1)[0].lower()] for sample in scanned.samples}
    return replace(scanned, given_split=given)


def _scan_classes(root: Path, folders: list[tuple[str, str]]) -> PhotoFolder:
    """`folders` are pairs of a folder (relative to the root) and the class whose photos it holds."""
    found: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for folder, class_name in folders:
        photos, strays = _files(root, folder)
        found.setdefault(class_name, []).extend(photos)
        others.setdefault(class_name, []).extend(strays)
    classes = tuple(sorted(name for name, photos in found.items() if photos))
    without_photos = {name: tuple(sorted(others[name])) for name in sorted(found) if not found[name]}
    if len(classes) < 2:
        got = f"only '{classes[0]}'" if classes else "no photos in class folders"
        besides = "".join(f", {described_without_photos(*one)}" for one in list(without_photos.items())[:1])
        raise DataError(
            "at least two class folders with photos",
            f"{got} in '{root}'{besides}",
            "put the photos of each class in a folder of its own",
        )
    samples = sorted(
        (Sample(path, label, path) for label, name in enumerate(classes) for path in found[name]),
        key=lambda sample: sample.path,
    )
    strays = sorted(path for paths in others.values() for path in paths)
    return PhotoFolder(root, classes, tuple(samples), None, tuple(strays), without_photos)


def described_without_photos(name: str, files: Sequence[str]) -> str:
    """A class folder without photos, and what it holds in their place.

    Example:
        >>> described_without_photos("rust", ["rust/1.heic", "rust/2.heic"])
        "'rust' without photos (2 files: .heic)"
    """
    held = f"{len(files):,} file{'' if len(files) == 1 else 's'}: {suffixes(files)}" if files else "an empty folder"
    return f"'{name}' without photos ({held})"


def suffixes(paths: Iterable[str]) -> str:
    """The suffixes of files, each once, the most frequent first.

    Example:
        >>> suffixes(["a/1.heic", "a/2.HEIC", "b/notes"])
        '.heic, no suffix'
    """
    counts = Counter(PurePosixPath(path).suffix.lower() or "no suffix" for path in paths)
    most = [suffix for suffix, _ in counts.most_common(_SHOWN_SUFFIXES)]
    return ", ".join(most) + (", …" if len(counts) > len(most) else "")


def _subfolders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _files(root: Path, folder: str) -> tuple[list[str], list[str]]:
    """Photos and other files anywhere below a class folder, as paths relative to the root."""
    photos: list[str] = []
    others: list[str] = []

    def refuse(error: OSError) -> None:
        raise DataError("readable class folders", f"'{error.filename}' ({error.strerror})", "change its permissions")

    for directory, subfolders, names in os.walk(root / folder, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        # Plain strings: a Path for each file takes longer than everything else here.
        relative = Path(directory).relative_to(root).as_posix()
        for name in names:
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - Path is slow
            is_photo = suffix in PHOTO_SUFFIXES and not is_explanation(f"{directory}/{name}")
            (photos if is_photo else others).append(f"{relative}/{name}")
    return photos, others

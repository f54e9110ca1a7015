"""Decides whether folders are splits, classes or levels above classes, by their names and the places of photos."""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agridistill.errors import DataError
from agridistill.manifest import composed

_NOUN = "(?:(?:data)?set|data|split|images?|imgs?|photos?|pictures?|pics|samples?)"
_SPLIT_WORDS = {
    "train": re.compile(rf"{_NOUN}?train(?:ing)?{_NOUN}?\d*"),
    "val": re.compile(rf"{_NOUN}?(?:val(?:id(?:ation|ate)?)?|dev(?:elopment)?){_NOUN}?\d*"),
    "test": re.compile(rf"{_NOUN}?(?:test(?:ing)?|h[eo]ldout){_NOUN}?\d*"),
    "eval": re.compile(rf"{_NOUN}?eval(?:uation)?{_NOUN}?\d*"),
}
# Words for the kind of the files in a folder, not for what the photos show.
_KIND = re.compile(
    rf"{_NOUN}|jpe?gs?|pngs?|jpegimages|masks?|annotations?|labels?|segmentations?|segmentation(?:class|object)"
    r"|gt|groundtruth|rgb|parts?|batch(?:es)?"
)
# Folder names that programs make: of a camera ("100CANON"), a date ("2024-05-01"), a part of a Google Drive download.
_BY_MACHINE = re.compile(
    r"[1-9]\d\d[A-Z_][A-Z_\d]{4}|(?:19|20)\d\d([-_. ]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])"
    r"|.+-\d{8}T\d{6}Z(?:-\d+)+"
)
# If at most this share of a class folder's photos is directly in it (such as a preview), its photos are in subfolders.
_MAX_OWN_SHARE = 0.1


def split_named(name: str) -> str | None:
    """Returns the split that a folder name means: "train", "val", "test" or "eval" (val or test); None for other names.

    Example:
        >>> [split_named(name) for name in ("Training", "test_images", "dev-set", "evaluation", "trainers", "a test")]
        ['train', 'test', 'val', 'eval', None, None]
    """
    split, rest = _split_and_rest(name)
    return split if not rest else None


def resolved_evaluation(splits: Iterable[str]) -> str:
    """Decides what "eval" means next to other splits: "val" if these have a test but no val, otherwise "test"."""
    known = set(splits)
    return "val" if "test" in known and "val" not in known else "test"


def split_folders(names: Iterable[str]) -> dict[str, list[str]]:
    """Finds the names of the train, val and test folders. Other words in a name must be the same for all splits.

    Example:
        >>> split_folders(["train_set", "Val-Set", "rust"])
        {'train': ['train_set'], 'val': ['Val-Set']}
        >>> split_folders(["tomato_train", "tomato_test"])
        {'train': ['tomato_train'], 'test': ['tomato_test']}
        >>> split_folders(["field test", "greenhouse"])
        {}
    """
    by_rest: dict[str, dict[str, list[str]]] = {}
    for name in names:
        split, rest = _split_and_rest(name)
        if split is not None:
            by_rest.setdefault(rest, {}).setdefault(split, []).append(name)
    # A name with other words, such as the class "field test", is a split only if another split has the same words.
    several = [found for found in by_rest.values() if len(found) > 1]
    found = by_rest.get("") or (several[0] if len(several) == 1 else {})
    evaluation = found.pop("eval", [])
    if evaluation:
        found.setdefault(resolved_evaluation(found), []).extend(evaluation)
    return found


def _split_and_rest(name: str) -> tuple[str | None, str]:
    """Returns the split that one word of a name means, and the other words except those such as "images"."""
    splits, rest = [], []
    for word in re.findall(r"[^\W_]+", composed(name).casefold()):
        split = next((split for split, pattern in _SPLIT_WORDS.items() if pattern.fullmatch(word)), None)
        if split is not None:
            splits.append(split)
        elif not re.fullmatch(_NOUN, word) and not word.isdigit():
            rest.append(word)
    return (splits[0], " ".join(rest)) if len(splits) == 1 else (None, "")


@dataclass(frozen=True)
class ClassFolder:
    """A class folder, with the number of photos in it and in each folder below it."""

    name: str
    photos_in: Mapping[str, int]  # folder below it ("" for itself) -> number of photos directly in that folder

    @property
    def is_hollow(self) -> bool:
        """Whether at least nine in ten of its photos are in folders below it."""
        return self.photos_in.get("", 0) <= _MAX_OWN_SHARE * sum(self.photos_in.values())

    @property
    def loses_a_level(self) -> bool:
        """Whether its photos are in several folders below it, which would be merged into one class."""
        return self.is_hollow and len([folder for folder in self.photos_in if folder]) > 1

    @property
    def first_level(self) -> set[str]:
        """Names of its direct subfolders that contain photos at any depth."""
        return {folder.split("/", 1)[0] for folder in self.photos_in if folder}


def require_class_folders(root: Path, classes: Sequence[ClassFolder], *, in_splits: bool) -> None:
    """Raises a DataError if a folder probably holds several classes, a split, masks or the like.

    The error names the folder or the option to pass instead. `in_splits` means that the folders are inside
    train/val/test folders.
    """
    _refuse_kinds(root, classes)
    _refuse_same_beside(root, classes)
    losing = [one for one in classes if one.loses_a_level]
    shared = Counter(name for one in losing for name in one.first_level)
    if losing and (all(one.is_hollow for one in classes) or any(count > 1 for count in shared.values())):
        raise _lost_level(root, losing, in_splits=in_splits)
    if not in_splits:
        _refuse_splits_among_classes(root, classes)


def _refuse_kinds(root: Path, classes: Sequence[ClassFolder]) -> None:
    """Refuses names that cannot be classes: `images` and `masks`, `images_1` and `images_2`, or `100CANON`."""
    by_machine = [one for one in classes if _BY_MACHINE.fullmatch(one.name)]
    words = [re.findall(r"[^\W\d_]+", one.name.casefold()) for one in classes]
    kinds = [[word for word in of_name if _KIND.fullmatch(word)] for of_name in words]
    all_kinds = all(of_name == kind for of_name, kind in zip(words, kinds, strict=True))
    if by_machine or (all(kinds) and (all_kinds or all(of_name == words[0] for of_name in words))):
        raise DataError(
            "folders that are named after what their photos show",
            f"{_quoted(one.name for one in by_machine or classes)} in '{root}'",
            f"{'move the photos into a folder for each class, ' if by_machine else ''}{labels_remedy(root)}, "
            "or --flat if these are the classes",
        )


def _refuse_same_beside(root: Path, classes: Sequence[ClassFolder]) -> None:
    """Refuses a folder that contains the same classes that are also next to it, such as `PlantVillage/<classes>`."""
    names = {one.name.casefold(): one.name for one in classes}
    for one in classes:
        same = sorted(name for name in one.first_level if names.get(name.casefold(), one.name) != one.name)
        if same:
            raise DataError(
                "class folders that do not contain other classes",
                f"'{one.name}', which contains '{same[0]}', next to '{names[same[0].casefold()]}' in '{root}'",
                f"move one of them away or pass '{root / one.name}', or --flat if '{one.name}' is itself a class",
            )


def _lost_level(root: Path, losing: Sequence[ClassFolder], *, in_splits: bool) -> DataError:
    first = losing[0]
    inner = min(folder for folder in first.photos_in if folder)
    flat = f"--flat to make '{first.name}' and every such folder one class"
    if all(split_named(folder) for one in losing for folder in one.photos_in if folder):
        return DataError(
            "train, val and test folders that hold the class folders",
            f"class folders that hold them, such as '{first.name}/{inner}' in '{root}'",
            f"move the photos to '{inner}/{first.name}' and so on, or pass {flat} and split its photos anew",
        )
    if all(_KIND.fullmatch(name.casefold()) for one in losing for name in one.first_level):
        expected = "class folders that contain only photos"
        got = f"folders in them such as {_quoted(sorted(first.first_level))} in '{root / first.name}'"
        return DataError(expected, got, f"move masks and the like out of '{root}', or pass {flat}")
    inside = root / first.name / wrapped_in(first.photos_in)
    remedy = f"--nested for classes such as '{first.name}/{inner}', or {flat}"
    if not in_splits:
        remedy = f"'{inside}', or {remedy}"
    for one in losing:
        folder = wrapped_in(one.photos_in)
        below = {path[len(folder) :].strip("/").split("/", 1)[0] for path in one.photos_in if path.startswith(folder)}
        if "train" in split_folders(below) and not in_splits:
            # The data set itself is a folder among other folders.
            remedy = f"'{root / one.name / folder}'"
    got = f"{_quoted(one.name for one in losing)} in '{root}', which hold folders such as '{first.name}/{inner}'"
    return DataError("class folders with photos", got, f"pass {remedy}")


def _refuse_splits_among_classes(root: Path, classes: Sequence[ClassFolder]) -> None:
    """Refuses a folder of test photos next to class folders, and pairs such as `train_rust` and `test_rust`.

    A folder named "train" or "valid" is accepted, because it may be a class.
    """
    named: dict[str, dict[str, str]] = {}
    for one in classes:
        split, rest = _split_and_rest(one.name)
        if split is not None and rest:
            named.setdefault(rest, {})[split] = one.name
    for rest, of_split in named.items():
        if len(of_split) > 1:
            split, name = next(iter(of_split.items()))
            raise DataError(
                "train, val and test folders that hold the class folders",
                f"{_quoted(of_split.values())} in '{root}'",
                f"move the photos of '{name}' to '{split}/{rest}' and so on, or pass --flat if these are the classes",
            )
    for one in classes:
        split = split_named(one.name)
        if split is not None and (one.loses_a_level or (split != "train" and one.name.casefold() != "valid")):
            other = next(other.name for other in classes if other is not one)
            expected = "only class folders, or only train, val and test folders that hold them"
            got = f"'{one.name}' next to '{other}' in '{root}'"
            raise DataError(expected, got, f"move '{one.name}' away, or pass --flat if it is a class")


def require_no_splits_inside(root: Path, classes: Iterable[str]) -> None:
    """Raises a DataError if classes are inside splits: "a/train/rust" and "a/test/rust" would be two classes."""
    found: dict[str, str] = {}
    for name in classes:
        for part in name.split("/"):
            if (split := split_named(part)) is not None:
                found.setdefault(split, name)
    if len(found) > 1:
        first, second = list(found.values())[:2]
        raise DataError(
            "train, val and test folders that hold the nested class folders",
            f"'{first}' and '{second}' in '{root}'",
            "make train, val and test the first level of folders, or pass a folder that holds them",
        )


def wrapped_in(photos_in: Mapping[str, int]) -> str:
    """Returns the innermost folder that contains all folders with photos; "" if there is none.

    Example:
        >>> wrapped_in({"a/b/rust": 1, "a/b/scab": 1}), wrapped_in({"rust": 1, "scab": 1}), wrapped_in({"": 3})
        ('a/b', '', '')
    """
    parents = [folder.rpartition("/")[0] for folder in photos_in if folder]
    return posixpath.commonpath(parents) if parents else ""


_REVIEW = b"time,reviewer,verdict,label,photo"  # the first line of `review.record`, a higher layer


def labels_remedy(root: Path) -> str:
    """Returns a remedy for an error: to pass --labels, with a CSV or TSV of the data folder if there is one."""
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
    files = [path for path in tables if not _is_review(path)]
    if tables and not files:
        return f"write a table of '{tables[0]}' by 'agridistill review {root} --table FILE', and pass --labels FILE"
    # A Kaggle data set also contains a sample submission, which has no labels.
    files = [path for path in files if "submission" not in path.name.lower()] or files
    chosen = next((path for path in files if split_named(path.stem) == "train"), files[0] if files else None)
    return f"pass --labels '{chosen}'" if chosen else "pass --labels FILE with the label of each photo"


def _is_review(file: Path) -> bool:
    """Whether a CSV is the record of `agridistill review`, which is no table of labels."""
    with file.open("rb") as content:
        return content.read(len(_REVIEW)) == _REVIEW


def _quoted(names: Iterable[str]) -> str:
    first, more = (quoted := [f"'{name}'" for name in names])[:3], len(quoted) - 3
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


# Spaces are ignored, except between two digits, where they separate numbers: "grade 1 1" is not "grade 11".
_SPACES = re.compile(r"(?<!\d)[\s_]+|[\s_]+(?!\d)")


def alike_names(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Finds groups of names that differ only in capitals, spaces (also written `_`) or Unicode normal form.

    Example:
        >>> alike_names(["Late blight", "Rust", "late_blight ", "rust 2"])
        (('Late blight', 'late_blight '),)
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        groups[_SPACES.sub("", composed(name).casefold())].append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def alike_in_words(group: Sequence[str]) -> str:
    """Returns a sentence about class names that differ only in details (a group from `alike_names`).

    Example:
        >>> alike_in_words(("Rust", "rust"))
        "these class names differ only in capitals, spaces or Unicode normal form: 'Rust' and 'rust'"
    """
    written = [f"'{name}'" for name in dict.fromkeys(map(composed, group))]
    if len(written) == 1:
        folders = f"{len(group)} class folders {written[0]}, whose names differ in Unicode normal form"
        return f"{folders}, are merged into one class"
    return f"these class names differ only in capitals, spaces or Unicode normal form: {' and '.join(written)}"

"""Assigns leaf ids: photos that show the same leaf get the same id, by their names and by their similarity.

Photos that were turned by a few degrees, sheared or cropped do not look like copies. Only the names that augmentation
tools give them show the original:

| name | original | written by |
|---|---|---|
| `IMG_1_jpg.rf.<hash>.jpg` | `IMG_1.jpg` | Roboflow |
| `rust_original_IMG_1.jpg_<uuid>.jpg` | `IMG_1.jpg` | Augmentor |
| `IMG_1_0_4711.jpg`, if `IMG_1.jpg` is also there | `IMG_1.jpg` | Keras with `save_prefix="IMG_1"` |
| `aug_7_4711.jpg`, if there are several numbers | the photo number 7 | Keras with `save_prefix="aug"` |
| `IMG_1_flip.jpg`, `rot90_IMG_1.jpg`, `IMG_1_aug_3.jpg` | `IMG_1.jpg` | scripts around imgaug, Albumentations, OpenCV |
| `IMG_1_GaussNoise2.jpg`, if `IMG_1.jpg` is also there | `IMG_1.jpg` | scripts with other words |

Names that differ only in a number (`IMG_1_2`, `leaf (3)`) are not grouped: cameras and Windows number photos like this.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from agridistill.data.datasets import leaves_by_name
from agridistill.data.folder import PhotoFolder, Sample
from agridistill.data.inspection import (
    Inspection,
    groups_of_copies,
    identical_groups,
    inspect_photos,
    phashes_of,
    usable_samples,
)
from agridistill.data.likeness import merge_groups, near_groups
from agridistill.manifest import composed
from agridistill.progress import ProgressCallback, silent

_SUFFIX = r"(?:jpe?g|jfif|jpe|png|bmp|webp|tiff?)"
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_TOOLS = {
    ".rf.": re.compile(rf"(?P<base>.+?)(?:_{_SUFFIX}){{0,2}}\.rf\.[0-9a-z_-]{{16,}}"),
    "_original_": re.compile(rf".*?_original_(?P<base>.+)\.{_SUFFIX}_{_UUID}"),
}
_KERAS = re.compile(r"(?P<series>(?:aug[a-z]*)?_\d{1,5})_\d{1,7}")
_ANY_END = re.compile(r"\d{1,5}_\d{1,7}\Z|[^\W\d_]")
_NUMBERED = re.compile(r"aug[a-z]*[\W_]*\d+[\W_]*")

_WAY = r"(?:horizontal(?:ly)?|vertical(?:ly)?|random(?:ly)?|left|right|hor|ver|lr|rl|ud|tb|hv|[hvxy])"
_DONE = (
    rf"(?:(?:new)?(?:\d{{1,3}}deg)?{_WAY}?flip(?:ped)?{_WAY}?\d?|mirror(?:ed)?|rot(?:at(?:e|ed|ion))?m?\d{{0,3}}(?:deg)?"
    r"|(?:new)?\d{1,3}deg(?:rees?)?|transposed?|shear(?:ed)?\d*|aug(?:ment(?:ed|ation)?)?s?\d*)"
)
# Words that photographers also use, and words for crops: they count only if the original exists, or after another word.
_PERHAPS = (
    r"(?:copy|zoom(?:ed)?\d*|crop(?:ped)?\d*|shift(?:ed)?\d*|translated?|scaled?\d*|resized?\d*|noisy|gaussian"
    r"|bright(?:er|ness|ened)?\d*|dark(?:er|ened)?\d*|contrast\d*|(?:newpixel|noise|blur)\d*|blurred|saltpepper"
    r"|sharp(?:en|ened)?|hue|saturation|gamma\d*|colou?r|jitter|clahe|equali[sz]ed?|elastic|distort(?:ed|ion)?|cutout"
    r"|gr[ae]y(?:scale)?|rot(?:ate|ated|ation)?(?:left|right)|perspective|affine)"
)
_GAP = r"[\W_]+"
_UNIT = r"(?:by|deg(?:rees?)?)"
# A number may follow such a word; a number before the word belongs to the name of the original.
_MARKS = re.compile(
    rf"(?:{_WAY}{_GAP})*(?:{_DONE}|{_PERHAPS})(?:{_GAP}(?:{_DONE}|{_PERHAPS}|{_WAY}|{_UNIT}|\d{{1,7}}))*[\W_]*"
)
_SURE_MARKS = re.compile(
    rf"(?:{_WAY}{_GAP})*{_DONE}(?:{_GAP}(?:{_UNIT}{_GAP})?\d{{1,7}}){{0,2}}"
    rf"(?:{_GAP}(?:{_DONE}|{_PERHAPS}|{_WAY}|{_UNIT}))*[\W_]*"
)
_HINT = re.compile(r"flip|mirror|rot|deg|transpos|shear|aug")
_AUGUST = re.compile(r"aug[\W_]*(?:19|20)\d\d(?!\d)|(?<!\d)(?:19|20)\d\d[\W_]*aug")
_MADE_FOLDER = re.compile(r"aug(?:mented|mentations?|s)?|flip(?:ped)?|rotat(?:ed|ions?)|output")
_ORIGINALS_FOLDER = re.compile(r"originals?")
# The largest group of names with the same beginning if no original exists, or the names have unknown words. In larger
# groups the numbers count something else, such as the photos of a day or the leaves of a plot.
_MOST_WITHOUT_ORIGINAL = 50

_Place = tuple[int, tuple[str, ...]]


class _Photo(NamedTuple):
    """The parts of a photo's path that show its original."""

    path: str  # path of the sample
    place: _Place  # its label and its folders, without those that name a split or an augmentation
    folder: str  # all its folders
    stem: str  # its file name in lower case, without suffix
    in_made_folder: bool  # whether one of its folders is named after an augmentation
    named_original: str | None  # the original that the file name itself shows; None if it shows none

    @property
    def is_plain(self) -> bool:
        return not self.in_made_folder and self.named_original is None and not _is_numbered(self.stem)


def read_samples(
    folder: PhotoFolder, *, progress: ProgressCallback = silent
) -> tuple[tuple[Sample, ...], tuple[tuple[str, str], ...], Inspection]:
    """Reads all photos of a folder, and gives the readable ones leaf ids.

    Returns these samples, a pair (path, reason) for each unreadable photo, and the records of all photos. Raises the
    errors of `usable_samples` and `assign_leaf_ids`.
    """
    inspection = inspect_photos(folder, remember=True, progress=progress)
    readable, unreadable = usable_samples(folder, inspection)
    return assign_leaf_ids(folder, readable, inspection), unreadable, inspection


def assign_leaf_ids(folder: PhotoFolder, samples: Iterable[Sample], inspection: Inspection) -> tuple[Sample, ...]:
    """Gives each of the readable samples a leaf id; photos that may show the same leaf get the same id.

    Two photos get the same id if

    - their file names show it, in a data set of `DATASETS` (`leaves_by_name`);
    - they are identical files, or copies of one photo, also flipped, turned or scaled (`groups_of_copies`);
    - they have one label and names of copies that augmentation tools made from one photo (`sibling_groups`);
    - they have one label and look alike (`near_groups`), unless the first rule applies to both.

    Raises a DataError if `leaf-map.json` is damaged.
    """
    chosen = tuple(samples)
    named = leaves_by_name(folder.root, chosen, folder.classes)
    by_leaf: dict[str, list[str]] = defaultdict(list)
    for path, leaf in named.items():
        by_leaf[leaf].append(path)
    groups = [
        *by_leaf.values(),
        *identical_groups(chosen, inspection),
        *groups_of_copies(chosen, inspection),
        *sibling_groups(chosen, split_folders=folder.in_split_folders),
    ]
    for label in {sample.label for sample in chosen}:
        of_class = phashes_of((sample for sample in chosen if sample.label == label), inspection)
        # Names are more reliable than similarity: different PlantVillage leaves in the same pose look alike.
        groups += [paths for paths in near_groups(of_class) if not named.keys() >= set(paths)]
    leaf_of: dict[str, str] = {}
    for group in merge_groups((sample.path for sample in chosen), groups):
        leaf_of.update(dict.fromkeys(group, min((named[path] for path in group if path in named), default=min(group))))
    return tuple(replace(sample, leaf_id=leaf_of[sample.path]) for sample in chosen)


def sibling_groups(samples: Iterable[Sample], *, split_folders: bool = False) -> list[list[str]]:
    """Finds groups of photos of one class that an augmentation tool made from the same photo, by their file names.

    A group includes the original photo if it exists. With `split_folders`, the first folder of each path is a train,
    val or test folder.
    """
    photos = [_photo(sample, split_folders) for sample in samples]
    plain: dict[_Place, dict[str, list[_Photo]]] = defaultdict(lambda: defaultdict(list))
    series: dict[tuple[_Place, str], set[str]] = defaultdict(set)
    for photo in photos:
        if photo.is_plain:
            plain[photo.place][photo.stem].append(photo)
        elif (keras := _KERAS.fullmatch(photo.stem)) is not None:
            series[photo.place, photo.folder].add(keras["series"])
    groups: dict[tuple[_Place, str, str], set[str]] = defaultdict(set)
    trusted: set[tuple[_Place, str, str]] = set()
    for photo in photos:
        base = _base(photo, plain[photo.place], series[photo.place, photo.folder])
        if base is None:
            continue
        originals = plain[photo.place].get(base, [])
        # Cameras start to count again in each folder: of several originals with the same name, only the one in the same
        # folder belongs to this photo.
        folder = photo.folder if len(originals) > 1 else ""
        same = [one.path for one in originals if folder in ("", one.folder)]
        groups[photo.place, base, folder].update((photo.path, *same))
        if (originals and not _has_own_word(photo.stem, base)) or any(
            tool.fullmatch(photo.stem) for tool in _TOOLS.values()
        ):
            trusted.add((photo.place, base, folder))
    return sorted(
        sorted(paths)
        for key, paths in groups.items()
        if len(paths) > 1 and (key in trusted or len(paths) <= _MOST_WITHOUT_ORIGINAL)
    )


def without_original(samples: Iterable[Sample]) -> tuple[str, ...]:
    """Returns the paths of photos that an augmentation tool made from an unknown original, such as `aug_0_1234.jpg`.

    The samples have the leaf ids of `assign_leaf_ids`.
    """
    chosen = tuple(samples)
    numbered = [sample for sample in chosen if _is_numbered(_stem(sample.path))]
    plain = set(chosen).difference(numbered)
    known, plain_labels = {sample.leaf_id for sample in plain}, {sample.label for sample in plain}
    sizes = Counter(sample.leaf_id for sample in numbered)
    # If a class has no other photos, photos with the same number are grouped, and that is enough.
    return tuple(
        sample.path
        for sample in numbered
        if sample.leaf_id not in known and (sample.label in plain_labels or sizes[sample.leaf_id] == 1)
    )


def unknown_originals(paths: Sequence[str]) -> str:
    """Returns a sentence with the problem and the remedy for the photos of `without_original`, at least one."""
    return (
        f"the originals of {len(paths):,} photos made by an augmentation tool are unknown, the first '{paths[0]}': "
        "copies of one leaf may be in train and in test; remove these photos (training augments by itself), or name "
        "them after their originals, such as IMG_1_aug_3.jpg"
    )


def _base(photo: _Photo, originals: Container[str], series: Collection[str]) -> str | None:
    """Returns the name of a photo's original; None if the photo is an original or its name does not show one."""
    stem = photo.stem
    if photo.in_made_folder and stem in originals:
        return stem
    keras = _KERAS.fullmatch(stem)
    if keras is not None:
        return keras["series"] if len(series) > 1 else None
    return _beside(stem, originals) or photo.named_original


def _beside(stem: str, originals: Container[str]) -> str | None:
    """Returns the longest name of an existing original that this name extends by words of augmentation, or None."""
    for start, end in reversed(_gaps(stem)):
        before, after = stem[:start], stem[end:]
        if before in originals and (_MARKS.fullmatch(after) or (_has_digit(before) and _ANY_END.match(after))):
            return before
    for start, end in _gaps(stem):
        if stem[end:] in originals and _MARKS.fullmatch(stem[:start]):
            return stem[end:]
    return None


def _has_own_word(stem: str, base: str) -> bool:
    """Returns whether a name extends that of its original by an unknown word, which may number leaves of a plot."""
    after = re.sub(rf"\A{_GAP}", "", stem.removeprefix(base))
    return stem.startswith(base) and after[:1].isalpha() and not _MARKS.fullmatch(after)


def _named_original(stem: str) -> str | None:
    """Returns the name of the original that a name itself shows, without other photos; None if it shows none."""
    for hint, tool in _TOOLS.items():
        if hint in stem and (match := tool.fullmatch(stem)) is not None:
            return match["base"]
    if not _HINT.search(stem) or _AUGUST.search(stem) or _is_numbered(stem):
        return None
    gaps = _gaps(stem)
    for start, end in gaps:
        # A name without a number, such as "leaf", is used for many photos and does not name a single one.
        if _has_digit(stem[:start]) and _SURE_MARKS.fullmatch(stem[end:]):
            return stem[:start]
    for start, end in reversed(gaps):
        before, after = stem[:start], stem[end:]
        # In "rot_90_IMG_1" the original is "IMG_1"; in "flip_12" it is "12".
        names_one = _has_digit(after) and (not before[-1].isdigit() or re.search(r"[a-z]", after))
        if names_one and _SURE_MARKS.fullmatch(before):
            return after
    return None


def _is_numbered(stem: str) -> bool:
    return (_KERAS.fullmatch(stem) or _NUMBERED.fullmatch(stem)) is not None


def _gaps(stem: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(_GAP, stem) if match.start() > 0 and match.end() < len(stem)]


def _has_digit(text: str) -> bool:
    return any(character.isdigit() for character in text)


def _photo(sample: Sample, split_folders: bool) -> _Photo:
    # File systems store the same name in different Unicode normal forms.
    path = composed(sample.path)
    folder = path.rpartition("/")[0]
    names = folder.split("/")[1 if split_folders else 0 :]
    made = [name for name in names if _MADE_FOLDER.fullmatch(name.lower())]
    kept = tuple(name for name in names if name not in made and not _ORIGINALS_FOLDER.fullmatch(name.lower()))
    stem = _stem(path)
    return _Photo(sample.path, (sample.label, kept), folder, stem, bool(made), _named_original(stem))


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0].lower()

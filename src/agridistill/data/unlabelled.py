"""Finds photos without labels, from which a student learns what its teacher says about them."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agridistill.data.folder import UNLABELLED, PhotoFolder, Sample, files_in
from agridistill.data.inspection import (
    Inspection,
    fingerprint,
    groups_of_copies,
    identical_groups,
    inspect_photos,
    phashes_of,
)
from agridistill.data.likeness import merge_groups, near_groups
from agridistill.errors import DataError
from agridistill.photo_files import counts_by_suffix, how_to_read, passed_over
from agridistill.progress import ProgressCallback, silent

logger = logging.getLogger(__name__)

# Without repeating them, 8 photos a class with labels among 750 others would be one photo in a batch of 16.
LABELLED_SHARE = 0.25


@dataclass(frozen=True)
class UnlabelledPhotos:
    """The photos without labels of a training; none shows a leaf of its validation or test photos."""

    root: Path  # the folder of the photos
    samples: tuple[Sample, ...]  # sorted by path; their label is `UNLABELLED`
    fingerprint: str  # sha256 over paths and contents
    phashes: Mapping[str, int]  # 64-bit perceptual hashes by `Sample.path`
    skipped: tuple[tuple[str, str], ...] = ()  # (path, reason) of each photo that cannot be read


def repeats_for(labelled: int, unlabelled: int, share: float | None = None) -> int:
    """Returns how often photos with labels are used in an epoch that uses each photo without a label once.

    `share` is the smallest share, 0 to 1, of photos with labels among all uses; None means `LABELLED_SHARE`.

    Example:
        >>> repeats_for(50, 600), repeats_for(500, 600)
        (4, 1)
    """
    share = LABELLED_SHARE if share is None else share
    # Rounded first: an error in the last digit must not repeat all photos once more.
    return max(1, math.ceil(round(share / (1 - share) * unlabelled / labelled, 9)))


def list_unlabelled(root: Path) -> tuple[list[str], list[str]]:
    """Lists the photos and the other files in a folder of photos without labels and in all its subfolders.

    Raises a DataError if the folder does not exist, cannot be read or has no photos.
    """
    if not root.is_dir():
        got = f"the file '{root}'" if root.exists() else f"'{root}', which does not exist"
        raise DataError("a folder of photos without labels", got, "correct --unlabelled")
    photos, others = files_in(root)
    if not photos:
        got = counts_by_suffix(others) if others else "no files"
        expected = "photos in the folder of --unlabelled"
        raise DataError(expected, f"{got} in '{root}'", how_to_read(others, otherwise="correct --unlabelled"))
    return photos, others


def find_unlabelled(
    root: Path,
    parts: Mapping[str, Sequence[Sample]],
    inspection: Inspection,
    *,
    only: Collection[str] = (),
    progress: ProgressCallback = silent,
) -> UnlabelledPhotos:
    """Reads the photos in a folder, and leaves out those that show a photo of the data folder again.

    These are copies of any of its photos (also flipped, turned or scaled), and photos that look like a validation or
    test photo, directly or through other photos without labels.

    Args:
        root: the folder; photos may be in subfolders of any depth.
        parts: the photos of the data folder by the name of their part; all parts but "train" are held out.
        only: paths of the photos that an earlier call has chosen: exactly these are used, and no copies are searched.

    Raises:
        DataError: the folder cannot be read, a photo of `only` is missing, or no photo is left.
    """
    photos, others = list_unlabelled(root)
    if only:
        missing = sorted(set(only) - set(photos))
        if missing:
            expected = "all photos without labels that the run started with"
            got = f"a folder without {len(missing)} of {len(only)}, the first '{root / missing[0]}'"
            raise DataError(expected, got, "put them back, or pass the folder that holds them as --unlabelled")
        photos, others = sorted(only), []
    samples = tuple(Sample(path, UNLABELLED, path) for path in sorted(photos))
    own = inspect_photos(PhotoFolder(root, (), samples), remember=True, progress=progress)
    skipped = tuple((sample.path, error) for sample in samples if (error := own[sample.path].error) is not None)
    for path, reason in skipped:
        logger.warning("left out: the unreadable photo %s (%s)", root / path, reason)
    if others:
        logger.warning("photos without labels in '%s': left out: %s", root, passed_over(others))
    readable = tuple(sample for sample in samples if own[sample.path].error is None)
    if not only:
        seen = _seen_in(parts, inspection, readable, own)
        readable = tuple(sample for sample in readable if sample.path not in seen)
        if seen:
            counts = Counter(seen.values())
            logger.warning(
                "photos without labels in '%s': left out: %d that show validation or test leaves, %d copies of "
                "training photos (also flipped, turned or scaled); photos that remain: %d",
                *(root, counts["held out"], counts["train"], len(readable)),
            )
    if not readable:
        expected = "readable photos without labels that are not in the data folder as well"
        got = f"none of {len(samples)} in '{root}' can be used"
        raise DataError(expected, got, "pass a folder with other photos, or leave --unlabelled out")
    return UnlabelledPhotos(root, readable, fingerprint((), readable, own), phashes_of(readable, own), skipped)


def _seen_in(
    parts: Mapping[str, Sequence[Sample]], inspection: Inspection, readable: Sequence[Sample], own: Inspection
) -> dict[str, str]:
    """Returns the photos of `readable` that the data folder shows as well: path -> "held out" or "train"."""
    entries = [(name, sample.path, inspection[sample.path]) for name, part in parts.items() for sample in part]
    entries += [("", sample.path, own[sample.path]) for sample in readable]
    # Numbered, because both folders may have a file of the same name.
    numbered = [Sample(str(number), UNLABELLED, path) for number, (_, path, _) in enumerate(entries)]
    part_of = {str(number): name for number, (name, _, _) in enumerate(entries)}
    records = {str(number): record for number, (_, _, record) in enumerate(entries)}
    groups = [
        *identical_groups(numbered, records),
        *groups_of_copies(numbered, records),
        *near_groups(phashes_of((photo for photo in numbered if part_of[photo.path] != "train"), records)),
    ]
    seen: dict[str, str] = {}
    for group in merge_groups(part_of, groups):
        names = {part_of[number] for number in group} - {""}
        if names:
            where = "train" if names == {"train"} else "held out"
            seen |= {entries[int(number)][1]: where for number in group if not part_of[number]}
    return seen

"""Labels from a table: a CSV or TSV with a row for each photo, as competitions and annotation tools write it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from agridistill.data.class_names import alike_names
from agridistill.data.label_table import LabelTable, are_numbers, find_columns, read_table, split_values
from agridistill.data.photo_names import PhotoFinder, name_one_folder
from agridistill.data.samples import PhotoFolder, Sample, all_files, require_folder
from agridistill.data.structure import split_folders
from agridistill.errors import DataError

# Rows of photos that are not there are reported; where these are more, it is the wrong folder or column.
_MAX_ABSENT_SHARE = 0.5


def scan_labelled(root: Path, file: Path, columns: Sequence[str] = (), *, min_classes: int = 2) -> PhotoFolder:
    """Lists the photos of a folder with the labels of a table; the folders mean nothing but where a photo lies.

    A cell names its photo by the path from the data folder or from the table, by a path that ends like the photo's,
    by the file's name, or by that without its suffix. Photos without a row or with an empty label are left out.

    Args:
        root: the data folder.
        file: CSV or TSV whose first line names the columns; in UTF-8, or in UTF-16 with a byte order mark.
        columns: names of the columns of photos and labels, and of the split; found by usual names where empty.
        min_classes: fewer are an error.

    Raises:
        DataError: the folder or the file cannot be used, a photo with two labels or splits, too few classes, a
            cell that fits several photos, or more than half of the photos are not there.
    """
    require_folder(root)
    table = read_table(file)
    photos, others = all_files(root)
    finder, find_other = PhotoFinder(root, file, photos), PhotoFinder(root, file, others)
    image, label, split = find_columns(table, columns, finder.found)
    splits = split_values(table, split, named=len(columns) == 3) if split is not None else None
    rows, absent = _rows(table, finder, image, label, splits)
    _require_photos(root, table, image, absent)
    labelled = _labelled(table, rows)
    classes = tuple(sorted({row.label for row in labelled.values()}))
    if len(classes) < min_classes:
        raise DataError(
            "at least two classes" if min_classes > 1 else "labels",
            f"{f'only {classes[0]!r}' if classes else 'none'} in column '{table.header[label]}' of '{file}'",
            "name the columns with --label-columns IMAGE,LABEL",
        )
    index_of = {name: index for index, name in enumerate(classes)}
    in_column = {path: row.split for path, row in labelled.items() if row.split is not None}
    by_folders = _by_folders(labelled) if not in_column else {}
    unread = {path for _, cell in absent for path in find_other.candidates(cell)[:1]}
    return PhotoFolder(
        root,
        classes,
        tuple(Sample(path, index_of[row.label], path) for path, row in sorted(labelled.items())),
        in_column or by_folders or None,
        tuple(sorted(unread)),
        unlabelled=tuple(sorted(path for path in photos if path not in labelled)),
        problems=tuple(_problems(table, absent)),
        alike_names=alike_names(classes),
        notes=tuple(_notes(table, (image, label, split), len(rows) - len(labelled), classes, used=splits is not None)),
        in_split_folders=bool(by_folders),
    )


class _Row(NamedTuple):
    """A row of the table whose photo is there."""

    line: int
    path: str
    label: str
    split: str | None


def _rows(
    table: LabelTable, finder: PhotoFinder, image: int, label: int, splits: Sequence[str] | None
) -> tuple[list[_Row], list[tuple[int, str]]]:
    """The rows of photos that are there, and (line, cell) of the others."""
    cells = table.values(image)
    alone = name_one_folder(cells)
    rows, absent = [], []
    for index, ((line, _), cell, text) in enumerate(zip(table.rows, cells, table.values(label), strict=True)):
        path = finder.find(cell, line, one_folder=alone)
        if path is None:
            absent.append((line, cell))
        else:
            name = unicodedata.normalize("NFC", " ".join(text.split()))
            rows.append(_Row(line, path, name, splits[index] if splits is not None else None))
    return rows, absent


def _labelled(table: LabelTable, rows: Iterable[_Row]) -> dict[str, _Row]:
    """The row of each photo that has a label.

    Raises:
        DataError: two rows of a photo differ.
    """
    of_photo: dict[str, _Row] = {}
    for row in rows:
        before = of_photo.setdefault(row.path, row)
        for what, old, new in (("label", before.label, row.label), ("split", before.split, row.split)):
            if old != new:
                raise DataError(
                    f"one {what} for each photo",
                    f"'{old}' and '{new}' for '{row.path}' in lines {before.line} and {row.line} of '{table.path}'",
                    "correct the file",
                )
    return {path: row for path, row in of_photo.items() if row.label}


def _by_folders(labelled: Iterable[str]) -> dict[str, str]:
    """The split by folders such as `train_images` and `test_images`, where all labelled photos lie in them."""
    top = {path: path.split("/", 1)[0] if "/" in path else "" for path in labelled}
    found = split_folders(sorted(set(top.values())))
    split_of = {name: split for split, names in found.items() for name in names}
    if "train" not in found or len(found) < 2 or not set(top.values()) <= split_of.keys():
        return {}
    return {path: split_of[name] for path, name in top.items()}


def _require_photos(root: Path, table: LabelTable, image: int, absent: Sequence[tuple[int, str]]) -> None:
    if len(absent) == len(table.rows) or len(absent) > _MAX_ABSENT_SHARE * len(table.rows):
        line, cell = absent[0]
        raise DataError(
            f"the photos that '{table.path}' names, in '{root}'",
            f"none for {len(absent):,} of its {len(table.rows):,} rows, the first '{cell}' (column "
            f"'{table.header[image]}', line {line})",
            "pass the folder that holds them, or name the columns with --label-columns IMAGE,LABEL",
        )


def _problems(table: LabelTable, absent: Sequence[tuple[int, str]]) -> Iterable[str]:
    if absent:
        line, cell = absent[0]
        rows = "1 row" if len(absent) == 1 else f"{len(absent):,} rows"
        yield f"{rows} of '{table.path}' without a photo that can be read, the first '{cell}' (line {line})"


def _notes(
    table: LabelTable, columns: tuple[int, int, int | None], repeated: int, classes: Sequence[str], *, used: bool
) -> Iterable[str]:
    image, label, split = columns
    names = f"photos by column '{table.header[image]}', labels by '{table.header[label]}'"
    if split is not None:
        names += f", splits by '{table.header[split]}'" if used else ""
    yield f"labels of '{table.path}': {names}"
    if split is not None and not used:
        yield f"column '{table.header[split]}' names no train, val or test: it is not used"
    if repeated:
        yield f"rows without a label, or again with the same one: {repeated:,}"
    joined = [name for name in classes if len(words := re.split(r"[\s,;|+&]+", name)) > 1 and {*words} <= {*classes}]
    if joined:
        yield f"labels such as '{joined[0]}' are of several classes: each such combination is a class of its own"
    if are_numbers(classes):
        yield "labels are numbers, and so are the names of the classes"

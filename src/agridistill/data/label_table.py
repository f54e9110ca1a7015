"""Reads a table of labels, detects its columns by their names, and finds the photo that each cell names."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agridistill.data.structure import resolved_evaluation, split_named
from agridistill.errors import DataError, nearest
from agridistill.manifest import composed
from agridistill.photo_files import is_photo

# Usual names of columns, without spaces and signs; the more specific ones come first.
_IMAGE_NAMES = (
    "imagepath", "filepath", "photopath", "path", "filename", "imagename", "imagefile", "photoname", "file", "image",
    "img", "photo", "picture", "imageid", "imgid", "photoid", "fileid", "imageurl", "id", "name",
)  # fmt: skip
_LABEL_NAMES = (
    "label", "labels", "labelname", "class", "classes", "classname", "classlabel", "category", "categoryname",
    "disease", "diseasename", "condition", "diagnosis", "target", "labelid", "classid", "categoryid", "labelidx",
    "classidx",
)  # fmt: skip
_SPLIT_NAMES = (
    "split", "set", "subset", "partition", "datasplit", "fold", "phase", "usage", "isvalid", "isval", "istest",
    "istrain", "istraining",
)  # fmt: skip
_TRIED_ROWS = 200
NAME_COLUMNS = "name the columns with --label-columns IMAGE,LABEL"


@dataclass(frozen=True)
class LabelTable:
    """A table of labels, which was read from a CSV or TSV file."""

    path: Path
    header: list[str]  # names of the columns
    rows: list[tuple[int, list[str]]]  # (line number in the file, cells)

    def values(self, column: int, most: int | None = None) -> list[str]:
        """Returns the first `most` cells (None: all) of a column, from 0, without spaces at their ends."""
        return [cells[column].strip() for _, cells in self.rows[:most]]


def read_table(file: Path) -> LabelTable:
    """Reads a CSV or TSV file; the separator (comma, semicolon, tab or vertical bar) is detected from the first line.

    The file is in UTF-8, or in UTF-16 with a byte order mark. If its labels are one-hot (a column of 0 and 1 for each
    class), a column "label" with the names of the classes is added. Raises a DataError if the file does not exist, is
    not text, has no column names or no rows, or has a row with more cells than columns.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError("a readable label file", f"'{file}' ({error.strerror})", "check --labels") from None
    try:
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16" if wide else "utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        if "\0" in text or text.lstrip().startswith(("{", "[", "<")):
            raise csv.Error("JSON, XML or not text")
        text = re.sub(r"\A(?i:sep)=.(?=\n)", "", text)  # a line "sep=;" tells Excel the separator
        first = text.lstrip().partition("\n")[0]
        separator = max(",;\t|", key=lambda sign: len(next(csv.reader([first], delimiter=sign), [])))
        # Without `skipinitialspace`, the quotes in `1.jpg, "rust"` would become part of the label.
        reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True, skipinitialspace=True)
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (UnicodeError, csv.Error) as error:
        raise DataError("a CSV or TSV file in UTF-8", f"'{file}' ({error})", "save it as CSV UTF-8") from None
    if len(lines) < 2:
        raise DataError("a row for each photo below the column names", f"no rows in '{file}'", "add rows")
    header = [cell.strip() for cell in lines[0][1]]
    if any(is_photo(word) for cell in header for word in cell.split()):
        raise DataError(
            "a first line of column names", f"'{first.strip()}' in '{file}'", "add a line such as image,label above it"
        )
    for line, cells in lines[1:]:
        # Some programs drop empty cells at the end of a row, or write a separator after the last cell.
        cells += [""] * (len(header) - len(cells))
        if any(cell.strip() for cell in cells[len(header) :]):
            remedy = "put quotes around cells that contain the separator"
            raise DataError(f"{len(header)} cells in each row", f"{len(cells)} in line {line} of '{file}'", remedy)
    return _with_labels(LabelTable(file, header, lines[1:]))


def _with_labels(table: LabelTable) -> LabelTable:
    """Adds a column of labels if all columns but one hold 0 and 1, with a single 1 in each row."""
    width = len(table.header)
    ones = [column for column in range(width) if set(table.values(column)) <= {"0", "1", "0.0", "1.0"}]
    marked = [[table.header[column] for column in ones if float(cells[column])] for _, cells in table.rows]
    if len(ones) < max(2, width - 1) or any(len(names) != 1 for names in marked):
        return table
    rows = [(line, cells[:width] + names) for (line, cells), names in zip(table.rows, marked, strict=True)]
    return LabelTable(table.path, [*table.header, "label"], rows)


def _columns(table: LabelTable, names: Sequence[str]) -> list[int]:
    plain = [re.sub(r"[\W_]+", "", name.casefold()) for name in table.header]
    return [column for name in names for column, other in enumerate(plain) if other == name]


def find_columns(table: LabelTable, wanted: Sequence[str], finder: PhotoFinder) -> tuple[int, int, int | None]:
    """Returns the numbers, from 0, of the columns that hold the photos, the labels and (None without any) the splits.

    `wanted` has the names of the two or three columns; if it is empty, usual names (such as "image" and "label") are
    searched. Of several columns with usual names, the one that names most photos of `finder` is used. Raises a
    DataError if a wanted column does not exist, no column has a usual name, or several have different labels.
    """
    if wanted:
        image, label, *split = (_named(table, name) for name in wanted)
        return image, label, split[0] if split else None
    labels, splits = _columns(table, _LABEL_NAMES), _columns(table, _SPLIT_NAMES)
    usual = _columns(table, _IMAGE_NAMES)
    tried = [table.values(column, _TRIED_ROWS) for column in range(len(table.header))]
    files = [column for column, cells in enumerate(tried) if any(map(is_photo, cells))]
    fitting = {column: finder.found(tried[column]) for column in (*usual, *files)}
    # Columns of numbers are tried last: row numbers in a column such as "id" may equal the names of wrong photos.
    tiers = [column for column in usual if not are_numbers(tried[column])], files, usual
    images = next((columns for columns in tiers if any(map(fitting.__getitem__, columns))), usual)
    if not images or not labels:
        lacking = "labels" if images else "photos" if labels else "photos and labels"
        names = ", ".join(f"'{name}'" for name in table.header[:8])
        raise DataError(f"a column of {lacking} with a usual name", f"{names} in '{table.path}'", NAME_COLUMNS)
    # If several columns name the same number of photos, the first one is taken.
    image = max(images, key=fitting.__getitem__)
    return image, _label_column(table, labels), splits[0] if splits else None


def _named(table: LabelTable, name: str) -> int:
    if name.strip() not in table.header:
        raise DataError(f"the name of a column in '{table.path}'", f"'{name}'", nearest(name, table.header))
    return table.header.index(name.strip())


def _label_column(table: LabelTable, columns: Sequence[int]) -> int:
    """Returns the column of labels; of two columns with numbers and names for the same classes, that of the names."""
    first, *others = columns
    for other in others:
        pairs = set(zip(table.values(first), table.values(other), strict=True))
        if not len(pairs) == len({one for one, _ in pairs}) == len({two for _, two in pairs}):
            raise DataError(
                "labels in one column",
                f"'{table.header[first]}' and '{table.header[other]}', which have different classes, in '{table.path}'",
                NAME_COLUMNS,
            )
    return next((column for column in columns if not are_numbers(table.values(column))), first)


def are_numbers(values: Iterable[str]) -> bool:
    """Returns whether all non-empty texts are whole numbers, such as "3" or "3.0"."""
    return all(re.fullmatch(r"-?\d+(?:\.0*)?", value) for value in values if value)


def split_values(table: LabelTable, column: int, *, named: bool) -> list[str] | None:
    """Reads "train", "val" or "test" for each row from a column; None if no cell names a split, as with fold numbers.

    Raises a DataError if only some cells name a split, or none in a column that the user named (`named`).
    """
    values = table.values(column)
    meant = {value: split_named(value) for value in set(values)}
    if not named and not any(meant.values()):
        return None
    for (line, _), value in zip(table.rows, values, strict=True):
        if meant[value] is None:
            expected = f"train, val or test in column '{table.header[column]}'"
            got = f"'{value}' in line {line} of '{table.path}'"
            raise DataError(expected, got, "correct the cell, or ignore the column with --label-columns IMAGE,LABEL")
    known = [split for split in meant.values() if split is not None]
    evaluation = resolved_evaluation(known)
    return [evaluation if meant[value] == "eval" else meant[value] or "" for value in values]


class PhotoFinder:
    """Finds the photo that a cell of a label file names, among `paths` relative to the data folder `root`.

    A cell may be a path from the data folder or from the folder of the label file, the end of a path, a file name, or
    a file name without suffix.
    """

    def __init__(self, root: Path, file: Path, paths: Iterable[str]) -> None:
        self._file = file
        self._above = _keys(root.resolve().as_posix())
        self._starts: list[tuple[str, ...]] = [()]
        folder, photos = file.parent.resolve(), root.resolve()
        if folder.is_relative_to(photos):
            self._starts.append(_keys(folder.relative_to(photos).as_posix()))
        self._by_name: defaultdict[str, list[str]] = defaultdict(list)
        self._by_stem: defaultdict[str, list[str]] = defaultdict(list)
        self._keys: dict[str, tuple[str, ...]] = {}
        for path in paths:
            self._keys[path] = keys = _keys(path)
            self._by_name[keys[-1]].append(path)
            self._by_stem[os.path.splitext(keys[-1])[0]].append(path)  # noqa: PTH122 - Path is slow

    def found(self, cells: Sequence[str]) -> int:
        """Counts the cells that name an existing photo."""
        one_folder = name_one_folder(cells)
        return sum(bool(self.candidates(cell, one_folder=one_folder)) for cell in cells)

    def find(self, cell: str, line: int, *, one_folder: bool) -> str | None:
        """Returns the path of the photo that the cell in a line of the file names; None if there is no such photo.

        `one_folder` is the result of `name_one_folder` for all cells of the column. Raises a DataError if the cell fits
        several photos equally well.
        """
        fitting = self.candidates(cell, one_folder=one_folder)
        # If paths or names differ only in capitals, the exact one is taken.
        whole = [path for path in fitting if path == cell]
        exact = whole or [path for path in fitting if path.rsplit("/", 1)[-1] == re.split(r"[/\\]", cell)[-1]]
        fitting = exact or fitting
        if len(fitting) > 1:
            raise DataError(
                "one photo for each row",
                f"'{cell}' in line {line} of '{self._file}', which fits '{fitting[0]}' and '{fitting[1]}'",
                "pass the folder that holds the labelled photos, or write their paths into the file",
            )
        return fitting[0] if fitting else None

    def candidates(self, cell: str, *, one_folder: bool = True) -> list[str]:
        """Returns the paths of the photos that fit a cell best; several if they fit equally well, none if none fits."""
        keys = _keys(cell)
        if not keys:
            return []
        *folder, name = keys
        named = self._by_name.get(name) or self._by_stem.get(name, [])
        for start in self._starts:
            direct = [path for path in named if self._keys[path][:-1] == (*start, *folder)]
            if direct:
                return direct
        alike = {path: _common_end((*self._above, *self._keys[path][:-1]), folder) for path in named}
        most = max(alike.values(), default=0)
        if folder and not most and not one_folder:
            return []
        found = [path for path in named if alike[path] == most]
        # Drop photos whose folders contradict those in the cell: a photo of another farm or day may have the same name.
        return [path for path in found if one_folder or most >= min(len(folder), len(self._keys[path]) - 1)]


def name_one_folder(cells: Iterable[str]) -> bool:
    """Returns whether all paths name one folder or none; `PhotoFinder` then ignores it, as photos may be moved."""
    return len({_keys(cell)[:-1] for cell in cells if cell}) < 2


def _keys(path: str) -> tuple[str, ...]:
    """Returns the parts of a path for comparison: in lower case and one normal form, split at slashes of both kinds."""
    plain = composed(path.strip()).casefold()
    return tuple(part for part in re.split(r"[/\\]", plain) if part not in ("", "."))


def _common_end(first: Sequence[str], second: Sequence[str]) -> int:
    pairs = zip(reversed(first), reversed(second), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

"""Finds the labels of the photos in a data folder: by its folders, or by a CSV or TSV with a row for each photo."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from agridistill.arguments import described, to_optional_path
from agridistill.data.folder import PhotoFolder, Sample, files_in, require_folder, scan
from agridistill.data.label_table import (
    NAME_COLUMNS,
    LabelTable,
    PhotoFinder,
    are_numbers,
    find_columns,
    name_one_folder,
    read_table,
    split_values,
)
from agridistill.data.structure import alike_names, split_folders
from agridistill.errors import ConfigError, DataError
from agridistill.manifest import composed

# Rows whose photo does not exist are reported. If their share is larger, the folder or the column must be wrong.
_MAX_ABSENT_SHARE = 0.5


@dataclass(frozen=True)
class Layout:
    """The options that determine where the label of each photo comes from: folder names or a table.

    Attributes:
        nested: which folders are classes. True: each folder with photos, named by its path ("Tomato/Late blight").
            False: each folder of the first level, with all photos below it. None: as False, but a DataError if the
            folders below are probably classes themselves.
        label_file: a CSV or TSV file with a row for each photo; None takes the labels from the names of the folders.
        label_columns: names of the columns of photos, labels and (optionally) splits in the label file; if empty,
            columns with usual names (such as "image" and "label") are searched.

    Raises:
        ConfigError: `label_file` and `nested` are both set, or `label_columns` are not two or three columns of a file.
    """

    nested: bool | None = None
    label_file: Path | None = None
    label_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.label_file is not None and self.nested is not None:
            raise ConfigError("--labels without --nested or --flat", "both", "leave out --nested or --flat")
        if self.label_columns and self.label_file is None:
            raise ConfigError("a label file for --label-columns", "no --labels", "pass --labels FILE")
        if self.label_columns and len(self.label_columns) not in (2, 3):
            got = f"'{','.join(self.label_columns)}'"
            raise ConfigError("--label-columns IMAGE,LABEL or IMAGE,LABEL,SPLIT", got, "name two or three columns")

    def words(self) -> tuple[str | Path, ...]:
        """Returns the command-line options for this layout, such as ("--labels", Path("labels.csv"))."""
        if self.label_file is not None:
            columns = ("--label-columns", ",".join(self.label_columns)) if self.label_columns else ()
            return ("--labels", self.label_file, *columns)
        return () if self.nested is None else ("--nested" if self.nested else "--flat",)

    def to_json(self) -> dict[str, Any]:
        """Returns the layout as JSON, with an absolute path of the label file."""
        file = str(self.label_file.resolve()) if self.label_file is not None else None
        return {"nested": self.nested, "label_file": file, "label_columns": list(self.label_columns)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | None) -> Layout:
        """Builds a layout from the result of `to_json`; None gives the default layout, in which folders are classes."""
        return cls() if document is None else TypeAdapter(cls).validate_python(document)


FOLDERS = Layout()
"""The default layout: class folders, or train/val/test folders that hold class folders."""


def to_layout(label_file: object, label_columns: object, nested: object) -> Layout | None:
    """Builds a layout from the arguments of a Python call; None if all have their defaults (None, empty, None).

    Raises a ConfigError if an argument has a wrong type, or two arguments cannot be combined.
    """
    file = to_optional_path("label_file", label_file)
    if isinstance(label_columns, str) or not isinstance(label_columns, Sequence):
        remedy = "pass a list such as ['image', 'label']"
        raise ConfigError("a list of column names for 'label_columns'", described(label_columns), remedy)
    if nested is not None and not isinstance(nested, bool):
        raise ConfigError("True, False or None for 'nested'", described(nested), "pass one of these values")
    if file is None and nested is None and not label_columns:
        return None
    return Layout(nested, file, tuple(str(name) for name in label_columns))


def read_layout(root: Path, layout: Layout = FOLDERS, *, min_classes: int = 2) -> PhotoFolder:
    """Lists the photos of a data folder with their labels; errors are those of `scan` and `scan_labelled`."""
    if layout.label_file is not None:
        return scan_labelled(root, layout.label_file, layout.label_columns, min_classes=min_classes)
    return scan(root, nested=layout.nested, min_classes=min_classes)


def scan_labelled(root: Path, file: Path, columns: Sequence[str] = (), *, min_classes: int = 2) -> PhotoFolder:
    """Lists the photos of a folder with their labels from a table, not from the names of the folders.

    A row names its photo by a path (relative to the data folder or to the label file), by the end of a path, by the
    file name, or by the file name without suffix. Photos without a row or with an empty label are not used. The split
    comes from a column, or else from train, val and test folders.

    Raises:
        DataError: the folder or the file cannot be used, a photo has two labels or splits, there are too few classes,
            a row fits several photos, or more than half of the rows name no existing photo.
    """
    require_folder(root)
    table = read_table(file)
    photos, others = map(sorted, files_in(root))
    finder = PhotoFinder(root, file, photos)
    image, label, split = find_columns(table, columns, finder)
    splits = split_values(table, split, named=len(columns) == 3) if split is not None else None
    rows, absent = _rows(table, finder, image, label, splits)
    line, cell = absent[0] if absent else (0, "")
    if len(absent) == len(table.rows) or len(absent) > _MAX_ABSENT_SHARE * len(table.rows):
        raise DataError(
            f"the photos that '{file}' names in the folder '{root}'",
            f"no photo for {len(absent):,} of its {len(table.rows):,} rows, the first '{cell}' (column "
            f"'{table.header[image]}', line {line})",
            f"pass the folder that holds the photos, or {NAME_COLUMNS}",
        )
    labelled = _row_of_photo(table, rows)
    classes = tuple(sorted({row.label for row in labelled.values()}))
    if len(classes) < min_classes:
        got = f"{f'only {classes[0]!r}' if classes else 'none'} in column '{table.header[label]}' of '{file}'"
        raise DataError("at least two classes" if min_classes > 1 else "labels", got, NAME_COLUMNS)
    index_of = {name: index for index, name in enumerate(classes)}
    in_column = {path: row.split for path, row in labelled.items() if row.split is not None}
    by_folders = _split_by_folders(labelled) if not in_column else {}
    find_other = PhotoFinder(root, file, others)
    unread = {path for _, cell in absent for path in find_other.candidates(cell)[:1]}
    count = "1 row" if len(absent) == 1 else f"{len(absent):,} rows"
    problem = f"{count} of '{file}' without a photo that exists and can be read, the first '{cell}' (line {line})"
    return PhotoFolder(
        root,
        classes,
        tuple(Sample(path, index_of[row.label], path) for path, row in sorted(labelled.items())),
        in_column or by_folders or None,
        tuple(sorted(unread)),
        unlabelled=tuple(sorted(path for path in photos if path not in labelled)),
        problems=(problem,) if absent else (),
        alike_names=alike_names(classes),
        notes=tuple(_notes(table, (image, label, split), len(rows) - len(labelled), classes, used=splits is not None)),
        in_split_folders=bool(by_folders),
    )


class _Row(NamedTuple):
    line: int
    path: str
    label: str
    split: str | None


def _rows(
    table: LabelTable, finder: PhotoFinder, image: int, label: int, splits: Sequence[str] | None
) -> tuple[list[_Row], list[tuple[int, str]]]:
    """Returns the rows whose photos exist, and (line, cell) of the other rows."""
    cells = table.values(image)
    one_folder = name_one_folder(cells)
    rows, absent = [], []
    for index, ((line, _), cell, text) in enumerate(zip(table.rows, cells, table.values(label), strict=True)):
        path = finder.find(cell, line, one_folder=one_folder)
        if path is None:
            absent.append((line, cell))
        else:
            name = composed(" ".join(text.split()))
            rows.append(_Row(line, path, name, splits[index] if splits is not None else None))
    return rows, absent


def _row_of_photo(table: LabelTable, rows: Iterable[_Row]) -> dict[str, _Row]:
    """Returns photo -> row for all photos with a label; two different rows for one photo are an error."""
    of_photo: dict[str, _Row] = {}
    for row in rows:
        before = of_photo.setdefault(row.path, row)
        for what, old, new in (("label", before.label, row.label), ("split", before.split, row.split)):
            if old != new:
                got = f"'{old}' and '{new}' for '{row.path}' in lines {before.line} and {row.line} of '{table.path}'"
                raise DataError(f"one {what} for each photo", got, "correct the file")
    return {path: row for path, row in of_photo.items() if row.label}


def _split_by_folders(labelled: Iterable[str]) -> dict[str, str]:
    """Returns path -> split if all labelled photos are in folders such as `train_images` and `test_images`, else {}."""
    top = {path: path.split("/", 1)[0] if "/" in path else "" for path in labelled}
    found = split_folders(sorted(set(top.values())))
    split_of = {name: split for split, names in found.items() for name in names}
    if "train" not in found or len(found) < 2 or not set(top.values()) <= split_of.keys():
        return {}
    return {path: split_of[name] for path, name in top.items()}


def _notes(
    table: LabelTable, columns: tuple[int, int, int | None], repeated: int, classes: Sequence[str], *, used: bool
) -> Iterable[str]:
    image, label, split = columns
    names = f"photos from column '{table.header[image]}', labels from '{table.header[label]}'"
    if split is not None:
        names += f", splits from '{table.header[split]}'" if used else ""
    yield f"the labels are read from '{table.path}': {names}"
    if split is not None and not used:
        yield f"column '{table.header[split]}' is not used, because it does not name train, val or test"
    if repeated:
        yield f"rows that have no label or repeat another row are ignored ({repeated:,})"
    joined = [name for name in classes if len(words := re.split(r"[\s,;|+&]+", name)) > 1 and {*words} <= {*classes}]
    if joined:
        yield f"labels such as '{joined[0]}' name several classes: each such combination is used as a separate class"
    if are_numbers(classes):
        yield "the labels are numbers: the classes have numbers as names"

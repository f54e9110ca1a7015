"""How the labels of a data folder are written: in its folders, or in a table beside its photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agridistill.arguments import described, to_optional_path
from agridistill.data.label_file import scan_labelled
from agridistill.data.samples import PhotoFolder, scan
from agridistill.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """How to find the label of each photo.

    Attributes:
        nested: classes are named by the path of their folder ("Tomato/Late blight"); False takes the first level
            alone; None takes it where nothing is lost by that, and refuses other folders.
        label_file: CSV or TSV with a row for each photo; the folders then mean nothing.
        label_columns: names of its columns of photos and labels, and of the split where there is one; where empty, they
            are found by usual names.

    Raises:
        ConfigError: options that exclude each other.
    """

    nested: bool | None = None
    label_file: Path | None = None
    label_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.label_file is not None and self.nested is not None:
            raise ConfigError("labels from a file or from folders", "both", "leave --nested or --flat away")
        if self.label_columns and self.label_file is None:
            raise ConfigError("a label file for --label-columns", "none", "pass --labels FILE")
        if self.label_columns and len(self.label_columns) not in (2, 3):
            raise ConfigError(
                "--label-columns IMAGE,LABEL or IMAGE,LABEL,SPLIT", f"'{','.join(self.label_columns)}'", "correct it"
            )

    def words(self) -> tuple[str | Path, ...]:
        """The options of a command that mean this layout."""
        if self.label_file is not None:
            columns = ("--label-columns", ",".join(self.label_columns)) if self.label_columns else ()
            return ("--labels", self.label_file, *columns)
        return () if self.nested is None else ("--nested" if self.nested else "--flat",)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; the file's path is absolute."""
        file = str(self.label_file.resolve()) if self.label_file is not None else None
        return {"nested": self.nested, "label_file": file, "label_columns": list(self.label_columns)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | None) -> Layout:
        """Reads what `to_json` gave; None is the default."""
        if document is None:
            return cls()
        file = document["label_file"]
        return cls(document["nested"], Path(file) if file is not None else None, tuple(document["label_columns"]))


FOLDERS = Layout()
"""Class folders, or train/val/test folders of them."""


def to_layout(label_file: object, label_columns: object, nested: object) -> Layout | None:
    """How the labels are found; None where none of the arguments is given.

    Raises:
        ConfigError: another type, or arguments that exclude each other.
    """
    file = to_optional_path("label_file", label_file)
    if isinstance(label_columns, str) or not isinstance(label_columns, Sequence):
        raise ConfigError("a list of column names for 'label_columns'", described(label_columns), "correct it")
    if nested is not None and not isinstance(nested, bool):
        raise ConfigError("True, False or None for 'nested'", described(nested), "correct it")
    if file is None and nested is None and not label_columns:
        return None
    return Layout(nested, file, tuple(str(name) for name in label_columns))


def read_layout(root: Path, layout: Layout = FOLDERS, *, min_classes: int = 2) -> PhotoFolder:
    """Lists the photos of a data folder with their labels.

    Raises:
        DataError: the folder or the label file cannot be used.
    """
    if layout.label_file is not None:
        return scan_labelled(root, layout.label_file, layout.label_columns, min_classes=min_classes)
    return scan(root, nested=layout.nested, min_classes=min_classes)

"""Turns reviewed photos into what `train` reads: class folders, or a table of labels."""

from __future__ import annotations

import csv
import filecmp
import io
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from agridistill.errors import DataError, RunError
from agridistill.storage import replacing, require_writable, write_text

TABLE_HEADER = "image,label"


def write_class_folders(root: Path, labels: Mapping[str, str], into: Path) -> int:
    """Copies photos into one folder for each class. A photo that is there already is not copied again.

    Args:
        root: the folder of the photos.
        labels: photo, relative to `root` -> class.
        into: the folder that gets the class folders, outside `root`.

    Returns:
        The number of copied photos.

    Raises:
        DataError: a class cannot be the name of a folder.
        RunError: `into` is in `root`, has another photo of the same name, or has a photo in the folder of another class
            (from before its label was changed). Nothing is copied then.
    """
    require_writable(into, "--into", folder=True)
    if into.resolve().is_relative_to(root.resolve()):
        raise RunError("--into outside the reviewed folder", f"'{into}' in '{root}'", "choose another --into")
    for label in sorted(set(labels.values())):
        if not label or any(part in ("", ".", "..") for part in label.replace("\\", "/").split("/")):
            raise DataError("a class that can be the name of a folder", f"'{label}'", "rename it, or use --table")
    counts = Counter(PurePosixPath(photo).name for photo in labels)
    copies: dict[Path, str] = {}
    for photo, label in labels.items():
        name = PurePosixPath(photo).name
        target = into / label / (name if counts[name] == 1 else photo.replace("/", "__"))
        if target.exists():
            if not filecmp.cmp(root / photo, target, shallow=False):
                raise RunError("no other photo of this name in --into", f"'{target}'", "choose another --into")
            continue
        copies[target] = photo
    _require_no_earlier_label(into, copies)
    for target, photo in copies.items():
        with replacing(target) as temporary:
            shutil.copyfile(root / photo, temporary)
    return len(copies)


def _require_no_earlier_label(into: Path, copies: Mapping[Path, str]) -> None:
    held = {path.name: path for path in into.rglob("*") if path.is_file()} if into.is_dir() else {}
    for target in copies:
        if target.name in held:
            raise RunError(
                f"'{target.name}' in one class of --into",
                f"'{held[target.name]}', from before its label was changed to '{target.parent.name}'",
                "remove this file, or choose another --into",
            )


def write_label_table(labels: Mapping[str, str], table: Path) -> None:
    """Writes a CSV with the columns image and label, which `train --labels` reads.

    Args:
        labels: photo, relative to the data folder -> class.
        table: the file; an existing one is replaced.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(TABLE_HEADER.split(","))
    writer.writerows(sorted(labels.items()))
    write_text(table, text.getvalue())

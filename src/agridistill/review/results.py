"""Turns reviewed photos into what `train` reads: class folders, or a table of labels."""

from __future__ import annotations

import csv
import filecmp
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from agridistill.errors import DataError, RunError
from agridistill.storage import csv_text, replacing, require_writable, write_text


def write_class_folders(root: Path, labels: Mapping[str, str], into: Path, without: Iterable[str] = ()) -> int:
    """Copies photos into one folder for each class, named by their paths, with "__" for each slash.

    A photo that is there already is not copied again. `without` are the reviewed photos that have no label. Returns the
    number of copied photos.

    Raises:
        DataError: a class cannot be the name of a folder.
        RunError: `into` is in `root` or around it, has another photo of the same name, or has a photo in the folder of
            another class, or one that has no label any more (from before its label was changed). Nothing is copied
            then.
    """
    require_writable(into, "--into", folder=True)
    photos, copied = root.resolve(), into.resolve()
    if copied.is_relative_to(photos) or photos.is_relative_to(copied):
        got = f"'{into}' in '{root}'" if copied.is_relative_to(photos) else f"'{root}' in '{into}'"
        raise RunError("--into outside the reviewed folder, and not around it", got, "choose another --into")
    for label in sorted(set(labels.values())):
        if not label or any(part in ("", ".", "..") for part in label.replace("\\", "/").split("/")):
            raise DataError("a class that can be the name of a folder", f"'{label}'", "rename it, or use --table")
    copies: dict[Path, str] = {}
    for photo, label in labels.items():
        target = into / label / _name_of(photo)
        if target in copies:
            got = f"'{photo}' and '{copies[target]}' for '{target}'"
            raise RunError("photos with different names in --into", got, "rename one of them, or use --table")
        copies[target] = photo
    _require_no_earlier_label(root, into, copies, without)
    copies = {target: photo for target, photo in copies.items() if not target.exists()}
    for target, photo in copies.items():
        with replacing(target) as temporary:
            shutil.copyfile(root / photo, temporary)
    return len(copies)


def _require_no_earlier_label(root: Path, into: Path, copies: Mapping[Path, str], without: Iterable[str]) -> None:
    held: defaultdict[str, list[Path]] = defaultdict(list)
    for path in into.rglob("*") if into.is_dir() else ():
        if path.is_file():
            held[path.name].append(path)
    targets: dict[str, Path | None] = dict.fromkeys(without)
    targets |= {photo: target for target, photo in copies.items()}
    for photo, target in targets.items():
        for found in held[_name_of(photo)]:
            is_same = filecmp.cmp(root / photo, found, shallow=False)
            if found == target and not is_same:
                raise RunError("no other photo of this name in --into", f"'{found}'", "choose another --into")
            if found != target and is_same:
                changed = "removed" if target is None else f"changed to '{target.parent.name}'"
                raise RunError(
                    f"'{photo}' in --into only with its present label",
                    f"'{found}', from before its label was {changed}",
                    "remove this file, or choose another --into",
                )


def _name_of(photo: str) -> str:
    # Always the whole path: a photo keeps its name when another folder gets one of the same name.
    return photo.replace("/", "__")


def table_header(splits: Mapping[str, str]) -> str:
    """Returns the first line of a table of labels; `splits` is that of `write_label_table`."""
    return "image,label,split\n" if splits else "image,label\n"


def require_own_table(table: Path, reviewed: Collection[str]) -> None:
    """Raises a RunError if an existing table labels a photo that is not in `reviewed`: it is not of this review."""
    if not table.exists():
        return
    with table.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        other = next((row[0] for row in list(csv.reader(lines))[1:] if row and row[0] not in reviewed), None)
    if other is not None:
        got = f"'{table}', with a label of '{other}', which this review does not know"
        raise RunError("a new file or an earlier result for --table", got, "choose another --table")


def write_label_table(labels: Mapping[str, str], table: Path, splits: Mapping[str, str]) -> None:
    """Writes a CSV with the columns image, label and (with `splits`, photo -> "test") split, for `train --labels`."""
    rows = ((*row, *((splits[row[0]],) if splits else ())) for row in sorted(labels.items()))
    write_text(table, table_header(splits) + csv_text(rows))

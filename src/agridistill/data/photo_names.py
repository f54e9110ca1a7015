"""Which photo a cell of a table means: by a path, by the end of one, or by the file's name."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from agridistill.errors import DataError


class PhotoFinder:
    """Finds the photo that a cell names.

    Args:
        root: the data folder.
        file: the table; paths may start from its folder.
        paths: of the photos, relative to the data folder.
    """

    def __init__(self, root: Path, file: Path, paths: Iterable[str]) -> None:
        self._file = file
        self._above = _keys(root.resolve().as_posix())
        self._starts = [(), *self._below(root, file.parent)]
        self._by_name: defaultdict[str, list[str]] = defaultdict(list)
        self._by_stem: defaultdict[str, list[str]] = defaultdict(list)
        self._keys: dict[str, tuple[str, ...]] = {}
        for path in paths:
            self._keys[path] = keys = _keys(path)
            self._by_name[keys[-1]].append(path)
            self._by_stem[os.path.splitext(keys[-1])[0]].append(path)  # noqa: PTH122 - Path is slow

    @staticmethod
    def _below(root: Path, folder: Path) -> list[tuple[str, ...]]:
        try:
            return [_keys(folder.resolve().relative_to(root.resolve()).as_posix())]
        except ValueError:
            return []

    def found(self, cells: Sequence[str]) -> int:
        """How many cells name a photo."""
        alone = name_one_folder(cells)
        return sum(bool(self.candidates(cell, one_folder=alone)) for cell in cells)

    def find(self, cell: str, line: int, *, one_folder: bool) -> str | None:
        """The path of the photo; None where there is none.

        Args:
            cell: that names it.
            line: of the table, for the error.
            one_folder: whether all cells name the same folder or none (`name_one_folder`).

        Raises:
            DataError: several fit.
        """
        fitting = self.candidates(cell, one_folder=one_folder)
        # Names that differ in capitals alone.
        exact = [path for path in fitting if path.rsplit("/", 1)[-1] == re.split(r"[/\\]", cell)[-1]]
        fitting = exact or fitting
        if len(fitting) > 1:
            raise DataError(
                "cells that fit one photo each",
                f"'{cell}' in line {line} of '{self._file}', which fits '{fitting[0]}' and '{fitting[1]}'",
                "pass the folder that holds the labelled photos, or write paths into the file",
            )
        return fitting[0] if fitting else None

    def candidates(self, cell: str, *, one_folder: bool = True) -> list[str]:
        """Paths that fit a cell equally well; arguments as for `find`."""
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
        # Folders that contradict the cell's: the photo of another farm or day may have the same name.
        return [path for path in found if one_folder or most >= min(len(folder), len(self._keys[path]) - 1)]


def name_one_folder(cells: Iterable[str]) -> bool:
    """Whether paths name one folder at most: that one says nothing, for the photos may have been moved."""
    return len({_keys(cell)[:-1] for cell in cells if cell}) < 2


def _keys(path: str) -> tuple[str, ...]:
    """The parts of a path, to be compared: one normal form, no capitals, backslashes as slashes."""
    plain = unicodedata.normalize("NFC", path.strip()).casefold()
    return tuple(part for part in re.split(r"[/\\]", plain) if part not in ("", "."))


def _common_end(first: Sequence[str], second: Sequence[str]) -> int:
    count = 0
    for one, two in zip(reversed(first), reversed(second), strict=False):
        if one != two:
            break
        count += 1
    return count

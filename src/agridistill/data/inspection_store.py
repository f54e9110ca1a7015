"""What reading the photos found, kept for the next command: one of the same size and time is not read again.

The store lies in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`), one file for each data folder. It is only
ever a shortcut: where it cannot be read or written, the photos are read.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from agridistill.data.inspection import PhotoRecord
from agridistill.storage import user_cache, write_json

logger = logging.getLogger(__name__)

# Also counts the ways in which a photo is read: looks and errors of another way are not ours.
FORMAT_VERSION = 3
# A photo that changed within the clock tick in which it was read would look unchanged.
_SETTLED_NS = 2_000_000_000


class InspectionStore:
    """Records of the photos of one data folder.

    Args:
        root: the data folder.
        max_pixels: the limit that the photos were read with.
    """

    def __init__(self, root: Path, max_pixels: int) -> None:
        name = sha256(json.dumps([os.fsdecode(root.resolve()), max_pixels]).encode()).hexdigest()[:16]
        self._path = user_cache() / "photos" / f"{name}.json"
        self._root = f"{root}{os.sep}"
        self._known = self._read()
        self._seen: dict[str, list[Any]] = {}
        self._states: dict[str, list[int]] = {}
        self._changed = False

    def find(self, path: str) -> PhotoRecord | None:
        """The record of a photo that has not changed since; None where it must be read."""
        try:
            # Before the photo is read: a change during the reading must not pass for what was read.
            state = _state(self._root + path)
        except OSError:
            return None
        row = self._known.get(path)
        # Nine values, or of a damaged store.
        if isinstance(row, list) and row[:-6] == state:
            self._seen[path] = row
            digest, width, height, phash, look, turned = row[-6:]
            return PhotoRecord(digest, width, height, phash, None, look, tuple(turned))
        self._states[path] = state
        return None

    def add(self, path: str, record: PhotoRecord) -> None:
        """Keeps the record of a photo that was read. Bad photos are read every time: their cause may have gone."""
        state = self._states.pop(path, None)
        if record.error is None and state is not None and time.time_ns() - max(state[1:]) > _SETTLED_NS:
            found = (record.digest, record.width, record.height, record.phash, record.look, record.turned_phashes)
            self._seen[path] = [*state, *found]
            self._changed = True

    def save(self) -> None:
        """Writes the records of the photos that are there now."""
        if not self._changed and self._seen.keys() == self._known.keys():
            return
        try:
            write_json(self._path, {"format": FORMAT_VERSION, "photos": self._seen})
        except (OSError, ValueError):
            logger.debug("no photo records in '%s'", self._path, exc_info=True)

    def _read(self) -> Mapping[str, list[Any]]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            photos = document["photos"] if document["format"] == FORMAT_VERSION else {}
            return photos if isinstance(photos, dict) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def _state(path: str) -> list[int]:
    stat = os.stat(path)  # noqa: PTH116 - asked of every photo at every start: a Path would cost more than the answer
    # The time of the last change of its state cannot be set back, as the time of the last writing can.
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]

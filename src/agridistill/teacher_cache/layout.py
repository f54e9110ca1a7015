"""What a teacher's cache is made of: its key, its records and their blocks. No disk is touched here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK_PHOTOS = 256

Key = Mapping[str, str | int | float | bool]


class Block(NamedTuple):
    """The records of neighbouring photos in one view.

    Attributes:
        number: of the block within the cache, from 0.
        view: counted from 0.
        start: first photo.
        stop: one after the last photo.
    """

    number: int
    view: int
    start: int
    stop: int


class Outputs(NamedTuple):
    """What a teacher says about N views.

    Attributes:
        seeds: `(N,)` uint32, of the views.
        logits: `(N, K)`; NaN where the photo could not be read.
        maps: attention maps `(N, H, W)` or `(N, M, H, W)` by stride, of any scale that float16 can hold.
    """

    seeds: NDArray[np.uint32]
    logits: NDArray[np.floating[Any]]
    maps: dict[int, NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class CacheLayout:
    """Shape of a cache.

    Attributes:
        photos: rows of each view.
        num_classes: K, length of the logits.
        maps: shape of the attention map by stride: `(H, W)`, or `(M, H, W)` for M maps.
    """

    photos: int
    num_classes: int
    maps: Mapping[int, tuple[int, ...]]

    @property
    def dtype(self) -> np.dtype[np.void]:
        """One record, without padding: 4 + 2 K + 2 H W bytes (122 for 10 classes and one 7x7 map)."""
        fields: list[Any] = [("seed", "<u4"), ("logits", "<f2", (self.num_classes,))]
        fields += [(field_of(stride), "<f2", tuple(shape)) for stride, shape in sorted(self.maps.items())]
        return np.dtype(fields)

    @property
    def blocks_per_view(self) -> int:
        """Blocks of one view; the last may be smaller."""
        return -(-self.photos // BLOCK_PHOTOS)

    def bytes_for(self, views: int) -> int:
        """Size of the records of so many views."""
        return views * self.photos * self.dtype.itemsize

    def blocks(self, views: int) -> Iterator[Block]:
        """Every block of so many views, in the order of the file."""
        for view in range(views):
            for index in range(self.blocks_per_view):
                start = index * BLOCK_PHOTOS
                stop = min(start + BLOCK_PHOTOS, self.photos)
                yield Block(view * self.blocks_per_view + index, view, start, stop)

    def to_json(self) -> dict[str, Any]:
        """As it stands in `cache.json`."""
        maps = {str(stride): list(shape) for stride, shape in sorted(self.maps.items())}
        return {"photos": self.photos, "num_classes": self.num_classes, "maps": maps}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> CacheLayout:
        """Reads what `to_json` gave."""
        maps = {int(stride): tuple(int(side) for side in shape) for stride, shape in document["maps"].items()}
        return cls(int(document["photos"]), int(document["num_classes"]), maps)


def digest_of(key: Key) -> str:
    """A short name for a key, 12 hexadecimal digits."""
    return sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:12]


def differences(theirs: Mapping[str, Any], ours: Key) -> list[str]:
    """Which parts of two keys differ, in words."""
    parts = sorted(theirs.keys() | ours.keys())
    return [
        f"{part} {_short(theirs.get(part))}, here {_short(ours.get(part))}"
        for part in parts
        if theirs.get(part) != ours.get(part)
    ]


def field_of(stride: int) -> str:
    """Name of a stage's map in a record."""
    return f"map_s{stride}"


def _short(value: object) -> str:
    """A digest by its beginning, anything else whole."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1…", str(value))

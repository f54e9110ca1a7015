"""Copies of one photo, also flipped, turned, scaled or saved again, found without comparing every pair.

The *look* of a photo is the signs of its lowest 16 x 16 cosine coefficients. A flip changes the signs of the odd
coefficients, a quarter turn exchanges rows and columns besides: the looks of all eight turns follow from one, without
decoding the photo again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agridistill.data.duplicates import candidates, differing_bits
from agridistill.data.grouping import DisjointSets

# Of 256 bits. On 300 photos (black gram, tomato) no copy that was flipped, turned, scaled to a half, brightened or
# saved at quality 30 differs in more than 22 bits. Of all pairs of 13,707 photos under all turns 23 differ in at most
# 40 bits, and each shows one leaf; the first pair of different leaves differs in 49.
COPY_BITS = 40
TURNS = 8
_SIDE = 16
# Copies agree in all 16 bits of one band or more: of 2,520 with at most COPY_BITS, 2,516 (the others were cropped).
_BANDS, _BAND_BITS = 8, 16
# Grey levels. Below it a photo has no look: the signs would be those of noise.
_MIN_CONTRAST = 4
_PIXELS = 32
# A product of matrices is twenty times as quick here as scipy's transform. Rows are frequencies.
_COSINES = np.cos(np.pi * np.outer(np.arange(_SIDE), np.arange(_PIXELS) + 0.5) / _PIXELS).astype(np.float32)


def look_of(pixels: Image.Image) -> str | None:
    """The look of a photo.

    Args:
        pixels: grey, 32 x 32.

    Returns:
        256 bits as 64 hex digits; None for a photo of one colour.
    """
    low, high = cast("tuple[int, int]", pixels.getextrema())
    if high - low < _MIN_CONTRAST:
        return None
    return np.packbits(_COSINES @ np.asarray(pixels, np.float32) @ _COSINES.T > 0).tobytes().hex()


def turns(looks: Iterable[str]) -> Iterator[NDArray[np.bool_]]:
    """The looks of N photos under each of the eight turns and flips: `(N, 16, 16)`, first the photos as they are."""
    packed = np.frombuffer(bytes.fromhex("".join(looks)), np.uint8).reshape(-1, _SIDE * _SIDE // 8)
    upright = np.unpackbits(packed, axis=1).astype(bool).reshape(-1, _SIDE, _SIDE)
    odd = np.arange(_SIDE) % 2 == 1
    for bits in (upright, upright.transpose(0, 2, 1)):
        for left_right in (False, True):
            for up_down in (False, True):
                yield bits ^ (odd & left_right) ^ (odd & up_down)[:, None]


def copy_groups(looks: Mapping[str, str]) -> list[list[str]]:
    """Groups of two and more paths whose looks differ in at most `COPY_BITS` under one of eight turns.

    Args:
        looks: path -> look.
    """
    by_look: dict[str, list[str]] = defaultdict(list)
    for path, look in sorted(looks.items()):
        by_look[look].append(path)
    distinct = sorted(by_look)
    sets = DisjointSets(range(len(distinct)))
    for first, second in _copies(distinct):
        sets.join(first, second)
    groups = (sorted(path for index in group for path in by_look[distinct[index]]) for group in sets.groups())
    return sorted(group for group in groups if len(group) > 1)


def _copies(looks: list[str]) -> Iterator[tuple[int, int]]:
    """Pairs of indices; a pair may come more than once."""
    turned = [bits.reshape(-1, _SIDE * _SIDE) for bits in turns(looks)]
    words = np.stack([_packed(bits, np.uint64) for bits in turned], axis=1)
    for cells in _bands():
        keys = np.stack([_packed(bits[:, cells], np.uint16)[:, 0] for bits in turned], axis=1)
        order = np.argsort(keys, axis=None, kind="stable")
        starts, ends = (np.searchsorted(keys.flat[order], keys[:, 0], side) for side in ("left", "right"))
        for first, place in candidates(order, starts, ends):
            second, turn = np.divmod(place, TURNS)
            near = first < second
            first, second, turn = first[near], second[near], turn[near]
            same = differing_bits(words[first, 0], words[second, turn]).sum(axis=1) <= COPY_BITS
            yield from zip(first[same].tolist(), second[same].tolist(), strict=True)


def _packed(bits: NDArray[np.bool_], word: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(word)


def _bands() -> list[list[int]]:
    """The coefficients of each band: of the lowest, which a copy keeps best, without the mean, dealt out in turn."""
    ordered = sorted(range(1, _SIDE * _SIDE), key=lambda cell: ((cell // _SIDE) ** 2 + (cell % _SIDE) ** 2, cell))
    return [ordered[band : _BANDS * _BAND_BITS : _BANDS] for band in range(_BANDS)]

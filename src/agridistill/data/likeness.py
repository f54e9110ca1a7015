"""Disjoint sets: what belongs together directly or through others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Item = TypeVar("Item", bound=Hashable)


class DisjointSets(Generic[Item]):
    """Union-find with path halving and union by size.

    Example:
        >>> sets = DisjointSets(["a", "b", "c", "d"])
        >>> sets.join("a", "c")
        >>> sets.groups()
        [['a', 'c'], ['b'], ['d']]
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._parent: dict[Item, Item] = {item: item for item in items}
        self._size: dict[Item, int] = dict.fromkeys(self._parent, 1)

    def find(self, item: Item) -> Item:
        """The representative of the item's set."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, first: Item, second: Item) -> None:
        """Makes one set of the two items' sets."""
        large, small = self.find(first), self.find(second)
        if large == small:
            return
        if self._size[large] < self._size[small]:
            large, small = small, large
        self._parent[small] = large
        self._size[large] += self._size[small]

    def join_all(self, items: Iterable[Item]) -> None:
        """Makes one set of all the items' sets."""
        iterator = iter(items)
        first = next(iterator, None)
        if first is None:
            return
        for item in iterator:
            self.join(first, item)

    def groups(self) -> list[list[Item]]:
        """All sets; items and sets in the order in which the items were given."""
        found: dict[Item, list[Item]] = {}
        for item in self._parent:
            found.setdefault(self.find(item), []).append(item)
        return list(found.values())


# Of 64 bits. On 12,700 tomato photos every copy that was scaled, brightened or saved again at quality 30 differs in at
# most 4 bits from its original; from 6 bits on most pairs show different leaves in the same pose.
NEAR_DUPLICATE_BITS = 4
_BANDS = 4
_BAND_BITS = 16
_CHUNK = 1_000_000
_BITS_OF_BYTE = np.array([value.bit_count() for value in range(256)], np.uint8)


def exact_groups(digests: Mapping[str, str]) -> list[list[str]]:
    """Groups of two and more paths with the same content, from path -> digest."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, digest in sorted(digests.items()):
        found[digest].append(path)
    return [paths for paths in found.values() if len(paths) > 1]


def near_groups(hashes: Mapping[str, int], *, max_bits: int = NEAR_DUPLICATE_BITS) -> list[list[str]]:
    """Groups of two and more paths whose hashes differ in at most `max_bits`, directly or through others.

    Args:
        hashes: path -> 64-bit perceptual hash.
        max_bits: 0 to 7.
    """
    by_hash: dict[int, list[str]] = defaultdict(list)
    for path, value in sorted(hashes.items()):
        by_hash[value].append(path)
    values = np.array(sorted(by_hash), np.uint64)
    sets = DisjointSets(by_hash)
    for first, second in near_pairs(values, max_bits=max_bits):
        sets.join(int(values[first]), int(values[second]))
    groups = (sorted(path for value in group for path in by_hash[value]) for group in sets.groups())
    return sorted(group for group in groups if len(group) > 1)


def near_pairs(values: NDArray[np.uint64], *, max_bits: int) -> Iterator[tuple[int, int]]:
    """Pairs of indices of hashes that differ in at most `max_bits` (0 to 7); a pair may come more than once.

    Two hashes that differ in at most 7 bits differ in at most one bit of one of their four 16-bit bands (pigeonhole):
    only hashes that agree so far are compared. Memory does not grow with the number of pairs.
    """
    if not 0 <= max_bits < 2 * _BANDS:
        raise ValueError(f"max_bits must be 0 to {2 * _BANDS - 1}, got {max_bits}")
    masks = [np.uint64(0), *(np.uint64(1 << bit) for bit in range(_BAND_BITS))]
    # Without a differing bit in a band the exact match finds all pairs of up to three bits.
    probes = masks if max_bits >= _BANDS else masks[:1]
    for band in range(_BANDS):
        keys = (values >> np.uint64(band * _BAND_BITS)) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for mask in probes:
            starts = np.searchsorted(ordered, keys ^ mask, "left")
            ends = np.searchsorted(ordered, keys ^ mask, "right")
            for first, second in candidates(order, starts, ends):
                near = (first < second) & (differing_bits(values[first], values[second]) <= max_bits)
                yield from zip(first[near].tolist(), second[near].tolist(), strict=True)


def differing_bits(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many bits differ in each word, in the arrays' shape."""
    differing = np.asarray(first ^ second, order="C").view(np.uint8).reshape(*first.shape, 8)
    return np.asarray(_BITS_OF_BYTE[differing].sum(axis=-1), np.int64)


def candidates(
    order: NDArray[np.intp], starts: NDArray[np.intp], ends: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Pairs (i, order[j]) for starts[i] <= j < ends[i], a chunk at a time: memory does not grow with their number."""
    cumulative = np.cumsum(ends - starts)
    first_row = 0
    while first_row < len(starts):
        done = cumulative[first_row - 1] if first_row else 0
        last_row = max(first_row + 1, int(np.searchsorted(cumulative, done + _CHUNK, "right")))
        counts = (ends - starts)[first_row:last_row]
        rows = np.repeat(np.arange(first_row, last_row), counts)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield rows, order[np.repeat(starts[first_row:last_row], counts) + offsets]
        first_row = last_row


# Of 256 bits. On 300 photos (black gram, tomato) no copy that was flipped, turned, scaled to a half, brightened or
# saved at quality 30 differs in more than 22 bits. Of all pairs of 13,707 photos under all turns 23 differ in at most
# 40 bits, and each shows one leaf; the first pair of different leaves differs in 49.
COPY_BITS = 40
TURNS = 8
_SIDE = 16
# Copies agree in all 16 bits of one band or more: of 2,520 with at most COPY_BITS, 2,516 (the others were cropped).
_LOOK_BANDS = 8
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
    return [ordered[band : _LOOK_BANDS * _BAND_BITS : _LOOK_BANDS] for band in range(_LOOK_BANDS)]

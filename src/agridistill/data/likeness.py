"""Photos recognised again: identical files, copies of one photo, look-alikes, and photos that a model has learnt from.

Groups are found without comparing every pair.

The *look* of a photo is the signs of its lowest 16 x 16 cosine coefficients. A flip changes the signs of the odd
coefficients; a quarter turn also exchanges rows and columns. So one look gives the looks of all eight turns without
decoding the photo again.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from agridistill.manifest import ModelManifest
from agridistill.storage import replacing

logger = logging.getLogger(__name__)

# Of 64 bits. On 12,700 tomato photos every copy that was scaled, brightened or saved again at quality 30 differs in at
# most 4 bits from its original; from 6 bits on most pairs show different leaves in the same pose.
NEAR_DUPLICATE_BITS = 4
# Of 256 bits. On 300 photos (black gram, tomato) no copy that was flipped, turned, scaled to a half, brightened or
# saved at quality 30 differs in more than 22 bits. Of all pairs of 13,707 photos under all turns 23 differ in at most
# 40 bits, and each shows one leaf; the first pair of different leaves differs in 49.
COPY_BITS = 40
TURNS = 8
_SIDE = 16
# Copies agree in all 16 bits of one band or more: of 2,520 with at most COPY_BITS, 2,516 (the others were cropped).
_LOOK_BANDS = 8
_BAND_BITS = 16
# Grey levels. Below it a photo has no look: the signs would be those of noise.
_MIN_CONTRAST = 4
_PIXELS = 32
# Rows are frequencies. A product of matrices is twenty times as fast here as scipy's transform.
_COSINES = np.cos(np.pi * np.outer(np.arange(_SIDE), np.arange(_PIXELS) + 0.5) / _PIXELS).astype(np.float32)
_CHUNK = 1_000_000
_BITS_OF_BYTE = np.array([value.bit_count() for value in range(256)], np.uint8)

LEARNT_NAME, _LEARNT_SUFFIX = "learnt.bin", ".learnt"
_MAGIC = b"agridistill learnt photos 1\n"
# With 9,000 learnt photos, one of 15 million new ones, under eight turns, is taken for one of them by chance.
_ENTRY_BYTES = 5

Value = TypeVar("Value", int, str)
Indices = NDArray[np.intp]
Pairs = Iterator[tuple[Indices, Indices]]


def merge_groups(items: Iterable[str], groups: Iterable[Sequence[str]]) -> list[list[str]]:
    """Joins the groups that share an item, directly or through others.

    Returns:
        Disjoint groups of all items, single ones too; items and groups in the order of `items`.

    Example:
        >>> merge_groups("abcd", ["ac", "cd"])
        [['a', 'c', 'd'], ['b']]
    """
    number_of = {item: number for number, item in enumerate(items)}
    pairs = [(number_of[group[0]], number_of[item]) for group in groups for item in group[1:]]
    first, second = np.array(pairs, np.intp).reshape(-1, 2).T
    merged: dict[int, list[str]] = defaultdict(list)
    for item, label in zip(number_of, _components(len(number_of), iter([(first, second)])), strict=True):
        merged[label].append(item)
    return list(merged.values())


def exact_groups(digests: Mapping[str, str]) -> list[list[str]]:
    """Groups of two and more paths with the same content, from path -> digest."""
    return [paths for paths in _paths_of_values(digests).values() if len(paths) > 1]


def near_groups(hashes: Mapping[str, int]) -> list[list[str]]:
    """Groups of two and more paths with hashes alike, directly or through others, from path -> perceptual hash."""
    paths_of = _paths_of_values(hashes)
    return _groups_of_two(paths_of, near_pairs(np.array(list(paths_of), np.uint64)))


def copy_groups(looks: Mapping[str, str]) -> list[list[str]]:
    """Groups of two or more photos that are copies of one photo, also flipped or turned, from path -> look.

    The looks of two copies differ in at most `COPY_BITS` bits under one of the eight turns and flips.
    """
    paths_of = _paths_of_values(looks)
    return _groups_of_two(paths_of, _copy_pairs(list(paths_of)))


def near_pairs(values: NDArray[np.uint64]) -> Pairs:
    """Pairs of indices of hashes that differ in at most `NEAR_DUPLICATE_BITS`, as two arrays; a pair may come twice.

    Two hashes that differ in at most 7 bits differ in at most one bit of one of their four 16-bit bands (pigeonhole):
    only hashes that agree so far are compared.
    """
    masks = [np.uint64(0), *(np.uint64(1 << bit) for bit in range(_BAND_BITS))]
    for band in range(64 // _BAND_BITS):
        keys = (values >> np.uint64(band * _BAND_BITS)) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        for mask in masks:
            starts, ends = (np.searchsorted(keys[order], keys ^ mask, side) for side in ("left", "right"))
            for first, second in _candidates(order, starts, ends):
                near = (first < second) & (_differing_bits(values[first], values[second]) <= NEAR_DUPLICATE_BITS)
                yield first[near], second[near]


def look_of(pixels: Image.Image) -> str | None:
    """The look of a photo, grey of 32 x 32: 256 bits as 64 hex digits; None for a photo of one colour."""
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


def _copy_pairs(looks: list[str]) -> Pairs:
    turned = [bits.reshape(-1, _SIDE * _SIDE) for bits in turns(looks)]
    words = np.stack([_packed(bits, np.uint64) for bits in turned], axis=1)
    # Each band has some of the lowest coefficients, which a copy keeps best; the mean is in none.
    cells = sorted(range(1, _SIDE * _SIDE), key=lambda cell: ((cell // _SIDE) ** 2 + (cell % _SIDE) ** 2, cell))
    for band in range(_LOOK_BANDS):
        in_band = cells[band : _LOOK_BANDS * _BAND_BITS : _LOOK_BANDS]
        keys = np.stack([_packed(bits[:, in_band], np.uint16)[:, 0] for bits in turned], axis=1)
        order = np.argsort(keys, axis=None, kind="stable")
        starts, ends = (np.searchsorted(keys.flat[order], keys[:, 0], side) for side in ("left", "right"))
        for first, place in _candidates(order, starts, ends):
            second, turn = np.divmod(place, TURNS)
            once = first < second
            first, second, turn = first[once], second[once], turn[once]
            near = _differing_bits(words[first, 0], words[second, turn]).sum(axis=1) <= COPY_BITS
            yield first[near], second[near]


def _packed(bits: NDArray[np.bool_], word: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(word)


def _differing_bits(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.int64]:
    differing = np.asarray(first ^ second, order="C").view(np.uint8).reshape(*first.shape, 8)
    return np.asarray(_BITS_OF_BYTE[differing].sum(axis=-1), np.int64)


def _candidates(order: Indices, starts: Indices, ends: Indices) -> Pairs:
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


def _components(count: int, pairs: Pairs) -> list[int]:
    """A number for each of `count` nodes, the same for all that the pairs connect; keeps no pair."""
    labels = np.arange(count)
    for first, second in pairs:
        if len(first):
            edges = coo_array((np.ones(len(first), bool), (labels[first], labels[second])), shape=(count, count))
            labels = connected_components(edges, directed=False)[1][labels]
    return list(labels.tolist())


def _paths_of_values(values: Mapping[str, Value]) -> dict[Value, list[str]]:
    """Value -> its paths, sorted; the values in the order of their first paths."""
    found: dict[Value, list[str]] = defaultdict(list)
    for path, value in sorted(values.items()):
        found[value].append(path)
    return found


def _groups_of_two(paths_of: Mapping[Any, list[str]], pairs: Pairs) -> list[list[str]]:
    """Sorted groups of two and more paths, from pairs of indices of values."""
    merged: dict[int, list[str]] = defaultdict(list)
    for paths, label in zip(paths_of.values(), _components(len(paths_of), pairs), strict=True):
        merged[label] += paths
    return sorted(sorted(paths) for paths in merged.values() if len(paths) > 1)


@dataclass(frozen=True)
class LearntPhotos:
    """The photos that a model has learnt from, in a file beside the model by which `evaluate` recognises them.

    These are the photos of training and validation (which chose its epoch and threshold), those of the run that it
    began from, and its teacher's. The file has five bytes for each photo, of a hash of its perceptual hash: nothing of
    the photo can be seen, and copies are recognised as well: under other names, flipped, turned, and about nine in ten
    of the resized and recompressed ones. 9,000 photos take 45 kB.
    """

    entries: frozenset[bytes]  # five bytes for each look of a photo

    def count(self, photos: Iterable[Iterable[int]]) -> int:
        """How many photos are among them, by the hashes of each under all turns (`inspection.turned_phashes_of`)."""
        return sum(any(_entry(phash) in self.entries for phash in phashes) for phashes in photos)


def learnt_path(model: Path) -> Path:
    """`RUN/learnt.bin` of a run folder, `NAME.learnt` beside an artefact."""
    return model / LEARNT_NAME if model.is_dir() else model.with_suffix(_LEARNT_SUFFIX)


def write_learnt(
    path: Path, data_fingerprint: str, phashes: Iterable[int], inherited: Iterable[LearntPhotos] = ()
) -> None:
    """Writes the file, whole or not at all.

    Args:
        path: of the file.
        data_fingerprint: as in the model's lineage: it ties the file to the model.
        phashes: 64-bit perceptual hashes of the photos.
        inherited: photos of the models that this one learnt from.
    """
    entries = sorted({_entry(phash) for phash in phashes}.union(*(each.entries for each in inherited)))
    with replacing(path) as temporary:
        temporary.write_bytes(_head(data_fingerprint) + b"".join(entries))


def read_learnt(path: Path, manifest: ModelManifest) -> LearntPhotos | None:
    """Reads the file of a model; None without one, and (with a warning) where it is damaged or of another model."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    head = _head(str(manifest.lineage.get("data_fingerprint")))
    entries = content[len(head) :]
    if not content.startswith(head) or len(entries) % _ENTRY_BYTES:
        logger.warning(
            "'%s' is damaged or of another model: photos that the model has learnt from are not recognised", path
        )
        return None
    return LearntPhotos(frozenset(entries[at : at + _ENTRY_BYTES] for at in range(0, len(entries), _ENTRY_BYTES)))


def _head(data_fingerprint: str) -> bytes:
    # Hashed again: a manifest may hold any text.
    return _MAGIC + hashlib.sha256(data_fingerprint.encode("utf-8", "surrogateescape")).digest()


def _entry(phash: int) -> bytes:
    return hashlib.blake2b(phash.to_bytes(8, "big"), digest_size=_ENTRY_BYTES).digest()

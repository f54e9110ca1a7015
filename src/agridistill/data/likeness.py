"""Recognises photos: identical files, copies of one photo, similar photos, and photos that a model was trained on.

Groups are found without comparing every pair of photos.

The *look* of a photo is a fingerprint: the signs of its lowest 16 x 16 cosine coefficients. A flip changes the signs of
the odd coefficients; a quarter turn also exchanges rows and columns. So the look of a photo gives the looks of all its
eight turns and flips, without decoding the photo again.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

# Largest difference between the perceptual hashes (64 bits) of similar photos. On 12,700 tomato photos, every copy that
# was scaled, brightened or saved again at quality 30 differs in at most 4 bits from its original. Most pairs that
# differ in 6 bits or more show different leaves in the same pose.
NEAR_DUPLICATE_BITS = 4
# Largest difference between the looks (256 bits) of copies. On 300 photos (black gram, tomato), no copy that was
# flipped, turned, scaled to a half, brightened or saved at quality 30 differs in more than 22 bits. Of all pairs of
# 13,707 photos under all turns, 23 differ in at most 40 bits, and each of these pairs shows one leaf; the most similar
# pair of different leaves differs in 49 bits.
COPY_BITS = 40
TURNS = 8
_SIDE = 16
# A look has 8 bands of 16 bits; copies are searched among looks that agree in at least one band. Of 2,520 copies that
# differ in at most COPY_BITS, 2,516 do (the other 4 were cropped).
_LOOK_BANDS = 8
_BAND_BITS = 16
# Smallest contrast of a photo with a look, in grey levels: with less, the signs would only depend on noise.
_MIN_CONTRAST = 4
_PIXELS = 32
# The cosine transform as a matrix, one row for each frequency. At this size, a matrix product is twenty times as fast
# as scipy's transform.
_COSINES = np.cos(np.pi * np.outer(np.arange(_SIDE), np.arange(_PIXELS) + 0.5) / _PIXELS).astype(np.float32)
_CHUNK = 1_000_000
_BITS_OF_BYTE = np.array([value.bit_count() for value in range(256)], np.uint8)

LEARNT_NAME, _LEARNT_SUFFIX = "learnt.bin", ".learnt"
_MAGIC = b"agridistill learnt photos 1\n"
# Bytes of a stored hash. With 9,000 stored photos, one of 15 million new photos matches by chance under its 8 turns.
_ENTRY_BYTES = 5

Value = TypeVar("Value", int, str)
Indices = NDArray[np.intp]
Pairs = Iterator[tuple[Indices, Indices]]


def merge_groups(items: Iterable[str], groups: Iterable[Sequence[str]]) -> list[list[str]]:
    """Merges groups that have an item in common, directly or through other groups.

    Returns disjoint groups that contain all `items` (some groups have a single item), in their order.
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
    """Returns sorted groups of two or more paths of identical files, which have equal digests."""
    return [paths for paths in _paths_of_values(digests).values() if len(paths) > 1]


def near_groups(hashes: Mapping[str, int]) -> list[list[str]]:
    """Returns sorted groups of photos whose 64-bit perceptual hashes differ in at most `NEAR_DUPLICATE_BITS` bits.

    Two photos of a group may be similar only through other photos of it.
    """
    paths_of = _paths_of_values(hashes)
    return _groups_of_two(paths_of, near_pairs(np.array(list(paths_of), np.uint64)))


def copy_groups(looks: Mapping[str, str]) -> list[list[str]]:
    """Returns sorted groups of copies of one photo, also if they are flipped, turned, scaled or recompressed.

    Two photos are copies if their fingerprints (`look_of`) differ in at most `COPY_BITS` bits after one of the eight
    turns and flips.
    """
    paths_of = _paths_of_values(looks)
    return _groups_of_two(paths_of, _copy_pairs(list(paths_of)))


def near_pairs(values: NDArray[np.uint64]) -> Pairs:
    """Yields the indices of pairs of 64-bit hashes `(N,)` that differ in at most `NEAR_DUPLICATE_BITS` bits.

    If two hashes differ in at most 7 bits, one of their four 16-bit bands differs in at most one bit. Only hashes with
    such a band are compared. A pair may be yielded several times.
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
    """Computes the fingerprint of a photo of 32 x 32 grey pixels: the signs of its lowest 16 x 16 cosine coefficients.

    Returns 256 bits as 64 hex digits; None if the photo has almost no contrast.
    """
    low, high = cast("tuple[int, int]", pixels.getextrema())
    if high - low < _MIN_CONTRAST:
        return None
    return np.packbits(_COSINES @ np.asarray(pixels, np.float32) @ _COSINES.T > 0).tobytes().hex()


def turns(looks: Iterable[str]) -> Iterator[NDArray[np.bool_]]:
    """Yields the fingerprints of N photos after each of the eight turns and flips, as bits `(N, 16, 16)`.

    The first array is that of the unchanged photos.
    """
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
    # Each band contains some of the lowest coefficients, which change least in a copy. The mean is in no band.
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
    """Yields the pairs (i, order[j]) for starts[i] <= j < ends[i], in chunks of limited size to save memory."""
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
    """Returns the number of its connected component for each of `count` nodes; the pairs are not kept in memory."""
    labels = np.arange(count)
    for first, second in pairs:
        if len(first):
            edges = coo_array((np.ones(len(first), bool), (labels[first], labels[second])), shape=(count, count))
            labels = connected_components(edges, directed=False)[1][labels]
    return list(labels.tolist())


def _paths_of_values(values: Mapping[str, Value]) -> dict[Value, list[str]]:
    """Inverts path -> value to value -> sorted paths; the values are in the order of their first paths."""
    found: dict[Value, list[str]] = defaultdict(list)
    for path, value in sorted(values.items()):
        found[value].append(path)
    return found


def _groups_of_two(paths_of: Mapping[Any, list[str]], pairs: Pairs) -> list[list[str]]:
    """Returns sorted groups of two or more paths, from pairs of values given by their indices in `paths_of`."""
    merged: dict[int, list[str]] = defaultdict(list)
    for paths, label in zip(paths_of.values(), _components(len(paths_of), pairs), strict=True):
        merged[label] += paths
    return sorted(sorted(paths) for paths in merged.values() if len(paths) > 1)


LearntPhotos = frozenset[bytes]
"""A hash of five bytes for each photo that a model was trained on, by which `evaluate` recognises them elsewhere.

They include the photos for validation, and all photos of the teacher and of the run that the training started from.
Copies are recognised, too: all renamed, flipped or turned ones, and about nine in ten resized or recompressed ones.
The hashes are in a file next to the model, and do not reveal what a photo shows.
"""


def count_learnt(learnt: LearntPhotos, photos: Iterable[Iterable[int]]) -> int:
    """Counts the photos that a model was trained on, each given by its hashes in all turns and flips."""
    return sum(any(_entry(phash) in learnt for phash in phashes) for phashes in photos)


def learnt_path(model: Path) -> Path:
    """Returns the path of a model's file of learnt photos: `RUN/learnt.bin` for a run, `X.learnt` for `X.onnx`."""
    return model / LEARNT_NAME if model.is_dir() else model.with_suffix(_LEARNT_SUFFIX)


def write_learnt(
    path: Path, data_fingerprint: str, phashes: Iterable[int], inherited: Iterable[LearntPhotos] = ()
) -> None:
    """Writes the file of a model's `LearntPhotos`, from 64-bit perceptual hashes of its training and validation photos.

    `inherited` are the photos of the teacher and of the run that the training started from. `read_learnt` refuses the
    file if the model's manifest has another data fingerprint.
    """
    entries = sorted({_entry(phash) for phash in phashes}.union(*inherited))
    with replacing(path) as temporary:
        temporary.write_bytes(_head(data_fingerprint) + b"".join(entries))


def read_learnt(path: Path, manifest: ModelManifest) -> LearntPhotos | None:
    """Reads a file of `write_learnt`; None if it does not exist, or (with a warning) is damaged or of another model."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    head = _head(str(manifest.lineage.get("data_fingerprint")))
    entries = content[len(head) :]
    if not content.startswith(head) or len(entries) % _ENTRY_BYTES:
        logger.warning(
            "'%s' is damaged or belongs to another model: evaluation cannot recognise the model's training photos", path
        )
        return None
    return LearntPhotos(frozenset(entries[at : at + _ENTRY_BYTES] for at in range(0, len(entries), _ENTRY_BYTES)))


def _head(data_fingerprint: str) -> bytes:
    # Hash the fingerprint, because a manifest may contain a text of any length.
    return _MAGIC + hashlib.sha256(data_fingerprint.encode("utf-8", "surrogateescape")).digest()


def _entry(phash: int) -> bytes:
    return hashlib.blake2b(phash.to_bytes(8, "big"), digest_size=_ENTRY_BYTES).digest()

from __future__ import annotations

import time

import numpy as np
import pytest

from agridistill.data.likeness import exact_groups, near_groups, near_pairs


def _reference_pairs(values: np.ndarray, max_bits: int) -> set[tuple[int, int]]:
    """Every pair compared."""
    return {
        (i, j)
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if (int(values[i]) ^ int(values[j])).bit_count() <= max_bits
    }


def _clustered_hashes(seed: int) -> np.ndarray:
    """Unique hashes with many pairs at every small distance."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 12, np.uint64)
    values = set(centres.tolist())
    for centre in centres.tolist():
        for flips in range(1, 9):
            for _ in range(3):
                bits = rng.choice(64, flips, replace=False)
                values.add(centre ^ sum(1 << int(bit) for bit in bits))
    return np.array(sorted(values), np.uint64)


@pytest.mark.parametrize("max_bits", range(8))
def test_the_pairs_are_those_of_comparing_all_with_all(max_bits: int) -> None:
    values = _clustered_hashes(seed=max_bits)
    expected = _reference_pairs(values, max_bits)
    assert max_bits == 0 or expected
    assert set(near_pairs(values, max_bits=max_bits)) == expected


def test_distances_that_the_bands_cannot_promise_are_refused() -> None:
    with pytest.raises(ValueError, match="0 to 7"):
        list(near_pairs(np.zeros(2, np.uint64), max_bits=8))


def test_photos_of_one_hash_or_of_near_ones_are_a_group() -> None:
    assert near_groups({"d": 0b1111, "a": 0, "b": 1, "c": 0, "far": 2**64 - 1}, max_bits=1) == [["a", "b", "c"]]


def test_no_photos_have_no_groups() -> None:
    assert near_groups({}) == []


def test_many_flat_photos_cost_no_more_than_others() -> None:
    hashes = {f"flat{number}": 0 for number in range(50_000)}
    start = time.process_time()
    groups = near_groups(hashes)
    assert time.process_time() - start < 10
    assert [len(group) for group in groups] == [50_000]


def test_thirty_thousand_hashes_take_seconds() -> None:
    values = np.unique(np.random.default_rng(0).integers(0, 2**64, 30_000, np.uint64))
    start = time.process_time()
    pairs = set(near_pairs(values, max_bits=4))
    assert time.process_time() - start < 10
    assert pairs == set()


def test_exact_groups_hold_identical_files_only() -> None:
    assert exact_groups({"b": "1", "a": "1", "c": "2"}) == [["a", "b"]]

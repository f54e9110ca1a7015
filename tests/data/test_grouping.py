from __future__ import annotations

import numpy as np

from agridistill.data.likeness import DisjointSets


def _reference_groups(count: int, pairs: list[tuple[int, int]]) -> list[list[int]]:
    """Flood fill over an adjacency list."""
    neighbours: dict[int, set[int]] = {item: set() for item in range(count)}
    for first, second in pairs:
        neighbours[first].add(second)
        neighbours[second].add(first)
    groups, seen = [], set()
    for item in range(count):
        if item in seen:
            continue
        group, waiting = {item}, [item]
        while waiting:
            waiting += (new := neighbours[waiting.pop()] - group)
            group |= new
        seen |= group
        groups.append(sorted(group))
    return groups


def test_groups_are_the_connected_components() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        pairs = [(int(a), int(b)) for a, b in rng.integers(0, 30, (20, 2))]
        sets = DisjointSets(range(30))
        for first, second in pairs:
            sets.join(first, second)
        assert sets.groups() == _reference_groups(30, pairs)


def test_joining_all_of_nothing_changes_nothing() -> None:
    sets = DisjointSets("ab")
    sets.join_all([])
    assert sets.groups() == [["a"], ["b"]]


def test_a_long_chain_is_one_group() -> None:
    sets = DisjointSets(range(50_000))
    for item in range(49_999):
        sets.join(item + 1, item)
    assert len(sets.groups()) == 1

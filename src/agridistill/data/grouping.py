"""Disjoint sets: what belongs together directly or through others."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

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

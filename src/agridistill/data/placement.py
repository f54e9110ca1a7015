"""Which part each leaf group goes to: every class near its fractions, no class without a part that it can fill."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agridistill.data.samples import Sample

# Photos placed over all trials: bounds the time on large folders, and leaves many trials to small ones.
_PLACEMENTS = 100_000
_MAX_TRIALS = 100


@dataclass(frozen=True)
class LeafGroup:
    """The photos of one leaf.

    Attributes:
        paths: sorted.
        counts: pairs of (class, photos); one pair but for files that stand under two labels.
    """

    paths: tuple[str, ...]
    counts: tuple[tuple[int, int], ...]


def leaf_groups(samples: Iterable[Sample]) -> list[LeafGroup]:
    """Groups samples by leaf id; the same groups in the same order for any order of the samples."""
    by_leaf: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_leaf[sample.leaf_id].append(sample)
    groups = []
    for leaf_id in sorted(by_leaf):
        members = by_leaf[leaf_id]
        counts = tuple(sorted(Counter(sample.label for sample in members).items()))
        groups.append(LeafGroup(tuple(sorted(sample.path for sample in members)), counts))
    return sorted(groups, key=lambda group: group.paths)


def place(groups: Sequence[LeafGroup], fractions: Sequence[float], seed: int) -> list[int]:
    """Gives each group a part.

    Large groups are placed first, each where its classes lack most; of many seeded orders the one with the least
    deviation is taken.

    Args:
        groups: as from `leaf_groups`.
        fractions: wanted shares of train (0), val (1) and test (2); a part with share 0 stays empty.
        seed: of the orders that are tried.
    """
    placement = _Placement(groups, fractions)
    trials = max(1, min(_MAX_TRIALS, _PLACEMENTS // max(1, len(groups))))
    attempts = (placement.attempt(np.random.default_rng([seed, trial])) for trial in range(trials))
    return min(attempts, key=lambda attempt: attempt[0])[1]


class _Placement:
    """Places leaf groups into train (0), val (1) and test (2)."""

    def __init__(self, groups: Sequence[LeafGroup], fractions: Sequence[float]) -> None:
        self._groups = groups
        self._used = [part for part in range(3) if fractions[part] > 0]
        n_classes = 1 + max((label for group in groups for label, _ in group.counts), default=-1)
        totals = np.zeros(n_classes)
        leaves = [0] * n_classes
        for group in groups:
            for label, count in group.counts:
                totals[label] += count
                leaves[label] += 1
        self._totals: list[float] = totals.tolist()
        self._targets: list[list[float]] = np.outer(fractions, totals).tolist()
        # The order in which a class with few leaves gets its parts.
        wanted = [part for part in (0, 2, 1) if part in self._used]
        self._required = [set(wanted[:count]) for count in leaves]

    def attempt(self, rng: np.random.Generator) -> tuple[float, list[int]]:
        """One random order; gives the deviation (lower is better) and the part of each group."""
        sizes = np.array([len(group.paths) for group in self._groups])
        order = np.argsort(-sizes * np.exp(0.5 * rng.standard_normal(len(sizes))), kind="stable")
        counts = [[0.0] * len(self._totals) for _ in range(3)]
        parts = [0] * len(self._groups)
        for index in order.tolist():
            group = self._groups[index]
            parts[index] = min(self._used, key=lambda part: self._added_cost(counts, group, part))
            for label, count in group.counts:
                counts[parts[index]][label] += count
        missing = self._repair(parts, counts)
        return missing + self._cost(counts), parts

    def _added_cost(self, counts: list[list[float]], group: LeafGroup, part: int) -> float:
        """How much the squared deviation grows; a difference of squares, so that one group costs constant time."""
        return sum(
            count * (2 * (counts[part][label] - self._targets[part][label]) + count) / self._totals[label] ** 2
            for label, count in group.counts
        )

    def _cost(self, counts: list[list[float]]) -> float:
        return sum(
            ((counts[part][label] - self._targets[part][label]) / total) ** 2
            for part in self._used
            for label, total in enumerate(self._totals)
            if total
        )

    def _repair(self, parts: list[int], counts: list[list[float]]) -> int:
        """Moves groups into required parts that a class lacks; gives how many stay lacking."""
        by_class: dict[int, list[int]] = defaultdict(list)
        for index, group in enumerate(self._groups):
            for label, _ in group.counts:
                by_class[label].append(index)
        missing = 0
        for label, required in enumerate(self._required):
            for part in (part for part in (0, 2, 1) if part in required):
                if counts[part][label]:
                    continue
                donors = [index for index in by_class[label] if self._may_leave(index, parts, by_class)]
                if not donors:
                    missing += 1
                    continue
                moved = min(donors, key=lambda index: (self._added_cost(counts, self._groups[index], part), index))
                for moved_label, count in self._groups[moved].counts:
                    counts[parts[moved]][moved_label] -= count
                    counts[part][moved_label] += count
                parts[moved] = part
        return missing

    def _may_leave(self, index: int, parts: list[int], by_class: Mapping[int, list[int]]) -> bool:
        """Whether none of the group's classes loses a part that it requires."""
        part = parts[index]
        return all(
            part not in self._required[label] or sum(parts[other] == part for other in by_class[label]) > 1
            for label, _ in self._groups[index].counts
        )

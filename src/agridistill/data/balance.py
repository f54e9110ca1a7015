"""Rare classes as often as common ones: which photos an epoch shows, as a function of the epoch alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Keeps these draws apart from those of the epochs' orders and the first views.
_ORDERS = 1 << 41


def members_of_classes(labels: Sequence[int]) -> list[NDArray[np.int64]]:
    """Positions of the photos of each class that has any."""
    every = np.asarray(labels)
    return [np.flatnonzero(every == label) for label in np.unique(every)]


def balanced_epoch(
    classes: Sequence[NDArray[np.int64]], total: int, *, epoch: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The photos of one epoch, class by class.

    The draws of a class are counted through all epochs and go through its photos in turn, in a new order each time.
    What `total` leaves over goes to the classes in turn.

    Args:
        classes: positions of each class's photos, see `members_of_classes`.
        total: photos of an epoch.
        epoch: from 0.
        seed: of the orders.

    Returns:
        Positions `(total,)`, and how often each of these photos came before.
    """
    each, left = divmod(total, len(classes))
    positions: list[int] = []
    turns: list[int] = []
    for number, members in enumerate(classes):
        # The j-th left over, through all epochs, is of class j modulo K.
        begin, end = (
            each * before + max(0, -((number - left * before) // len(classes))) for before in (epoch, epoch + 1)
        )
        for turn in range(begin // len(members), (end - 1) // len(members) + 1):
            order = np.random.default_rng((seed, _ORDERS, number, turn)).permutation(members)
            start = turn * len(members)
            part = order[max(begin - start, 0) : end - start]
            positions += part.tolist()
            turns += [turn] * len(part)
    return np.array(positions, np.int64), np.array(turns, np.int64)

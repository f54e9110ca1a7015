"""Pauses between tries that double up to a limit, with jitter."""

from __future__ import annotations

import random


class Backoff:
    """Gives the next pause in seconds: `first_s`, then twice as long each time, at most `longest_s`.

    Each pause is shortened at random, at most to the share `least`: many devices must not retry in the same moment.
    """

    def __init__(self, first_s: float, longest_s: float, *, least: float = 0.5) -> None:
        self.first_s, self.longest_s, self._least = min(first_s, longest_s), longest_s, least
        self._next_s = self.first_s

    def pause_s(self) -> float:
        """The pause before the next try, in seconds."""
        pause, self._next_s = self._next_s, min(2 * self._next_s, self.longest_s)
        return pause * random.uniform(self._least, 1.0)

    def skip_to_longest(self) -> None:
        """Makes the next pause the longest one, where a retry will not help soon."""
        self._next_s = self.longest_s

    def reset(self) -> None:
        """Starts again with the first pause, after a success."""
        self._next_s = self.first_s

"""When people are warned: rules, and whether one holds for what a plot's leaves say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agridistill.errors import ConfigError, nearest

Level = Literal["info", "warning", "critical"]
_QUIET = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_MINUTE_S, _HOUR_S = 60.0, 3600.0


@dataclass(frozen=True)
class Rule:
    """One warning.

    Attributes:
        name: of the rule, unique.
        classes: that are warned of, by name or pattern ("*blight*"); their shares are added up.
        plots: for which it holds, by name or pattern; each plot has an alert of its own.
        share: of the leaves that opens an alert, 0 to 1. Expected share: the mean of the calibrated probabilities.
        rise: instead: so much more in the later half of the window than in the earlier; 0 for none.
        least_leaves: in the window before anything is said; with `rise` in each half.
        window_minutes: how long a leaf counts.
        resolve_share: an alert ends when the share falls below; half of `share` where None.
        repeat_hours: an open alert is told again after so long; 0 for never.
        quiet: hours without messages, local time, as "22:00-06:00"; "" for none. What changed meanwhile is told after.
        forget_days: an alert without new leaves for so long ends.
        level: of its messages.
    """

    name: str
    classes: tuple[str, ...]
    plots: tuple[str, ...] = ("*",)
    share: float = 0.3
    rise: float = 0.0
    least_leaves: int = 5
    window_minutes: float = 60.0
    resolve_share: float | None = None
    repeat_hours: float = 24.0
    quiet: str = ""
    forget_days: float = 7.0
    level: Level = "warning"

    def __post_init__(self) -> None:
        for holds, expected, got in (
            (bool(self.name.strip()), "a name for each rule", "an empty one"),
            (bool(self.classes), "classes to warn of", "none"),
            (bool(self.plots), 'plots, or ["*"] for all', "none"),
            (0 < self.share <= 1, "a share above 0, up to 1", self.share),
            (0 <= self.rise <= 1, "a rise from 0 to 1", self.rise),
            (1 <= self.least_leaves <= 10_000, "1 to 10,000 leaves", self.least_leaves),
            (0 < self.window_minutes <= 60 * 24 * 31, "a window of up to 31 days", self.window_minutes),
            (
                self.resolve_share is None or 0 <= self.resolve_share <= self.share,
                "resolve_share from 0 to the share",
                self.resolve_share,
            ),
            (self.repeat_hours >= 0 and self.forget_days > 0, "positive times", "less"),
            (not self.quiet or bool(_QUIET.fullmatch(self.quiet)), 'quiet hours such as "22:00-06:00"', self.quiet),
            (
                not self.quiet or self.quiet[:5] != self.quiet[6:],
                'quiet hours that end at another time than they begin, such as "22:00-06:00"',
                self.quiet,
            ),
        ):
            if not holds:
                raise ConfigError(expected, str(got), f"correct the rule '{self.name}'")

    @property
    def window_s(self) -> float:
        """How long a leaf counts, in seconds."""
        return self.window_minutes * _MINUTE_S

    @property
    def repeat_s(self) -> float:
        """After which an open alert is told again, in seconds; 0 for never."""
        return self.repeat_hours * _HOUR_S

    @property
    def forget_s(self) -> float:
        """After which an alert without new leaves ends, in seconds."""
        return self.forget_days * 24 * _HOUR_S

    @property
    def resolve_below(self) -> float:
        """The share below which an alert ends."""
        return self.share / 2 if self.resolve_share is None else self.resolve_share

    def concerns(self, plot: str) -> bool:
        """Whether the rule watches a plot."""
        return any(fnmatchcase(plot, pattern) for pattern in self.plots)

    def is_quiet(self, now_s: float) -> bool:
        """Whether no messages are wanted now, by the device's local time."""
        found = _QUIET.fullmatch(self.quiet)
        if not found:
            return False
        hours = [int(part) for part in found.groups()]
        start, end = time(hours[0], hours[1]), time(hours[2], hours[3])
        now = datetime.fromtimestamp(now_s).time()  # noqa: DTZ006 - people's own hours
        return start <= now < end if start <= end else now >= start or now < end

    def indices(self, classes: Sequence[str]) -> list[int]:
        """Which of a model's classes are warned of.

        Raises:
            ConfigError: a name or pattern that fits none of them.
        """
        found: set[int] = set()
        for pattern in self.classes:
            fitting = [index for index, name in enumerate(classes) if fnmatchcase(name, pattern)]
            if not fitting:
                raise ConfigError(
                    f"classes of the model in the rule '{self.name}'", f"'{pattern}'", nearest(pattern, classes)
                )
            found.update(fitting)
        return sorted(found)


@dataclass(frozen=True)
class Finding:
    """What a rule sees in a plot.

    Attributes:
        leaves: in the window.
        share: expected share of the leaves with the rule's classes, 0 to 1; 0 without leaves.
        rise: of that share from the earlier to the later half of the window's time; None where a half has too few.
        holds: the rule's condition.
        over: there are leaves enough to say that it holds no longer.
    """

    leaves: int
    share: float
    rise: float | None
    holds: bool
    over: bool


def find(
    rule: Rule,
    at_s: NDArray[np.float64],
    shares: NDArray[np.float64],
    now_s: float,
    counts: NDArray[np.float64] | None = None,
) -> Finding:
    """Applies a rule to the leaves of one plot.

    Args:
        rule: with its window and limits.
        at_s: `(N,)` when each leaf was seen, by the clock of `now_s`.
        shares: `(N,)` probability that each has one of the rule's classes.
        now_s: by a clock that is never set back.
        counts: `(N,)` how many leaves each of them stands for, with their mean time and share; 1 each where None.
    """
    counts = np.ones(len(at_s)) if counts is None else counts
    inside = at_s >= now_s - rule.window_s
    leaves = int(counts[inside].sum())
    if not leaves:
        return Finding(0, 0.0, None, holds=False, over=False)
    share = _mean(shares, counts, inside)
    later = inside & (at_s >= now_s - rule.window_s / 2)
    earlier = inside & ~later
    enough = leaves >= rule.least_leaves
    rise: float | None = None
    if min(counts[later].sum(), counts[earlier].sum()) >= rule.least_leaves:
        rise = _mean(shares, counts, later) - _mean(shares, counts, earlier)
    if rule.rise:
        # A rise is over when the share falls again; where nobody knows, when hardly any leaf is ill.
        falls = rise <= 0 and share < rule.share if rise is not None else share < rule.resolve_below
        return Finding(leaves, share, rise, holds=rise is not None and rise >= rule.rise, over=enough and falls)
    return Finding(
        leaves, share, rise, holds=enough and share >= rule.share, over=enough and share < rule.resolve_below
    )


def _mean(shares: NDArray[np.float64], counts: NDArray[np.float64], which: NDArray[np.bool_]) -> float:
    return float((shares[which] * counts[which]).sum() / counts[which].sum())

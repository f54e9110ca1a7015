"""Rules that open alerts, the default rule, and the pool of recent leaves that rules count."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time
from fnmatch import fnmatchcase
from glob import escape
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from agridistill.edge.events import Level
from agridistill.errors import ConfigError, nearest

WindowMinutes = Annotated[float, Field(gt=0, le=60 * 24 * 31)]
"""Length of a window in minutes, up to 31 days."""
DEFAULT_RULE_NAME = "ill leaves"
# Two clearly ill leaves of five open an alert; a single one does not.
DEFAULT_SHARE, DEFAULT_LEAST_LEAVES = 0.3, 5
BUCKETS = 400
"""Number of time buckets in a window. Leaves of a bucket are summed, so a window's start is exact to 1/400 of it."""
_QUIET = re.compile(r"((?:[01]\d|2[0-3]):[0-5]\d)-((?:[01]\d|2[0-3]):[0-5]\d)")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_NEGATIONS = frozenset({"not", "non", "no", "un"})


@dataclass(frozen=True)
class Rule:
    """Section [[rules]]: one rule that says when an alert opens and when it ends; see docs/field.md.

    Raises:
        ConfigError: `resolve_share` is above `share`, or `quiet` is not a time span.
    """

    name: Annotated[str, Field(pattern=r"\S")]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]  # names or patterns ("*blight"); their shares are summed
    plots: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)  # names or patterns; each plot has its own alert
    share: Annotated[float, Field(gt=0, le=1)] = DEFAULT_SHARE  # expected share of leaves of `classes` for an alert
    least_leaves: Annotated[int, Field(ge=1, le=10_000)] = DEFAULT_LEAST_LEAVES  # leaves needed in the window
    window_minutes: WindowMinutes = 60.0
    resolve_share: Annotated[float, Field(ge=0)] | None = None  # an alert ends below this share; None: `share` / 2
    repeat_hours: Annotated[float, Field(ge=0)] = 24.0  # hours until an open alert is sent again; 0 for never
    quiet: str = ""  # local hours in which nothing is sent, such as "22:00-06:00"; "" for none
    forget_days: Annotated[float, Field(gt=0)] = 7.0  # an alert ends after so many days without a new leaf
    level: Level = "warning"

    def __post_init__(self) -> None:
        quiet = _QUIET.fullmatch(self.quiet)
        # Equal times are refused: they may mean no hours or all hours.
        if self.quiet and (quiet is None or quiet[1] == quiet[2]):
            raise ConfigError(
                'quiet hours such as "22:00-06:00"', f"quiet = {self.quiet!r}", f"correct the rule '{self.name}'"
            )
        if self.resolve_below > self.share:
            raise ConfigError(
                f"a resolve_share of at most share = {self.share:g}",
                f"resolve_share = {self.resolve_below:g}",
                f"correct the rule '{self.name}'",
            )

    @property
    def window_s(self) -> float:
        """Length of the window in seconds."""
        return 60.0 * self.window_minutes

    @property
    def resolve_below(self) -> float:
        """The share below which an alert ends: `resolve_share`, else half of `share`."""
        return self.share / 2 if self.resolve_share is None else self.resolve_share

    def concerns(self, plot: str) -> bool:
        """Whether the rule applies to a plot."""
        return any(fnmatchcase(plot, pattern) for pattern in self.plots)

    def is_quiet(self, now_s: float) -> bool:
        """Whether a time (seconds since 1970) is within the quiet hours, by the device's local time."""
        found = _QUIET.fullmatch(self.quiet)
        if not found:
            return False
        start, end = map(time.fromisoformat, found.groups())
        now = datetime.fromtimestamp(now_s).time()  # noqa: DTZ006 - people's own hours
        return start <= now < end if start <= end else now >= start or now < end

    def indices(self, classes: Sequence[str]) -> list[int]:
        """Returns the indices of the model's classes that the rule counts.

        Raises:
            ConfigError: a name or pattern of the rule fits no class.
        """
        _require_fitting(self.classes, classes, f"classes of the model in the rule '{self.name}'")
        return [i for i, name in enumerate(classes) if any(fnmatchcase(name, pattern) for pattern in self.classes)]


def is_healthy(name: str, healthy: Sequence[str] = ()) -> bool:
    """Whether a class means healthy leaves: its name contains "healthy" or is "normal", or fits a pattern in `healthy`.

    Example:
        >>> [is_healthy(name) for name in ("Tomato___healthy", "HealthyLeaf", "normal", "Unhealthy", "not_healthy")]
        [True, True, True, False, False]
        >>> is_healthy("Tomato/normal")
        True
    """
    if any(fnmatchcase(name, pattern) for pattern in healthy):
        return True
    words = [word.lower() for word in _WORD.findall(re.split("___|/", name)[-1])]
    if words == ["normal"]:
        return True
    return "healthy" in words and not _NEGATIONS & set(words[: words.index("healthy")])


def ill_classes(classes: Sequence[str], healthy: Sequence[str] = ()) -> list[str]:
    """Returns the classes of a model that are not healthy by `is_healthy`.

    Raises:
        ConfigError: a name or pattern of `healthy` fits no class.
    """
    _require_fitting(healthy, classes, "classes of the model in 'healthy'")
    return [name for name in classes if not is_healthy(name, healthy)]


def _require_fitting(patterns: Sequence[str], classes: Sequence[str], expected: str) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in classes):
            raise ConfigError(expected, f"'{pattern}'", nearest(pattern, classes))


def default_rules(ill: Sequence[str], window_minutes: float) -> tuple[Rule, ...]:
    """Returns one rule that sums the shares of all ill classes; no rule if there is no ill class."""
    return (Rule(DEFAULT_RULE_NAME, tuple(map(escape, ill)), window_minutes=window_minutes),) if ill else ()


def why_nothing_warns(rules: Sequence[Rule], ill: Sequence[str]) -> str | None:
    """Text that says why no alert can open with these rules and ill classes, and the remedy; None if one can open."""
    if rules:
        return None
    if ill:
        return (
            "No alert can open: there are no rules and default_rules is false. Remove that line from watch.toml, or "
            "add [[rules]]."
        )
    return (
        "No alert can open: all classes of the model count as healthy. Add [[rules]] to watch.toml, correct 'healthy' "
        "there, or use a model that knows diseases."
    )


def why_all_is_ill(rules: Sequence[Rule], ill: Sequence[str], classes: Sequence[str]) -> str | None:
    """Text that says why the default rule counts every leaf as ill, and the remedy; None if it does not."""
    if len(ill) < len(classes) or all(rule.name != DEFAULT_RULE_NAME for rule in rules):
        return None
    names = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    return (
        f"No class of the model has a healthy name, so every leaf counts as ill (classes: {names}). Name the healthy "
        'classes in watch.toml: healthy = ["..."], or add [[rules]].'
    )


@dataclass(frozen=True)
class Leaves:
    """Leaves of a plot in N rows, oldest first. A row sums the leaves of a time bucket; K is the number of classes."""

    at_s: NDArray[np.float64]  # (N,) mean time of a row's leaves, in monotonic seconds
    counts: NDArray[np.float64]  # (N,) number of leaves in a row, at least 1
    sums: NDArray[np.float64]  # (N, K) sums of their probabilities

    @property
    def number(self) -> int:
        """Number of leaves in all rows."""
        return int(self.counts.sum())

    def between(self, start_s: float, end_s: float = math.inf) -> Leaves:
        """Returns the rows with a time from `start_s` (inclusive) to `end_s` (exclusive), in monotonic seconds."""
        rows = (self.at_s >= start_s) & (self.at_s < end_s)
        return Leaves(self.at_s[rows], self.counts[rows], self.sums[rows])

    def share(self, classes: Sequence[int]) -> float:
        """Returns the expected share of leaves with one of these classes (indices), 0 to 1; 0 without leaves."""
        return float(self.sums[:, list(classes)].sum() / self.number) if self.number else 0.0


class LeafPool:
    """The recent leaves of all plots. For each window length, leaves are summed in `BUCKETS` time buckets.

    Args:
        classes: the model's classes, in the order of its probabilities.
        windows_s: lengths of the windows that `leaves` can return, in seconds.
    """

    def __init__(self, classes: Sequence[str], windows_s: Sequence[float]) -> None:
        self._columns = 2 + len(classes)
        self._windows_s = tuple(sorted(set(windows_s)))
        # (plot, window): {number of the bucket: [number of leaves, sum of times, sums of probabilities]}.
        self._buckets: dict[tuple[str, float], dict[int, NDArray[np.float64]]] = {}
        self._newest_s: dict[str, float] = {}
        self._came_s: dict[str, float] = {}

    def add(self, plot: str, probabilities: NDArray[np.float64], at_s: float, *, came_s: float | None = None) -> None:
        """Adds one leaf.

        Args:
            plot: name of its plot.
            probabilities: `(K,)`, calibrated, of the K classes.
            at_s: the time for which it counts, in monotonic seconds.
            came_s: when it reached the agent, in monotonic seconds; None for `at_s`.
        """
        came_s = at_s if came_s is None else came_s
        if plot not in self._newest_s:
            self._forget_plots(came_s)
        self._came_s[plot] = came_s
        self._newest_s[plot] = newest_s = max(at_s, self._newest_s.get(plot, at_s))
        row = np.concatenate([[1.0, at_s], probabilities])
        for window_s in self._windows_s:
            length_s = window_s / BUCKETS
            buckets, number = self._buckets.setdefault((plot, window_s), {}), int(at_s // length_s)
            buckets[number] = buckets.get(number, 0.0) + row
            if len(buckets) > 1.1 * BUCKETS:
                for old in [each for each in buckets if each < (newest_s - window_s) // length_s]:
                    del buckets[old]

    def newest_s(self, plot: str) -> float:
        """Returns the time of the newest leaf of a plot, in monotonic seconds; KeyError without leaves."""
        return self._newest_s[plot]

    @property
    def plots(self) -> list[str]:
        """Names of the plots with leaves."""
        return list(self._newest_s)

    def leaves(self, plot: str, window_s: float, now_s: float) -> Leaves:
        """Returns a plot's leaves in the last `window_s` seconds before `now_s`, in monotonic seconds.

        `window_s` must be one of the pool's window lengths.
        """
        buckets = self._buckets.get((plot, window_s), {})
        rows = np.array([buckets[number] for number in sorted(buckets)]).reshape(-1, self._columns)
        return Leaves(rows[:, 1] / rows[:, 0], rows[:, 0], rows[:, 2:]).between(now_s - window_s)

    def _forget_plots(self, now_s: float) -> None:
        for plot in [plot for plot, came_s in self._came_s.items() if came_s < now_s - self._windows_s[-1]]:
            del self._newest_s[plot], self._came_s[plot]
            for window_s in self._windows_s:
                self._buckets.pop((plot, window_s), None)

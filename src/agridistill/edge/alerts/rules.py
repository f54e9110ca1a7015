"""Rules that open and end alerts, the recent leaves that they count, and the health of a plot."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time
from fnmatch import fnmatchcase
from glob import escape
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from agridistill.edge.events import Level
from agridistill.errors import ConfigError, nearest
from agridistill.runtime.verdict import plain_label

WindowMinutes = Annotated[float, Field(gt=0, le=60 * 24 * 31)]
DEFAULT_RULE_NAME = "ill leaves"
# Two clearly ill leaves of five open an alert; a single one does not.
DEFAULT_SHARE, DEFAULT_LEAST_LEAVES = 0.3, 5
NO_LEAVES = "No recent leaves"
PLOT_SCHEMA_VERSION = 2  # of the JSON of `PlotHealth`
_TREND = 0.1  # smaller differences between two windows are noise
BUCKETS = 400  # in a window; leaves of a bucket are summed, so a window's start is exact to 1/400 of it
_QUIET = re.compile(r"((?:[01]\d|2[0-3]):[0-5]\d)-((?:[01]\d|2[0-3]):[0-5]\d)")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_NEGATIONS = frozenset({"not", "non", "no", "un"})


@dataclass(frozen=True)
class Rule:
    """Section [[rules]] of watch.toml: when an alert opens on a plot, and when it ends (docs/field.md).

    Raises:
        ConfigError: `resolve_share` is above `share`, or `quiet` is not two different times such as "22:00-06:00".
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
    forget_days: Annotated[float, Field(gt=0)] = 7.0  # an alert ends after this time without a new leaf
    level: Level = "warning"

    def __post_init__(self) -> None:
        quiet = _QUIET.fullmatch(self.quiet)
        # Equal times are refused: they may mean no hours or all hours.
        if self.quiet and (quiet is None or quiet[1] == quiet[2]):
            raise ConfigError(
                'quiet hours such as "22:00-06:00"', f"quiet = {self.quiet!r}", f"correct it in the rule '{self.name}'"
            )
        if self.resolve_below > self.share:
            raise ConfigError(
                f"a resolve_share of at most share = {self.share:g}",
                f"resolve_share = {self.resolve_below:g}",
                f"correct it in the rule '{self.name}'",
            )

    @property
    def window_s(self) -> float:
        """`window_minutes` in seconds."""
        return 60.0 * self.window_minutes

    @property
    def resolve_below(self) -> float:
        """Share of leaves below which an alert ends, 0 to 1: `resolve_share`, or half of `share` if that is None."""
        return self.share / 2 if self.resolve_share is None else self.resolve_share

    def concerns(self, plot: str) -> bool:
        """Whether the rule applies to a plot."""
        return any(fnmatchcase(plot, pattern) for pattern in self.plots)

    def is_quiet(self, now_s: float) -> bool:
        """Whether a time (seconds since 1970) is in the quiet hours, in which no notification is sent (local time)."""
        found = _QUIET.fullmatch(self.quiet)
        if not found:
            return False
        start, end = map(time.fromisoformat, found.groups())
        now = datetime.fromtimestamp(now_s).time()  # noqa: DTZ006 - people's own hours
        return start <= now < end if start <= end else now >= start or now < end

    def indices(self, classes: Sequence[str]) -> list[int]:
        """Returns the indices of the rule's classes in `classes`; raises ConfigError if a pattern matches none."""
        _require_fitting(self.classes, classes, f"a class of the model in the rule '{self.name}'")
        return [i for i, name in enumerate(classes) if any(fnmatchcase(name, pattern) for pattern in self.classes)]


def is_healthy(name: str, healthy: Sequence[str] = ()) -> bool:
    """Whether a class means healthy leaves, by its name.

    The part of the name after the last `___` or `/` contains "healthy" without a negation or is "normal", or the name
    matches a name or pattern in `healthy`.

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
    """Returns the classes that are not `is_healthy`; raises ConfigError if a pattern of `healthy` matches no class."""
    _require_fitting(healthy, classes, "a class of the model in 'healthy'")
    return [name for name in classes if not is_healthy(name, healthy)]


def _require_fitting(patterns: Sequence[str], classes: Sequence[str], expected: str) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in classes):
            raise ConfigError(expected, f"'{pattern}'", nearest(pattern, classes))


def default_rules(ill: Sequence[str], window_minutes: float) -> tuple[Rule, ...]:
    """Returns one rule that counts the leaves of all ill classes; no rule if `ill` is empty."""
    return (Rule(DEFAULT_RULE_NAME, tuple(map(escape, ill)), window_minutes=window_minutes),) if ill else ()


def why_nothing_warns(rules: Sequence[Rule], ill: Sequence[str]) -> str | None:
    """Returns a warning, with its remedy, if no alert can ever open: there is no rule. Otherwise returns None."""
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
    """Returns a warning, with its remedy, if the default rule counts every leaf as ill. Otherwise returns None."""
    if len(ill) < len(classes) or all(rule.name != DEFAULT_RULE_NAME for rule in rules):
        return None
    names = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    return (
        f"No class of the model has a healthy name, so every leaf counts as ill (classes: {names}). Name the healthy "
        'classes in watch.toml: healthy = ["..."], or add [[rules]].'
    )


@dataclass(frozen=True)
class PlotHealth:
    """Share of ill leaves of one plot in a time window that ends with its last leaf, and in the window before."""

    plot: str
    seen_s: float  # time of its last leaf, seconds since 1970 by the device's clock
    window_s: float = 0.0  # length of a window in seconds
    leaves: int = 0  # leaves in the window; 0 if the last leaf is older than the window
    ill_share: float = 0.0  # 0 to 1: mean over the leaves of the summed probabilities of all ill classes
    ill_label: str | None = None  # the most frequent ill class; None if the model has no ill class
    leaves_before: int = 0  # leaves in the window before
    ill_share_before: float = 0.0  # `ill_share` in the window before
    shares: Mapping[str, float] = field(default_factory=dict)  # by class: mean probability over the leaves; sum to 1
    warned: str | None = None  # class of the open alert; None without one

    @property
    def ill_leaves(self) -> int:
        """Expected number of ill leaves in the window: `ill_share` times `leaves`, rounded."""
        return round(self.ill_share * self.leaves)

    @property
    def trend(self) -> Literal["up", "down", "steady"] | None:
        """Change of the ill share since the window before; "steady" if it is below 0.1.

        None if one of the two windows has fewer than 5 leaves.
        """
        if min(self.leaves, self.leaves_before) < DEFAULT_LEAST_LEAVES:
            return None
        rise = self.ill_share - self.ill_share_before
        return "up" if rise >= _TREND else "down" if rise <= -_TREND else "steady"

    @property
    def label(self) -> str | None:
        """Class that describes the plot; None if it has no leaves in the window and no open alert.

        It is the class of the open alert, else the most frequent ill class if at least 30 % of the leaves are ill, else
        the most frequent class.
        """
        label = self.warned or (self.ill_label if self.ill_share >= DEFAULT_SHARE else None)
        return label or max(self.shares, key=lambda name: self.shares[name], default=None)

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON that is published on the plot's MQTT topic; docs/mqtt.md describes its keys."""
        label = self.label
        return {
            "schema": PLOT_SCHEMA_VERSION,
            "plot": self.plot,
            "seen_s": round(self.seen_s, 1),
            "condition": NO_LEAVES if label is None else plain_label(label),
            "leaves": self.leaves,
            "ill_leaves": self.ill_leaves,
            "ill_share": round(self.ill_share, 4),
            "label": label,
            "probability": None if label is None else round(self.shares.get(label, 0.0), 4),
            "shares": {name: round(share, 4) for name, share in self.shares.items()},
        }


@dataclass(frozen=True)
class Leaves:
    """Leaves of one plot, oldest first. Each of the N rows sums the leaves of one time bucket; K classes."""

    at_s: NDArray[np.float64]  # (N,) mean time of a row's leaves, in monotonic seconds
    counts: NDArray[np.float64]  # (N,) number of leaves in a row, at least 1
    sums: NDArray[np.float64]  # (N, K) sums of their probabilities

    @property
    def number(self) -> int:
        """Number of leaves."""
        return int(self.counts.sum())

    def between(self, start_s: float, end_s: float = math.inf) -> Leaves:
        """Returns the rows with a time from `start_s` (inclusive) to `end_s` (exclusive), in monotonic seconds."""
        rows = (self.at_s >= start_s) & (self.at_s < end_s)
        return Leaves(self.at_s[rows], self.counts[rows], self.sums[rows])

    def share(self, classes: Sequence[int]) -> float:
        """Returns the expected share of leaves in the classes with these indices, 0 to 1; 0 if there are no leaves."""
        return float(self.sums[:, list(classes)].sum() / self.number) if self.number else 0.0


class LeafPool:
    """The recent leaves of all plots. To limit memory, leaves are summed in 400 time buckets of each window."""

    def __init__(self, classes: Sequence[str], windows_s: Sequence[float]) -> None:
        self._columns = 2 + len(classes)
        self._windows_s = tuple(sorted(set(windows_s)))
        # (plot, window): {number of the bucket: [number of leaves, sum of times, sums of probabilities]}.
        self._buckets: dict[tuple[str, float], dict[int, NDArray[np.float64]]] = {}
        self._newest_s: dict[str, float] = {}
        self._came_s: dict[str, float] = {}

    def add(self, plot: str, probabilities: NDArray[np.float64], at_s: float, *, came_s: float | None = None) -> None:
        """Adds a leaf with the calibrated probabilities `(K,)` of the K classes.

        It counts for the time `at_s`; its photo came at `came_s` (None: `at_s`), both in monotonic seconds.
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
        """Returns the time of a plot's newest leaf, in monotonic seconds; KeyError if the plot has no leaves."""
        return self._newest_s[plot]

    @property
    def plots(self) -> list[str]:
        """Plots that have leaves in the pool."""
        return list(self._newest_s)

    def leaves(self, plot: str, window_s: float, now_s: float) -> Leaves:
        """Returns a plot's leaves of the last `window_s` seconds before `now_s` (monotonic seconds).

        `window_s` must be one of the window lengths given to the pool.
        """
        buckets = self._buckets.get((plot, window_s), {})
        rows = np.array([buckets[number] for number in sorted(buckets)]).reshape(-1, self._columns)
        return Leaves(rows[:, 1] / rows[:, 0], rows[:, 0], rows[:, 2:]).between(now_s - window_s)

    def _forget_plots(self, now_s: float) -> None:
        for plot in [plot for plot, came_s in self._came_s.items() if came_s < now_s - self._windows_s[-1]]:
            del self._newest_s[plot], self._came_s[plot]
            for window_s in self._windows_s:
                self._buckets.pop((plot, window_s), None)

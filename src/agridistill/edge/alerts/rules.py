"""When an alert opens: rules, the default rule, and the leaves of the plots over a window of time."""

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
"""Length of a window, up to 31 days."""
DEFAULT_RULE_NAME = "ill leaves"
# Two clearly ill leaves of five open an alert, a single one does not.
DEFAULT_SHARE, DEFAULT_LEAST_LEAVES = 0.3, 5
BUCKETS = 400
"""Of a window: leaves of one bucket are added up, which blurs the window's edge by 1/400 of its length at most."""
_QUIET = re.compile(r"((?:[01]\d|2[0-3]):[0-5]\d)-((?:[01]\d|2[0-3]):[0-5]\d)")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_NEGATIONS = frozenset({"not", "non", "no", "un"})


@dataclass(frozen=True)
class Rule:
    """[[rules]]: when an alert opens and when it ends; see docs/field.md.

    Raises:
        ConfigError: a `resolve_share` above the share, or quiet hours that are none.
    """

    name: Annotated[str, Field(pattern=r"\S")]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]  # names or patterns ("*blight"); their shares are added up
    plots: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)  # names or patterns; each plot has its own alert
    share: Annotated[float, Field(gt=0, le=1)] = DEFAULT_SHARE  # expected share of the leaves that opens an alert
    least_leaves: Annotated[int, Field(ge=1, le=10_000)] = DEFAULT_LEAST_LEAVES  # in the window
    window_minutes: WindowMinutes = 60.0
    resolve_share: Annotated[float, Field(ge=0)] | None = None  # an alert ends below; half of `share` where None
    repeat_hours: Annotated[float, Field(ge=0)] = 24.0  # an open alert is sent again; 0 for never
    quiet: str = ""  # hours without messages, local time, "22:00-06:00"
    forget_days: Annotated[float, Field(gt=0)] = 7.0  # an alert without new leaves ends
    level: Level = "warning"

    def __post_init__(self) -> None:
        quiet = _QUIET.fullmatch(self.quiet)
        # Hours that end when they begin may mean none or all.
        if self.quiet and (quiet is None or quiet[1] == quiet[2]):
            raise ConfigError(
                'quiet hours such as "22:00-06:00"', f"quiet = {self.quiet!r}", f"correct the rule '{self.name}'"
            )
        if self.resolve_below > self.share:
            raise ConfigError(
                f"a resolve_share up to the share {self.share:g}",
                f"{self.resolve_below:g}",
                f"correct the rule '{self.name}'",
            )

    @property
    def window_s(self) -> float:
        """Length of the window in seconds."""
        return 60.0 * self.window_minutes

    @property
    def resolve_below(self) -> float:
        """The share below which an alert ends."""
        return self.share / 2 if self.resolve_share is None else self.resolve_share

    def concerns(self, plot: str) -> bool:
        """Whether the rule applies to a plot."""
        return any(fnmatchcase(plot, pattern) for pattern in self.plots)

    def is_quiet(self, now_s: float) -> bool:
        """Whether messages wait now, by the device's local time."""
        found = _QUIET.fullmatch(self.quiet)
        if not found:
            return False
        start, end = map(time.fromisoformat, found.groups())
        now = datetime.fromtimestamp(now_s).time()  # noqa: DTZ006 - people's own hours
        return start <= now < end if start <= end else now >= start or now < end

    def indices(self, classes: Sequence[str]) -> list[int]:
        """Indices of the model's classes that the rule warns of.

        Raises:
            ConfigError: a name or pattern that fits no class.
        """
        _require_fitting(self.classes, classes, f"classes of the model in the rule '{self.name}'")
        return [i for i, name in enumerate(classes) if any(fnmatchcase(name, pattern) for pattern in self.classes)]


def is_healthy(name: str, healthy: Sequence[str] = ()) -> bool:
    """Whether a class is of healthy leaves, by its name or by names and patterns of further healthy classes.

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
    """The classes of a model but those that are healthy by their own name or by a name or pattern of `healthy`.

    Raises:
        ConfigError: a name or pattern of `healthy` that fits no class.
    """
    _require_fitting(healthy, classes, "classes of the model in 'healthy'")
    return [name for name in classes if not is_healthy(name, healthy)]


def _require_fitting(patterns: Sequence[str], classes: Sequence[str], expected: str) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in classes):
            raise ConfigError(expected, f"'{pattern}'", nearest(pattern, classes))


def default_rules(ill: Sequence[str], window_minutes: float) -> tuple[Rule, ...]:
    """One rule for all ill classes, whose shares are added up; none without ill classes."""
    return (Rule(DEFAULT_RULE_NAME, tuple(map(escape, ill)), window_minutes=window_minutes),) if ill else ()


def why_nothing_warns(rules: Sequence[Rule], ill: Sequence[str]) -> str | None:
    """Why no alert can open with these rules and ill classes, and the remedy; None where one can."""
    if rules:
        return None
    if ill:
        return (
            "Nothing can warn: there are no rules and default_rules is false. Remove that line from watch.toml, or "
            "add [[rules]]."
        )
    return (
        "Nothing can warn: all classes of the model count as healthy. Add [[rules]] to watch.toml, correct 'healthy' "
        "there, or use a model that knows diseases."
    )


def why_all_is_ill(rules: Sequence[Rule], ill: Sequence[str], classes: Sequence[str]) -> str | None:
    """Why the default rule would warn of every leaf, and the remedy; None where it would not."""
    if len(ill) < len(classes) or all(rule.name != DEFAULT_RULE_NAME for rule in rules):
        return None
    names = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    return (
        f"No class of the model is healthy by its name, so every leaf counts as ill ({names}). Name the healthy ones "
        'in watch.toml: healthy = ["..."], or add [[rules]].'
    )


@dataclass(frozen=True)
class Leaves:
    """Leaves of a plot, oldest first. A row is one leaf, or the sum of those of one bucket of time."""

    at_s: NDArray[np.float64]  # (N,) mean time of a row's leaves
    counts: NDArray[np.float64]  # (N,) number of leaves in a row, at least 1
    sums: NDArray[np.float64]  # (N, K) sums of their probabilities

    @property
    def number(self) -> int:
        """Of leaves."""
        return int(self.counts.sum())

    def between(self, start_s: float, end_s: float = math.inf) -> Leaves:
        """Those seen from `start_s` on and before `end_s`."""
        rows = (self.at_s >= start_s) & (self.at_s < end_s)
        return Leaves(self.at_s[rows], self.counts[rows], self.sums[rows])

    def share(self, classes: Sequence[int]) -> float:
        """Expected share of the leaves with one of these classes, 0 to 1; 0 without leaves."""
        return float(self.sums[:, list(classes)].sum() / self.number) if self.number else 0.0


class LeafPool:
    """Leaves of all plots, summed in fixed buckets of time for each window.

    Args:
        classes: of the model, in the order of the probabilities.
        windows_s: lengths of the windows in seconds; a longer one counts older leaves, in longer buckets.
    """

    def __init__(self, classes: Sequence[str], windows_s: Sequence[float]) -> None:
        self._columns = 2 + len(classes)
        self._windows_s = tuple(sorted(set(windows_s)))
        # By plot and window, then by the bucket's number: number of leaves, sum of times, sums of probabilities.
        self._buckets: dict[tuple[str, float], dict[int, NDArray[np.float64]]] = {}
        self._newest_s: dict[str, float] = {}
        self._came_s: dict[str, float] = {}

    def add(self, plot: str, probabilities: NDArray[np.float64], at_s: float, *, came_s: float | None = None) -> None:
        """Adds one leaf.

        Args:
            plot: its name.
            probabilities: `(K,)`, calibrated.
            at_s: when it was seen, by a monotonic clock.
            came_s: when it reached the agent, where that was later.
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
        """When the newest leaf of a plot with leaves was seen."""
        return self._newest_s[plot]

    @property
    def plots(self) -> list[str]:
        """Those with leaves."""
        return list(self._newest_s)

    def leaves(self, plot: str, window_s: float, now_s: float) -> Leaves:
        """Leaves in one of the pool's windows that ends now, by the clock of `add`."""
        buckets = self._buckets.get((plot, window_s), {})
        rows = np.array([buckets[number] for number in sorted(buckets)]).reshape(-1, self._columns)
        return Leaves(rows[:, 1] / rows[:, 0], rows[:, 0], rows[:, 2:]).between(now_s - window_s)

    def _forget_plots(self, now_s: float) -> None:
        for plot in [plot for plot, came_s in self._came_s.items() if came_s < now_s - self._windows_s[-1]]:
            del self._newest_s[plot], self._came_s[plot]
            for window_s in self._windows_s:
                self._buckets.pop((plot, window_s), None)

"""When an alert opens: rules, the default rule, and whether a rule holds for the leaves of a plot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time
from fnmatch import fnmatchcase
from glob import escape
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agridistill.errors import ConfigError, nearest

Level = Literal["info", "warning", "critical"]
DEFAULT_RULE_NAME = "ill leaves"
# Two clearly ill leaves of five open an alert, a single one does not.
DEFAULT_SHARE, DEFAULT_LEAST_LEAVES = 0.3, 5
_QUIET = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_NEGATIONS = frozenset({"not", "non", "no", "un"})
_HOUR_S = 3600.0


@dataclass(frozen=True)
class Rule:
    """[[rules]]: when an alert opens and when it ends; see docs/field.md.

    Raises:
        ConfigError: a value out of range.
    """

    name: str
    classes: tuple[str, ...]  # names or patterns ("*blight*"); their shares are added up
    plots: tuple[str, ...] = ("*",)  # names or patterns; each plot has its own alert
    share: float = DEFAULT_SHARE  # expected share of the leaves that opens an alert, 0 to 1
    rise: float = 0.0  # instead: increase of the share from the earlier to the later half of the window; 0 for none
    least_leaves: int = DEFAULT_LEAST_LEAVES  # in the window; with `rise` in each half
    window_minutes: float = 60.0
    resolve_share: float | None = None  # an alert ends below; half of `share` where None
    repeat_hours: float = 24.0  # an open alert is sent again; 0 for never
    quiet: str = ""  # hours without messages, local time, "22:00-06:00"
    forget_days: float = 7.0  # an alert without new leaves ends
    level: Level = "warning"

    def __post_init__(self) -> None:
        quiet = _QUIET.fullmatch(self.quiet)
        checks = (
            ("name", bool(self.name.strip()), "a name for each rule"),
            ("classes", bool(self.classes), "classes to warn of"),
            ("plots", bool(self.plots), 'plots, or ["*"] for all'),
            ("share", 0 < self.share <= 1, "a share above 0, up to 1"),
            ("rise", 0 <= self.rise <= 1, "a rise from 0 to 1"),
            ("least_leaves", 1 <= self.least_leaves <= 10_000, "1 to 10,000 leaves"),
            ("window_minutes", 0 < self.window_minutes <= 60 * 24 * 31, "a window of up to 31 days"),
            ("resolve_share", 0 <= self.resolve_below <= self.share, "resolve_share from 0 to the share"),
            ("repeat_hours", self.repeat_hours >= 0, "repeat_hours of 0 or more"),
            ("forget_days", self.forget_days > 0, "forget_days above 0"),
            ("quiet", not self.quiet or bool(quiet), 'quiet hours such as "22:00-06:00"'),
            (
                "quiet",
                quiet is None or quiet[1] + quiet[2] != quiet[3] + quiet[4],
                'quiet hours that end at another time than they begin, such as "22:00-06:00"',
            ),
        )
        for key, holds, expected in checks:
            if not holds:
                got = getattr(self, key)
                raise ConfigError(expected, f"{key} = {got!r}", f"correct the rule '{self.name}'")

    @property
    def window_s(self) -> float:
        """Length of the window in seconds."""
        return 60.0 * self.window_minutes

    @property
    def repeat_s(self) -> float:
        """Time after which an open alert is sent again, in seconds; 0 for never."""
        return self.repeat_hours * _HOUR_S

    @property
    def forget_s(self) -> float:
        """Time without new leaves after which an alert ends, in seconds."""
        return self.forget_days * 24 * _HOUR_S

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
        hours = [int(part) for part in found.groups()]
        start, end = time(hours[0], hours[1]), time(hours[2], hours[3])
        now = datetime.fromtimestamp(now_s).time()  # noqa: DTZ006 - people's own hours
        return start <= now < end if start <= end else now >= start or now < end

    def indices(self, classes: Sequence[str]) -> list[int]:
        """Indices of the model's classes that the rule warns of.

        Raises:
            ConfigError: a name or pattern that fits no class.
        """
        for pattern in self.classes:
            if not any(fnmatchcase(name, pattern) for name in classes):
                expected = f"classes of the model in the rule '{self.name}'"
                raise ConfigError(expected, f"'{pattern}'", nearest(pattern, classes))
        return [i for i, name in enumerate(classes) if any(fnmatchcase(name, pattern) for pattern in self.classes)]


@dataclass(frozen=True)
class Finding:
    """A rule applied to a plot."""

    leaves: int  # in the window
    share: float  # expected share of the leaves with the rule's classes, 0 to 1; 0 without leaves
    rise: float | None  # from the earlier to the later half of the window; None where a half has too few leaves
    holds: bool  # the rule's condition
    over: bool  # an open alert ends


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
        now_s: end of the window, by a monotonic clock.
        counts: `(N,)` number of leaves in each row, of which `at_s` and `shares` are means; 1 each where None.
    """
    counts = np.ones(len(at_s)) if counts is None else counts
    inside = at_s >= now_s - rule.window_s
    leaves = int(counts[inside].sum())
    if not leaves:
        return Finding(0, 0.0, None, holds=False, over=False)

    def mean(which: NDArray[np.bool_]) -> float:
        return float(np.average(shares[which], weights=counts[which]))

    share = mean(inside)
    later = inside & (at_s >= now_s - rule.window_s / 2)
    earlier = inside & ~later
    enough = leaves >= rule.least_leaves
    rise: float | None = None
    if min(counts[later].sum(), counts[earlier].sum()) >= rule.least_leaves:
        rise = mean(later) - mean(earlier)
    if not rule.rise:
        ends = enough and share < rule.resolve_below
        return Finding(leaves, share, rise, holds=enough and share >= rule.share, over=ends)
    # A rise is over when the share falls again; where a half has too few leaves, when hardly any leaf is ill.
    falls = rise <= 0 and share < rule.share if rise is not None else share < rule.resolve_below
    return Finding(leaves, share, rise, holds=rise is not None and rise >= rule.rise, over=enough and falls)


def is_healthy(name: str, healthy: Sequence[str] = ()) -> bool:
    """Whether a class is of healthy leaves, by its name.

    Args:
        name: of the class.
        healthy: names and patterns of further healthy classes.

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
    for pattern in healthy:
        if not any(fnmatchcase(name, pattern) for name in classes):
            raise ConfigError("classes of the model in 'healthy'", f"'{pattern}'", nearest(pattern, classes))
    return [name for name in classes if not is_healthy(name, healthy)]


def default_rules(ill: Sequence[str], window_minutes: float) -> tuple[Rule, ...]:
    """One rule for all ill classes, whose shares are added up; none without ill classes."""
    return (Rule(DEFAULT_RULE_NAME, tuple(map(escape, ill)), window_minutes=window_minutes),) if ill else ()


def why_nothing_warns(rules: Sequence[Rule], ill: Sequence[str]) -> str | None:
    """Why no alert can open, and the remedy; None where there are rules.

    Args:
        rules: that are applied.
        ill: classes of the model that are not healthy.
    """
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
    """Why the default rule would warn of every leaf, and the remedy; None where it would not.

    Args:
        rules: that are applied.
        ill: classes of the model that are not healthy.
        classes: all of them.
    """
    if len(ill) < len(classes) or all(rule.name != DEFAULT_RULE_NAME for rule in rules):
        return None
    names = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    return (
        f"No class of the model is healthy by its name, so every leaf counts as ill ({names}). Name the healthy ones "
        'in watch.toml: healthy = ["..."], or add [[rules]].'
    )

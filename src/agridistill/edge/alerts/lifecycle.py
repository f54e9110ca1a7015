"""Alerts: a rule that begins to hold for a plot opens one, and it stays the same one until it is resolved."""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from agridistill.edge.alerts.pooling import LeafPool
from agridistill.edge.alerts.rules import Finding, Rule, find
from agridistill.edge.events import Alert
from agridistill.edge.words import leaves_words, plain_label

Change = Literal["opened", "updated", "repeated", "resolved"]
# A smaller change of the share is no news to people; whoever looks sees smaller ones, too.
_NEWS, _SEEN = 0.1, 0.02


@dataclass(frozen=True)
class AlertMessage:
    """Something to tell people.

    Attributes:
        change: what happened.
        alert: as it is now.
        told_s: when people were last told of the alert; 0 for never.
    """

    change: Change
    alert: Alert
    told_s: float

    @property
    def event_id(self) -> str:
        """The same for the same news, so that one told again after a kill is known as a duplicate."""
        told = f"{self.alert.alert_id}\0{self.change}\0{self.told_s!r}"
        return hashlib.sha256(told.encode()).hexdigest()[:32]


@dataclass
class _Watched:
    """An alert, and what people know of it.

    `…_clock` are by a clock that is never set back or forward; `told_s` is for the history, by the device's own.
    """

    alert: Alert
    told_s: float = 0.0
    told_share: float = -1.0
    told_clock: float = 0.0
    seen_clock: float = 0.0

    @property
    def was_told(self) -> bool:
        return self.told_s > 0


class AlertKeeper:
    """Opens, updates and resolves alerts, as the leaves of the plots say.

    Args:
        rules: each with a name of its own.
        classes: of the model, in the order of the probabilities.
        pool: of the leaves, with a window at least as long as the longest of the rules.
        clock_s: now, by the pool's clock.
        now_s: now, by the device's clock.
        known: alerts from before a restart that are open, or whose end people were not told (`is_end_told`), each with
            when people were last told of it (0: not yet). Of several of one rule and plot an open one goes on, of
            several such the first; the others are over.
        seen_s: of plots, when the last leaf before the restart was seen, by the device's clock.
        elsewhere: the same as `known`, of sources that are watched no more: they end.

    Raises:
        ConfigError: a rule's class is none of the model's.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        classes: Sequence[str],
        pool: LeafPool,
        known: Iterable[tuple[Alert, float]] = (),
        *,
        clock_s: float = 0.0,
        now_s: float = 0.0,
        seen_s: Mapping[str, float] | None = None,
        elsewhere: Iterable[tuple[Alert, float]] = (),
    ) -> None:
        self._rules = {rule.name: rule for rule in rules}
        self._indices = {rule.name: rule.indices(classes) for rule in rules}
        self._classes, self._pool = tuple(classes), pool
        self._open: dict[tuple[str, str], _Watched] = {}
        # By id: another source may have a plot of the same name.
        self._ending: dict[str, _Watched] = {}
        self._changed: dict[str, tuple[Alert, float]] = {}
        for alert, told_s in elsewhere:
            self._end(_Watched(alert, told_s), now_s)
        for alert, told_s in sorted(known, key=lambda pair: pair[0].state != "open"):
            if (alert.rule, alert.plot) in self._open:
                self._supersede(alert, told_s, now_s)
            else:
                self._go_on(alert, told_s, (seen_s or {}).get(alert.plot, told_s), clock_s, now_s)

    @property
    def open(self) -> list[Alert]:
        """Alerts that are open now."""
        # A copy: other threads ask, too.
        return [watched.alert for watched in list(self._open.values()) if watched.alert.state == "open"]

    def look(self, plot: str, *, clock_s: float, now_s: float, until_s: float | None = None) -> None:
        """Applies all rules to a plot.

        Args:
            plot: its name.
            clock_s: of the pool, never set back.
            now_s: of people: seconds since 1970 by the device's clock.
            until_s: where the rules' windows end, by the pool's clock; None ends them now.
        """
        rules = [rule for rule in self._rules.values() if rule.concerns(plot)]
        if not rules:
            return
        until_s = clock_s if until_s is None else until_s
        remembered = self._pool.leaves(plot, until_s)
        for rule in rules:
            leaves = remembered.since(until_s - rule.window_s)
            shares = leaves.sums[:, self._indices[rule.name]].sum(axis=1) / leaves.counts
            found = find(rule, leaves.at_s, shares, until_s, leaves.counts)
            self._apply(rule, plot, found, self._worst(rule, leaves.sums.sum(axis=0)), clock_s, now_s)

    def messages(self, *, clock_s: float, now_s: float) -> list[AlertMessage]:
        """What people have to be told now; each is given again until `told` is called.

        Args:
            clock_s: of the pool, never set back.
            now_s: seconds since 1970 by the device's clock.
        """
        found = []
        for watched in (*self._ending.values(), *self._open.values()):
            rule = self._rules.get(watched.alert.rule)
            if rule is not None and rule.is_quiet(now_s):
                continue
            change = _change(watched, rule, clock_s)
            if change is not None:
                found.append(AlertMessage(change, watched.alert, watched.told_s))
        return found

    def told(self, message: AlertMessage, *, clock_s: float, now_s: float) -> None:
        """People have been told, or the message is on its way for good."""
        key = message.alert.rule, message.alert.plot
        watched = self._ending.pop(message.alert.alert_id, None) or self._open[key]
        # Never before its end, also where the clock was set back since: `is_end_told` compares the two.
        watched.told_s = max(now_s, 1.0, watched.alert.resolved_s or 0.0)
        watched.told_clock, watched.told_share = clock_s, message.alert.share
        self._changed[watched.alert.alert_id] = watched.alert, watched.told_s
        if self._open.get(key) is watched and watched.alert.state == "resolved":
            del self._open[key]

    def tidy(self, *, clock_s: float, now_s: float) -> None:
        """Ends alerts without new leaves, and those whose rule is gone or concerns their plot no more."""
        for watched in list(self._open.values()):
            alert, rule = watched.alert, self._rules.get(watched.alert.rule)
            if alert.state == "open":
                if rule is None or not rule.concerns(alert.plot):
                    self._resolve(watched, f"{alert.rule}, {alert.plot or 'all'}: the rule is gone", now_s)
                elif clock_s - watched.seen_clock > rule.forget_s:
                    days = f"{rule.forget_days:g} days"
                    self._resolve(watched, f"{alert.rule}, {alert.plot or 'all'}: no leaves for {days}", now_s)

    def changed(self) -> list[tuple[Alert, float]]:
        """Alerts that changed and are not `kept` yet, each with when people were told."""
        return list(self._changed.values())

    def kept(self, changed: Iterable[tuple[Alert, float]]) -> None:
        """What `changed` gave is in the history."""
        for alert, told_s in changed:
            if self._changed.get(alert.alert_id) == (alert, told_s):
                del self._changed[alert.alert_id]

    def _go_on(self, alert: Alert, told_s: float, seen_s: float, clock_s: float, now_s: float) -> None:
        rule = self._rules.get(alert.rule)
        if rule is not None and rule.level != alert.level:
            alert = replace(alert, level=rule.level)
            self._changed[alert.alert_id] = alert, told_s
        share = alert.share if told_s else -1.0
        # What a clock that was set back since calls the future was just now.
        told_ago, seen_ago = (max(0.0, now_s - at_s) for at_s in (told_s, max(alert.updated_s, seen_s)))
        self._open[alert.rule, alert.plot] = _Watched(alert, told_s, share, clock_s - told_ago, clock_s - seen_ago)

    def _end(self, watched: _Watched, now_s: float) -> None:
        self._ending[watched.alert.alert_id] = watched
        if watched.alert.state == "open":
            text = f"{watched.alert.rule}, {watched.alert.plot or 'all'}: another source is watched now"
            self._resolve(watched, text, now_s)

    def _supersede(self, alert: Alert, told_s: float, now_s: float) -> None:
        # Nobody is told: people would take it for the end of the one that goes on.
        if alert.state == "open":
            text = f"{alert.rule}, {alert.plot or 'all'}: another alert goes on instead"
            alert = replace(alert, state="resolved", updated_s=now_s, resolved_s=now_s, text=text)
        self._changed[alert.alert_id] = alert, max(told_s, alert.resolved_s or 0.0)

    def _apply(self, rule: Rule, plot: str, found: Finding, label: str, clock_s: float, now_s: float) -> None:
        watched = self._open.get((rule.name, plot))
        if watched is not None and found.leaves:
            watched.seen_clock = clock_s
        if watched is None or watched.alert.state == "resolved":
            if not found.holds:
                return
            if watched is not None:
                # It came back before people were told that it had gone: the same alert goes on.
                alert = replace(watched.alert, state="open", resolved_s=None)
            else:
                alert = Alert(
                    uuid.uuid4().hex, rule.name, plot, "open", now_s, now_s, None, label, 0.0, 0, "", rule.level
                )
                watched = self._open[rule.name, plot] = _Watched(alert, seen_clock=clock_s)
            self._update(watched, replace(alert, label=label), found, now_s)
            return
        if found.over:
            text = f"{rule.name}, {plot or 'all'}: over, {100 * found.share:.0f} % of {leaves_words(found.leaves)}"
            self._resolve(watched, text, now_s, found)
        elif found.leaves and _is_to_be_seen(found, watched.alert):
            # Of leaves that are hardly ill the most probable class is chance.
            label = label if found.share >= rule.resolve_below else watched.alert.label
            self._update(watched, replace(watched.alert, label=label), found, now_s)

    def _update(self, watched: _Watched, alert: Alert, found: Finding, now_s: float) -> None:
        rising = f", {100 * found.rise:+.0f} points" if found.rise and abs(found.rise) >= _NEWS / 2 else ""
        text = (
            f"{alert.rule}, {alert.plot or 'all'}: {100 * found.share:.0f} % of {leaves_words(found.leaves)}{rising}, "
            f"mostly {plain_label(alert.label)}"
        )
        watched.alert = replace(alert, updated_s=now_s, share=round(found.share, 4), leaves=found.leaves, text=text)
        self._changed[alert.alert_id] = watched.alert, watched.told_s

    def _resolve(self, watched: _Watched, text: str, now_s: float, found: Finding | None = None) -> None:
        alert = watched.alert
        watched.alert = replace(
            alert,
            state="resolved",
            updated_s=now_s,
            resolved_s=now_s,
            share=round(found.share, 4) if found else alert.share,
            leaves=found.leaves if found else alert.leaves,
            text=text,
        )
        # People were told before this, also where the clock was ahead then: `is_end_told` compares the two.
        watched.told_s = min(watched.told_s, math.nextafter(now_s, 0.0))
        self._changed[alert.alert_id] = watched.alert, watched.told_s

    def _worst(self, rule: Rule, summed: np.ndarray) -> str:
        indices = self._indices[rule.name]
        return self._classes[max(indices, key=lambda index: float(summed[index]))]


def is_end_told(alert: Alert, told_s: float) -> bool:
    """Whether people know that a resolved alert is over, by when they were last told of it as an `AlertKeeper` says."""
    return told_s >= (alert.resolved_s or 0.0)


def _is_to_be_seen(found: Finding, alert: Alert) -> bool:
    # Not each single leaf: every change is written to the disk.
    more = abs(found.leaves - alert.leaves) >= max(1, alert.leaves // 4)
    return more or abs(found.share - alert.share) >= _SEEN


def _change(watched: _Watched, rule: Rule | None, clock_s: float) -> Change | None:
    alert = watched.alert
    if alert.state == "resolved":
        # One that opened and ended in quiet hours is told once they are over.
        return "resolved"
    if not watched.was_told:
        return "opened"
    if abs(alert.share - watched.told_share) >= _NEWS:
        return "updated"
    if rule is not None and rule.repeat_s and clock_s - watched.told_clock >= rule.repeat_s:
        return "repeated"
    return None

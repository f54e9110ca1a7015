"""Alerts and health of all plots: alerts open, change and end by rules; a restart continues from the history."""

from __future__ import annotations

import hashlib
import math
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from agridistill.edge.alerts.rules import LeafPool, Leaves, PlotHealth, Rule, ill_classes, why_nothing_warns
from agridistill.edge.events import Alert, Detection, Verdict, leaves_words, moment
from agridistill.edge.store.history import History
from agridistill.runtime.verdict import plain_label

# Smallest change of an alert's share that is sent to people, and that is stored for the page and the state.
_SENT, _STORED = 0.1, 0.02
_LISTED_ALERTS = 50
Change = Literal["opened", "updated", "repeated", "resolved"]
# Only these verdicts come from the model and have calibrated probabilities.
_COUNTED: frozenset[Verdict] = frozenset({"answer", "unsure"})
_RESTORED_DETECTIONS, _RESTORED_ENDS = 20_000, 1000
_FORGET_PLOT_S = 31 * 86_400.0


@dataclass(frozen=True)
class AlertMessage:
    """A notification to send: an alert has opened, changed or ended, or is repeated because it is still open."""

    change: Change
    alert: Alert  # the alert after the change
    notified_s: float  # time of the alert's previous notification, in seconds since 1970; 0 if there was none

    @property
    def event_id(self) -> str:
        """32 hex digits; the same if the notification is sent twice, so receivers can drop duplicates."""
        news = f"{self.alert.alert_id}\0{self.change}\0{self.notified_s!r}"
        return hashlib.sha256(news.encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON that receivers get: the fields of the alert, `change` and `event_id` (docs/mqtt.md)."""
        return {**self.alert.to_json(), "change": self.change, "event_id": self.event_id}


@dataclass
class _Watched:
    """An alert and its last notification. `…_clock` are monotonic seconds, `notified_s` is seconds since 1970."""

    alert: Alert
    notified_s: float = 0.0
    notified_share: float = -1.0
    notified_clock: float = 0.0
    seen_clock: float = 0.0

    def change(self, rule: Rule | None, clock_s: float) -> Change | None:
        """Returns the change that people must be notified of now; None if there is none."""
        if self.alert.state == "resolved":
            return "resolved"  # even if it opened and ended in quiet hours
        if not self.notified_s:
            return "opened"
        if abs(self.alert.share - self.notified_share) >= _SENT:
            return "updated"
        repeat_s = 3600 * rule.repeat_hours if rule is not None else 0
        return "repeated" if repeat_s and clock_s - self.notified_clock >= repeat_s else None


class AlertKeeper:
    """Opens, updates and ends alerts by applying rules to the recent leaves of each plot.

    Args:
        classes: the model's classes, in the order of its probabilities.
        pool: the recent leaves of all plots; its `windows_s` must include the windows of all rules.
        known: alerts to continue after a restart: those that are open, and those that ended but whose end was not sent.
            Each comes with the time of its last notification, in seconds since 1970, or 0 if there was none.
        elsewhere: the same for alerts of sources that are no longer watched; they end at once.
        seen_s: by plot, the time of its last leaf before the restart, in seconds since 1970.
        clocks: returns the current time in monotonic seconds, and in seconds since 1970.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        classes: Sequence[str],
        pool: LeafPool,
        known: Iterable[tuple[Alert, float]] = (),
        *,
        elsewhere: Iterable[tuple[Alert, float]] = (),
        seen_s: Mapping[str, float] | None = None,
        clocks: Callable[[], tuple[float, float]] = lambda: (time.monotonic(), time.time()),
    ) -> None:
        self._rules = {rule.name: rule for rule in rules}
        self._indices = {rule.name: rule.indices(classes) for rule in rules}
        self._classes, self._pool, self._clocks = tuple(classes), pool, clocks
        self._open: dict[tuple[str, str], _Watched] = {}
        # By alert id: plots of two sources may have the same name.
        self._ending: dict[str, _Watched] = {}
        # Alerts to write to the history, by alert id, each with the time of its last notification.
        self.changed: dict[str, tuple[Alert, float]] = {}
        for alert, notified_s in elsewhere:
            watched = self._ending[alert.alert_id] = _Watched(alert, notified_s)
            if alert.state == "open":
                self._resolve(watched, alert, "another source is watched now")
        for alert, notified_s in known:
            self._continue(alert, notified_s, (seen_s or {}).get(alert.plot, notified_s))

    @property
    def open(self) -> list[Alert]:
        """The alerts that are open now; may be read from any thread."""
        # A copy, because other threads read this property.
        return [watched.alert for watched in list(self._open.values()) if watched.alert.state == "open"]

    @property
    def open_classes(self) -> dict[str, set[str]]:
        """By plot, the classes that the rules of its open alerts count."""
        found: dict[str, set[str]] = {}
        for alert in self.open:
            found.setdefault(alert.plot, set()).update(self._classes[i] for i in self._indices.get(alert.rule, ()))
        return found

    @property
    def longest_window_s(self) -> float:
        """Length of the longest window of a rule, in seconds; 0 without rules."""
        return max((rule.window_s for rule in self._rules.values()), default=0.0)

    def counts(self, plot: str, label: str | None) -> bool:
        """Whether a leaf of class `label` on a plot can open an alert: a rule counts this class there."""
        return label in self._classes and any(
            rule.concerns(plot) and self._classes.index(label) in self._indices[rule.name]
            for rule in self._rules.values()
        )

    def look(self, plot: str, until_s: float | None = None) -> None:
        """Applies all rules to a plot; their time windows end at `until_s` (monotonic seconds, None for now)."""
        until_s = self._clocks()[0] if until_s is None else until_s
        for rule in self._rules.values():
            if rule.concerns(plot):
                leaves = self._pool.leaves(plot, rule.window_s, until_s)
                if leaves.number:
                    self._apply(rule, plot, leaves)

    def messages(self) -> list[AlertMessage]:
        """Returns the notifications that are due; every call returns them again until they are passed to `sent`."""
        self._tidy()
        clock_s, now_s = self._clocks()
        found = []
        for watched in (*self._ending.values(), *self._open.values()):
            rule = self._rules.get(watched.alert.rule)
            change = None if rule is not None and rule.is_quiet(now_s) else watched.change(rule, clock_s)
            if change is not None:
                found.append(AlertMessage(change, watched.alert, watched.notified_s))
        return found

    def sent(self, message: AlertMessage) -> None:
        """Records that a notification was stored in the outboxes; `messages` does not return it again."""
        clock_s, now_s = self._clocks()
        key = message.alert.rule, message.alert.plot
        watched = self._ending.pop(message.alert.alert_id, None) or self._open[key]
        # Never before the alert's end, even if the clock was set back since: `is_end_sent` compares the two times.
        watched.notified_s = max(now_s, 1.0, watched.alert.resolved_s or 0.0)
        watched.notified_clock, watched.notified_share = clock_s, message.alert.share
        self.changed[watched.alert.alert_id] = watched.alert, watched.notified_s
        if self._open.get(key) is watched and watched.alert.state == "resolved":
            del self._open[key]

    def _continue(self, alert: Alert, notified_s: float, seen_s: float) -> None:
        clock_s, now_s = self._clocks()
        rule = self._rules.get(alert.rule)
        if rule is not None and rule.level != alert.level:
            alert = replace(alert, level=rule.level)
            self.changed[alert.alert_id] = alert, notified_s
        share = alert.share if notified_s else -1.0
        # Times in the future come from before the clock was set back: they count as now.
        notified_ago, seen_ago = (max(0.0, now_s - at_s) for at_s in (notified_s, max(alert.updated_s, seen_s)))
        watched = _Watched(alert, notified_s, share, clock_s - notified_ago, clock_s - seen_ago)
        self._open[alert.rule, alert.plot] = watched

    def _tidy(self) -> None:
        """Ends alerts without new leaves, and those whose rule is gone or no longer applies to their plot."""
        for watched in list(self._open.values()):
            alert, rule = watched.alert, self._rules.get(watched.alert.rule)
            if alert.state != "open":
                continue
            if rule is None or not rule.concerns(alert.plot):
                self._resolve(watched, alert, "the rule is gone")
            elif self._clocks()[0] - watched.seen_clock > 86_400 * rule.forget_days:
                self._resolve(watched, alert, f"no leaves for {rule.forget_days:g} days")

    def _apply(self, rule: Rule, plot: str, leaves: Leaves) -> None:
        clock_s, now_s = self._clocks()
        indices, watched = self._indices[rule.name], self._open.get((rule.name, plot))
        share, has_enough = leaves.share(indices), leaves.number >= rule.least_leaves
        label = self._classes[indices[int(leaves.sums[:, indices].sum(axis=0).argmax())]]
        if watched is not None:
            watched.seen_clock = clock_s
        if watched is None or watched.alert.state == "resolved":
            if not has_enough or share < rule.share:
                return
            if watched is None:
                new = Alert(uuid.uuid4().hex, rule.name, plot, "open", now_s, now_s, None, label, 0, 0, "", rule.level)
                watched = self._open[rule.name, plot] = _Watched(new, seen_clock=clock_s)
            # An alert that opens again before its end was sent is still the same alert.
            watched.alert = replace(watched.alert, state="open", resolved_s=None)
        else:
            alert = watched.alert
            if has_enough and share < rule.resolve_below:
                ended = replace(alert, share=round(share, 4), leaves=leaves.number)
                self._resolve(watched, ended, f"over, {100 * share:.0f} % of {leaves_words(leaves.number)}")
                return
            # Each change is written to the disk, so not after every leaf.
            if abs(leaves.number - alert.leaves) < max(1, alert.leaves // 4) and abs(share - alert.share) < _STORED:
                return
            if share < rule.resolve_below:
                label = alert.label  # with hardly any ill leaves, the most probable ill class is random
        text = f"{100 * share:.0f} % of {leaves_words(leaves.number)}, mostly {plain_label(label)}"
        self._change(watched, replace(watched.alert, label=label, share=round(share, 4), leaves=leaves.number), text)

    def _resolve(self, watched: _Watched, alert: Alert, reason: str) -> None:
        now_s = self._clocks()[1]
        # Before the end, even if the clock was ahead at the notification: `is_end_sent` compares the two times.
        watched.notified_s = min(watched.notified_s, math.nextafter(now_s, 0.0))
        self._change(watched, replace(alert, state="resolved", resolved_s=now_s), reason)

    def _change(self, watched: _Watched, alert: Alert, text: str) -> None:
        text = f"{alert.rule}, {alert.plot or 'all'}: {text}"
        watched.alert = replace(alert, updated_s=self._clocks()[1], text=text)
        self.changed[alert.alert_id] = watched.alert, watched.notified_s


def is_end_sent(alert: Alert, notified_s: float) -> bool:
    """Whether receivers were notified of a resolved alert's end; `notified_s` is the time of its last notification."""
    return notified_s >= (alert.resolved_s or 0.0)


def open_alerts_json(alerts: Iterable[Alert]) -> list[dict[str, Any]]:
    """Returns the 50 newest open alerts as JSON for the agent's state, newest first.

    Keys: plot, text, rule, level, label, since_s, share, leaves, disease (readable label) and since (ISO 8601).
    """
    found = []
    for alert in sorted(alerts, key=lambda alert: -alert.since_s)[:_LISTED_ALERTS]:
        keys = ("plot", "text", "rule", "level", "label", "since_s", "share", "leaves")
        since = moment(alert.since_s)
        iso = None if since is None else since.isoformat(timespec="seconds")
        found.append({key: getattr(alert, key) for key in keys} | {"disease": plain_label(alert.label), "since": iso})
    return found


class Plots:
    """Counts the leaves of all plots and keeps their health and alerts.

    After a restart it continues from the detections and alerts in `history` that are of the same source. Alerts of
    another source end, because plots with the same name in two folders are different plots.

    Args:
        view_s: length of the time window of `PlotHealth`, in seconds.
        healthy: names or patterns of classes that count as healthy, besides those that `is_healthy` recognises.

    Raises:
        ConfigError: a class name or pattern of a rule or of `healthy` matches no class of the model.
    """

    def __init__(
        self,
        history: History,
        rules: Sequence[Rule],
        classes: Sequence[str],
        *,
        view_s: float,
        healthy: Sequence[str] = (),
    ) -> None:
        self.classes = tuple(classes)
        ill = ill_classes(self.classes, healthy)
        self._ill = [self.classes.index(name) for name in ill]
        self.cannot_warn = why_nothing_warns(rules, ill)
        self._history, self._view_s = history, view_s
        windows_s = [2 * view_s, *(rule.window_s for rule in rules)]
        self._pool = LeafPool(classes, windows_s)
        leaves_s = history.last_leaves(_COUNTED)
        self.alerts = AlertKeeper(
            rules,
            classes,
            self._pool,
            _known_alerts(history, own=True),
            elsewhere=_known_alerts(history, own=False),
            seen_s={plot: came_s for plot, (came_s, _) in leaves_s.items()},
        )
        self._late: set[str] = set()  # plots with photos that count by their EXIF time
        self._health = {plot: PlotHealth(plot, newest_s) for plot, (_, newest_s) in leaves_s.items()}
        self._restore(max(windows_s))

    @property
    def health(self) -> list[PlotHealth]:
        """Health of each plot that had leaves in the last 31 days, sorted by plot; may be read from any thread."""
        now_s, warned = time.time(), {alert.plot: alert.label for alert in self.alerts.open if alert.level != "info"}
        found = []
        for one in sorted(self._health.copy().values(), key=lambda one: one.plot):
            if now_s - one.seen_s <= one.window_s:
                found.append(replace(one, warned=warned.get(one.plot)))
            elif now_s - one.seen_s <= _FORGET_PLOT_S:
                found.append(PlotHealth(one.plot, one.seen_s))
        return found

    def see(self, detection: Detection) -> None:
        """Counts a detection as one leaf of its plot and applies the rules; only for the verdicts answer and unsure."""
        clock_s, now_s = time.monotonic(), time.time()
        if self._add(detection, clock_s, now_s):
            self._look(detection.plot, clock_s, now_s)

    def store(self) -> None:
        """Writes the alerts that changed since the last call to the history; raises OutboxError if that fails."""
        if self.alerts.changed:
            self._history.put_alerts(self.alerts.changed.values())
            self.alerts.changed.clear()

    def _look(self, plot: str, clock_s: float, now_s: float) -> None:
        # With EXIF times the windows end with the newest photo: photos may come late, and a window that ends now
        # would then contain none of them.
        late_s = clock_s - self._pool.newest_s(plot) if plot in self._late else 0.0
        until_s = clock_s - late_s
        self.alerts.look(plot, until_s)
        both = self._pool.leaves(plot, 2 * self._view_s, until_s)
        now, before = both.between(until_s - self._view_s), both.between(-math.inf, until_s - self._view_s)
        if not now.number:
            return
        shares = now.sums.sum(axis=0) / now.number
        worst = max(self._ill, key=lambda index: float(shares[index]), default=None)
        self._health[plot] = PlotHealth(
            plot,
            now_s - late_s - max(0.0, until_s - float(now.at_s[-1])),
            self._view_s,
            now.number,
            now.share(self._ill),
            None if worst is None else self.classes[worst],
            before.number,
            before.share(self._ill),
            dict(zip(self.classes, shares.tolist(), strict=True)),
        )

    def _add(self, detection: Detection, came_s: float, came_at_s: float) -> bool:
        """Adds a detection that came at `came_s` (monotonic) to the pool; returns whether it counts as a leaf."""
        if detection.verdict not in _COUNTED or set(detection.probabilities) != set(self.classes):
            return False
        row = np.array([detection.probabilities[name] for name in self.classes])
        late_s = 0.0
        if detection.taken_s is not None:
            self._late.add(detection.plot)
            late_s = max(0.0, came_at_s - detection.taken_s)
        self._pool.add(detection.plot, row, came_s - late_s, came_s=came_s)
        return True

    def _restore(self, window_s: float) -> None:
        now_s, clock_s = time.time(), time.monotonic()
        found = self._history.recent(_RESTORED_DETECTIONS, since_s=now_s - window_s, own=True)
        # After the clock was set back, detections may lie in the future: they count as if they came now.
        aged = sorted(((max(0.0, now_s - item.at_s), item) for item in found), key=lambda pair: -pair[0])
        for age_s, item in aged:
            self._add(item, clock_s - age_s, now_s - age_s)
        for plot in self._pool.plots:
            self._look(plot, clock_s, now_s)


def _known_alerts(history: History, *, own: bool) -> list[tuple[Alert, float]]:
    resolved = history.alerts_told(state="resolved", limit=_RESTORED_ENDS, own=own)
    opened = history.alerts_told(state="open", limit=_RESTORED_DETECTIONS, own=own)
    return opened + [pair for pair in resolved if not is_end_sent(*pair)]

"""The plots of a device: the health of their leaves, and their alerts; restored from the history after a restart."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from agridistill.edge.alerts.lifecycle import AlertKeeper, is_end_sent
from agridistill.edge.alerts.rules import (
    DEFAULT_LEAST_LEAVES,
    DEFAULT_SHARE,
    LeafPool,
    Rule,
    ill_classes,
    why_nothing_warns,
)
from agridistill.edge.events import Alert, Detection, Verdict
from agridistill.edge.store.history import History
from agridistill.runtime.verdict import plain_label

NO_LEAVES = "No recent leaves"
PLOT_SCHEMA_VERSION = 2
"""Schema version of the JSON of `PlotHealth`."""
# Only these verdicts come from the model and have calibrated probabilities.
_COUNTED: frozenset[Verdict] = frozenset({"answer", "unsure"})
_RESTORED_DETECTIONS, _RESTORED_ENDS = 20_000, 1000
_FORGET_PLOT_S = 31 * 86_400.0
_TREND = 0.1  # smaller differences between two windows are noise


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


class Plots:
    """Counts the leaves of all plots and keeps their health and alerts.

    After a restart it continues from the detections and alerts in `history` that are of the same source. Alerts of
    another source end, because plots with the same name in two folders are different plots.

    Args:
        history: database of detections and alerts.
        rules: conditions under which alerts open and end.
        classes: the model's classes, in the order of its probabilities.
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
        known = _known_alerts(history, own=True)
        self.alerts = AlertKeeper(
            rules,
            classes,
            self._pool,
            known,
            elsewhere=_known_alerts(history, own=False),
            seen_s=_by_plot(history.last_s, {alert.plot for alert, _ in known}),
            clocks=lambda: (time.monotonic(), time.time()),
        )
        self._late: set[str] = set()  # plots with photos that count by their EXIF time
        seen_s = _by_plot(history.newest_leaf_s, history.plots())
        self._health = {plot: PlotHealth(plot, at_s) for plot, at_s in seen_s.items()}
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
        """Writes the alerts that changed since the last call to the history.

        Raises:
            OutboxError: the history cannot be written.
        """
        changed = self.alerts.changed.values()
        if changed:
            self._history.put_alerts([alert for alert, _ in changed], told_s=[at_s for _, at_s in changed])
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
        """Adds a detection to the pool, and returns whether it counts as a leaf.

        `came_s` and `came_at_s` are its arrival by the monotonic clock and by the device's clock.
        """
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


def _by_plot(ask: Callable[[str, Collection[Verdict]], float | None], plots: Iterable[str]) -> dict[str, float]:
    found = {plot: ask(plot, _COUNTED) for plot in plots}
    return {plot: at_s for plot, at_s in found.items() if at_s is not None}

"""What the plots say: their leaves within a window, what these say together, and the alerts that follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from agridistill.edge.alerts.defaults import DEFAULT_LEAST_LEAVES, ill_classes, why_nothing_warns
from agridistill.edge.alerts.leaves import Leaves
from agridistill.edge.alerts.lifecycle import AlertKeeper, AlertMessage, is_end_told
from agridistill.edge.alerts.plot_report import PlotReport, label_of
from agridistill.edge.alerts.pooling import LeafPool, PlotView
from agridistill.edge.alerts.rules import Rule
from agridistill.edge.events import Alert, Detection, Verdict
from agridistill.edge.store.history import History

# A leaf of these verdicts was seen by the model, and its probabilities are calibrated.
_COUNTED: frozenset[Verdict] = frozenset({"answer", "unsure"})
# Of a plot one by one: with 40 classes half a megabyte.
_MOST_LEAVES = 1000
_RESTORED = 20_000
_FEW = 1000
# A plot without leaves for so long is one no more.
_FORGET_PLOT_S = 31 * 86_400.0
# Smaller differences between two windows are noise.
_TREND = 0.1


@dataclass(frozen=True)
class PlotHealth:
    """How ill a plot's leaves are, in the window and in the one before it.

    Attributes:
        plot: its name.
        seen_s: when its last leaf was seen, seconds since 1970 by the device's clock.
        window_s: how long a leaf counts.
        leaves: in the window that ends with the last leaf.
        ill_share: of them, 0 to 1: the mean of their probabilities of the ill classes.
        label: the most frequent ill class; None where the model has none.
        leaves_before: in the window before.
        ill_share_before: of those.
    """

    plot: str
    seen_s: float
    window_s: float
    leaves: int
    ill_share: float
    label: str | None
    leaves_before: int = 0
    ill_share_before: float = 0.0

    @property
    def ill_leaves(self) -> int:
        """How many leaves are expected to be ill."""
        return round(self.ill_share * self.leaves)

    @property
    def trend(self) -> Literal["up", "down", "steady"] | None:
        """Where the ill share goes; None where either window has fewer than 5 leaves."""
        if min(self.leaves, self.leaves_before) < DEFAULT_LEAST_LEAVES:
            return None
        rise = self.ill_share - self.ill_share_before
        return "up" if rise >= _TREND else "down" if rise <= -_TREND else "steady"


class Plots:
    """The leaves and alerts of all plots; goes on after a restart from what the history holds of the same source.

    Alerts of another source end: plots of one name in two folders are two plots.

    Args:
        history: of the device.
        rules: when people are warned.
        classes: of the model.
        window_s: how long a leaf counts, at least as long as the longest of the rules.
        view_s: how long it counts for what a plot's leaves say together.
        healthy: names and patterns of healthy classes, besides those whose name says so.

    Raises:
        ConfigError: a rule's class is none of the model's.
    """

    def __init__(
        self,
        history: History,
        rules: Sequence[Rule],
        classes: Sequence[str],
        *,
        window_s: float,
        view_s: float,
        healthy: Sequence[str] = (),
    ) -> None:
        self.classes = tuple(classes)
        ill = ill_classes(self.classes, healthy)
        self._ill = [self.classes.index(name) for name in ill]
        self.cannot_warn = why_nothing_warns(rules, ill)
        self._history, self._view_s = history, view_s
        self._pool = LeafPool(classes, window_s=window_s, most_leaves=_MOST_LEAVES)
        known = _known(history, own=True)
        self._keeper = AlertKeeper(
            rules,
            classes,
            self._pool,
            known,
            clock_s=time.monotonic(),
            now_s=time.time(),
            seen_s=_by_plot(history.last_s, {alert.plot for alert, _ in known}),
            elsewhere=_known(history, own=False),
        )
        self._late: set[str] = set()  # plots with photos that count by their own time
        self._views: dict[str, PlotView] = {}
        self._health: dict[str, PlotHealth] = {}
        self._seen = _by_plot(history.newest_leaf_s, history.plots())
        self._restore(window_s)

    @property
    def open_alerts(self) -> list[Alert]:
        """Those that are open now."""
        return self._keeper.open

    @property
    def views(self) -> Mapping[str, PlotView]:
        """Of each plot what its leaves said together when it was last seen."""
        return dict(self._views)

    @property
    def health(self) -> list[PlotHealth]:
        """Of each plot with leaves, by name; may be asked from another thread."""
        return sorted(self._health.copy().values(), key=lambda one: one.plot)

    @property
    def reports(self) -> list[PlotReport]:
        """Of each plot with leaves in the last 31 days, by name; may be asked from another thread."""
        now_s, health, views = time.time(), self._health.copy(), self._views.copy()
        warned = {alert.plot: alert.label for alert in self.open_alerts if alert.level != "info"}
        found = []
        for plot, seen_s in sorted(self._seen.copy().items()):
            one, view = health.get(plot), views.get(plot)
            if one is not None and view is not None and now_s - one.seen_s <= one.window_s:
                label = label_of(view.shares, one.ill_share, one.label, warned.get(plot))
                found.append(PlotReport(plot, one.seen_s, one.leaves, one.ill_share, label, view.shares))
            elif now_s - seen_s <= _FORGET_PLOT_S:
                found.append(PlotReport(plot, seen_s))
        return found

    def see(self, detection: Detection) -> None:
        """Takes a new detection in, and applies the rules to its plot."""
        clock_s, now_s = time.monotonic(), time.time()
        if self._add(detection, clock_s, now_s):
            self._look(detection.plot, clock_s, now_s)

    def messages(self) -> list[AlertMessage]:
        """What people have to be told now; given again until `told`."""
        clock_s, now_s = time.monotonic(), time.time()
        self._keeper.tidy(clock_s=clock_s, now_s=now_s)
        return self._keeper.messages(clock_s=clock_s, now_s=now_s)

    def told(self, message: AlertMessage) -> None:
        """A message is on its way for good."""
        self._keeper.told(message, clock_s=time.monotonic(), now_s=time.time())

    def keep(self) -> None:
        """Writes alerts that changed to the history.

        Raises:
            OutboxError: the disk refuses.
        """
        changed = self._keeper.changed()
        if changed:
            alerts, told_s = zip(*changed, strict=True)
            self._history.put_alerts(alerts, told_s=told_s)
            self._keeper.kept(changed)

    def _look(self, plot: str, clock_s: float, now_s: float) -> None:
        # Photos of last week say how the plot was then: a window that ends now would hold none of them.
        late_s = clock_s - self._pool.newest_s(plot) if plot in self._late else 0.0
        until_s = clock_s - late_s
        self._keeper.look(plot, clock_s=clock_s, now_s=now_s, until_s=until_s)
        view = self._pool.view(plot, until_s, within_s=self._view_s)
        if view is not None:
            self._views[plot] = view
            self._health[plot] = self._assess(plot, until_s, now_s - late_s)
            self._seen[plot] = self._health[plot].seen_s

    def _assess(self, plot: str, clock_s: float, now_s: float) -> PlotHealth:
        remembered = self._pool.leaves(plot, clock_s)
        now = remembered.since(clock_s - self._view_s)
        both = remembered.since(clock_s - 2 * self._view_s)
        earlier = len(both.counts) - len(now.counts)
        before = Leaves(both.at_s[:earlier], both.counts[:earlier], both.sums[:earlier], both.logarithms[:earlier])
        summed = now.sums.sum(axis=0)
        worst = max(self._ill, key=lambda index: float(summed[index]), default=None)
        return PlotHealth(
            plot,
            now_s - max(0.0, clock_s - float(now.at_s[-1])),
            self._view_s,
            int(now.counts.sum()),
            self._ill_share(now),
            None if worst is None else self.classes[worst],
            int(before.counts.sum()),
            self._ill_share(before),
        )

    def _ill_share(self, leaves: Leaves) -> float:
        number = float(leaves.counts.sum())
        return float(leaves.sums[:, self._ill].sum()) / number if number else 0.0

    def _add(self, detection: Detection, came_s: float, came_at_s: float) -> bool:
        """Adds a leaf that came at a time, by the pool's clock and by the device's; whether it counts."""
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
        found = self._history.recent(_RESTORED, since_s=now_s - window_s, own=True)
        # A clock that was set back makes detections of the future: they count as of now.
        aged = sorted(((max(0.0, now_s - item.at_s), item) for item in found), key=lambda pair: -pair[0])
        for age_s, item in aged:
            self._add(item, clock_s - age_s, now_s - age_s)
        for plot in self._pool.plots:
            self._look(plot, clock_s, now_s)


def _known(history: History, *, own: bool) -> list[tuple[Alert, float]]:
    resolved = history.alerts_told(state="resolved", limit=_FEW, own=own)
    ended = [pair for pair in resolved if not is_end_told(*pair)]
    return history.alerts_told(state="open", limit=_RESTORED, own=own) + ended


def _by_plot(ask: Callable[[str, Collection[Verdict]], float | None], plots: Iterable[str]) -> dict[str, float]:
    found = {plot: ask(plot, _COUNTED) for plot in plots}
    return {plot: at_s for plot, at_s in found.items() if at_s is not None}

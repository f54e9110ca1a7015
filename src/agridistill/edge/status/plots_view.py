"""The page's view of each plot: how many leaves are ill, of what, and whether it gets worse."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from agridistill.edge.alerts.defaults import DEFAULT_LEAST_LEAVES, DEFAULT_SHARE
from agridistill.edge.alerts.plots import PlotHealth
from agridistill.edge.events import Alert
from agridistill.edge.words import duration_words, leaves_words, moment, plain_label

# Beside the colours, for readers who do not see them; screen readers take the words.
_ICONS = {"ill": "!", "some": "~", "healthy": "✓", "few": "…"}
_TRENDS = {"up": ("▲", "Getting worse"), "down": ("▼", "Getting better"), "steady": ("▶", "Steady")}

_DAY_S = 86_400.0


def plots_html(plots: Sequence[PlotHealth], alerts: Sequence[Alert], now_s: float) -> str:
    """The cards of all plots.

    Args:
        plots: in the order in which they are shown.
        alerts: that are open.
        now_s: by the agent's clock.
    """
    current = [one for one in plots if now_s - one.seen_s <= one.window_s]
    if not current:
        return (
            '<p class="notice">No leaves in this window of time. A subfolder of the photos is a plot, and each photo '
            "of a leaf counts as one leaf.</p>\n"
        )
    warned = {alert.plot for alert in alerts if alert.level != "info"}
    # What needs a look first; sorting keeps the order of the names within.
    current.sort(key=lambda one: list(_ICONS).index(_verdict(one, one.plot in warned)[0]))
    cards = "".join(_card(one, warned=one.plot in warned) for one in current)
    return f'<ul class="plots">\n{cards}</ul>\n'


def badge_html(kind: str, words: str) -> str:
    """A coloured badge with an icon and words.

    Args:
        kind: "ill", "some", "healthy" or "few".
        words: that say the same.
    """
    return f'<p class="badge {kind}"><span aria-hidden="true">{_ICONS[kind]}</span> {words}</p>'


def plot_words(plot: str) -> str:
    """A plot's name as HTML."""
    return f"Plot {escape(plot)}" if plot else "No plot"


def time_html(at_s: float) -> str:
    """A time that the page's script shows in the reader's zone."""
    when = moment(at_s)
    if when is None:
        return "an unknown time"
    return f'<time datetime="{when:%Y-%m-%dT%H:%M:%SZ}">{when:%Y-%m-%d %H:%M} UTC</time>'


def _card(health: PlotHealth, *, warned: bool) -> str:
    kind, words = _verdict(health, warned)
    condition = (
        f"<p>Mostly {escape(plain_label(health.label))}</p>" if health.label is not None and health.ill_leaves else ""
    )
    window = _window_words(health.window_s)
    leaves = leaves_words(health.leaves)
    return (
        f'<li class="plot {kind}"><h3>{plot_words(health.plot)}</h3>{badge_html(kind, words)}'
        f'<p class="number">{health.ill_leaves:,} of {leaves} ill</p>{condition}<p>{_trend_html(health)}</p>'
        f'<p class="soft">Within {window}, last leaf {time_html(health.seen_s)}</p></li>\n'
    )


def _verdict(health: PlotHealth, warned: bool) -> tuple[str, str]:
    if warned:
        return "ill", "Alert open"
    if health.leaves < DEFAULT_LEAST_LEAVES:
        return "few", f"Too few leaves: take {DEFAULT_LEAST_LEAVES}"
    if health.ill_share >= DEFAULT_SHARE:
        return "ill", "Ill"
    if health.ill_share >= DEFAULT_SHARE / 2:
        return "some", "Some ill"
    return "healthy", "Few ill" if health.ill_leaves else "Healthy"


def _trend_html(health: PlotHealth) -> str:
    trend = health.trend
    if trend is None:
        needed = f"{DEFAULT_LEAST_LEAVES} leaves in the {_window_words(health.window_s)} before"
        return f'<span class="soft">No trend yet: it needs {needed}</span>'
    icon, words = _TRENDS[trend]
    shares = f"{100 * health.ill_share:.0f} % ill, {100 * health.ill_share_before:.0f} % before"
    return f'<span aria-hidden="true">{icon}</span> {words}: {shares}'


def _window_words(window_s: float) -> str:
    return "24 h" if window_s == _DAY_S else duration_words(window_s)

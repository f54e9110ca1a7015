"""Renders the local page as HTML: open alerts, plots, the agent's state, the last photos and resolved alerts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from agridistill.edge.alerts.rules import DEFAULT_LEAST_LEAVES, DEFAULT_SHARE, PlotHealth, is_healthy
from agridistill.edge.events import (
    Alert,
    Detection,
    Level,
    bytes_words,
    detection_words,
    duration_words,
    leaves_words,
    moment,
)
from agridistill.edge.state import (
    FRESH_S,
    AgentState,
    broker_words,
    kept_words,
    model_words,
    queue_words,
    source_trouble_words,
    waiting_words,
)
from agridistill.edge.store.history import History
from agridistill.runtime.verdict import plain_label

# Icons repeat the meaning of the colours for readers who do not see these; screen readers read the words.
_ICONS = {"ill": "!", "some": "~", "healthy": "✓", "few": "…"}
_TRENDS = {"up": ("▲", "Getting worse"), "down": ("▼", "Getting better"), "steady": ("▶", "Steady")}

_DAY_S = 86_400.0
REFRESH_S = 5
_SHOWN_DETECTIONS, _SHOWN_ALERTS, _SHOWN_RESOLVED = 24, 100, 10
_LEVELS: tuple[Level, ...] = ("critical", "warning", "info")


def _plots_html(plots: Sequence[PlotHealth]) -> str:
    # Ill plots come first; plots of the same kind stay in the order of their names.
    current = sorted((one for one in plots if one.leaves), key=lambda one: list(_ICONS).index(_verdict(one)[0]))
    if not current:
        return (
            '<p class="notice">There are no recent leaves. Each subfolder of the photos is a plot, and each photo of a '
            "leaf counts as one leaf.</p>\n"
        )
    return f'<ul class="plots">\n{"".join(map(_plot_card, current))}</ul>\n'


def _badge_html(kind: str, words: str) -> str:
    """Renders a badge with the colour and icon of `kind` ("ill", "some", "healthy" or "few") and with words."""
    return f'<p class="badge {kind}"><span aria-hidden="true">{_ICONS[kind]}</span> {words}</p>'


def _plot_words(plot: str) -> str:
    return f"Plot {escape(plot)}" if plot else "No plot"


def _time_html(at_s: float) -> str:
    """Renders a time in UTC, which the page's script converts to the reader's time zone."""
    when = moment(at_s)
    if when is None:
        return "an unknown time"
    return f'<time datetime="{when:%Y-%m-%dT%H:%M:%SZ}">{when:%Y-%m-%d %H:%M} UTC</time>'


def _plot_card(health: PlotHealth) -> str:
    kind, words = _verdict(health)
    condition = ""
    if health.ill_label is not None and health.ill_leaves:
        condition = f"<p>Mostly {escape(plain_label(health.ill_label))}</p>"
    return (
        f'<li class="plot {kind}"><h3>{_plot_words(health.plot)}</h3>{_badge_html(kind, words)}'
        f'<p class="number">{health.ill_leaves:,} of {leaves_words(health.leaves)} ill</p>'
        f"{condition}<p>{_trend_html(health)}</p>"
        f'<p class="soft">Within {_window_words(health.window_s)}, last leaf {_time_html(health.seen_s)}</p></li>\n'
    )


def _verdict(health: PlotHealth) -> tuple[str, str]:
    if health.warned:
        return "ill", "Alert open"
    if health.leaves < DEFAULT_LEAST_LEAVES:
        return "few", f"Too few leaves: photograph at least {DEFAULT_LEAST_LEAVES}"
    if health.ill_share >= DEFAULT_SHARE:
        return "ill", "Ill"
    if health.ill_share >= DEFAULT_SHARE / 2:
        return "some", "Some ill"
    return "healthy", "Few ill" if health.ill_leaves else "Healthy"


def _trend_html(health: PlotHealth) -> str:
    trend = health.trend
    if trend is None:
        needed = f"{DEFAULT_LEAST_LEAVES} leaves in the {_window_words(health.window_s)} before"
        return f'<span class="soft">No trend yet: a trend needs {needed}</span>'
    icon, words = _TRENDS[trend]
    shares = f"{100 * health.ill_share:.0f} % ill, {100 * health.ill_share_before:.0f} % before"
    return f'<span aria-hidden="true">{icon}</span> {words}: {shares}'


def _window_words(window_s: float) -> str:
    return "24 h" if window_s == _DAY_S else duration_words(window_s)


@dataclass(frozen=True)
class Page:
    """What the page displays: the history, and functions that return the agent's present state and plots."""

    history: History  # best opened with `read_only`, so that it never waits for the agent
    state: Callable[[], AgentState]  # returns the agent's state now
    plots: Callable[[], Sequence[PlotHealth]] = tuple  # returns the health of all plots now
    healthy: Sequence[str] = ()  # names and patterns of further healthy classes (see `is_healthy`)
    app: Path | None = None  # folder of the phone page, served at /app/


def page_html(page: Page, nonce: str) -> str:
    """Renders the whole page as HTML; `nonce` is the value in the Content-Security-Policy that allows its script."""
    state = page.state()
    device = escape(state.device)
    without_script = f'<noscript><meta http-equiv="refresh" content="{REFRESH_S}"></noscript>'
    return (
        _head(f"{device}: AgriDistill", nonce, without_script)
        + f'<header><h1>{device}</h1><p class="soft">AgriDistill {escape(state.version)}'
        + ("" if page.app is None else ' · <a href="/app/">phone page</a>')
        + "</p></header>\n"
        '<p id="away" class="notice critical" role="alert" hidden><strong>The agent does not answer.</strong> '
        "The data below is the last that it sent.</p>\n"
        f"<main>\n{content_html(page)}</main>\n"
        f'<script nonce="{nonce}">{_asset("page.js")}</script>\n</body>\n</html>\n'
    )


def content_html(page: Page) -> str:
    """Renders the sections of the page as HTML; the page's script loads them again every 5 seconds."""
    state, history = page.state(), page.history
    alerts = history.alerts(state="open", limit=_SHOWN_ALERTS)
    sections = {
        "alerts": ("Open alerts", _late_html(state) + _open_alerts_html(alerts, state)),
        "plots": ("Plots", _plots_html(page.plots())),
        "state": ("State", _state_html(state)),
        "detections": ("Last photos", _detections_html(history, page.healthy)),
        "resolved": ("Resolved alerts", _resolved_html(history.alerts(state="resolved", limit=_SHOWN_RESOLVED))),
    }
    return "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>\n{inner}</section>\n'
        for name, (title, inner) in sections.items()
    )


def login_html(nonce: str, *, refused: bool) -> str:
    """Renders the login form for the token; `refused` adds the message that the entered token was wrong."""
    error = '<p class="notice critical" role="alert">This is not the token.</p>' if refused else ""
    return (
        _head("AgriDistill: token", nonce, "")
        + "<main><h1>This page needs its token</h1>"
        + '<p class="soft">The token is in the agent\'s settings: AGRIDISTILL_PAGE_TOKEN, or token_file in [page].</p>'
        + error
        + '<form method="post" action="/login"><label for="token">Token</label><input id="token" name="token" '
        'type="password" autocomplete="current-password" required autofocus>'
        "<button>Show the page</button></form></main>\n</body>\n</html>\n"
    )


def _head(title: str, nonce: str, extra: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f'<title>{title}</title>\n{extra}<style nonce="{nonce}">{_asset("page.css")}</style>\n</head>\n<body>\n'
    )


@cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _late_html(state: AgentState) -> str:
    if abs(time.time() - state.at_s) < FRESH_S:
        return ""
    return (
        '<p class="notice critical"><strong>The agent has not reported since</strong> '
        f"{_time_html(state.at_s)}. Alerts may be missing.</p>\n"
    )


def _open_alerts_html(alerts: Sequence[Alert], state: AgentState) -> str:
    silent = "" if alerts else '<p class="notice calm">No alert is open.</p>\n'
    if state.cannot_warn:
        reason = state.cannot_warn.removeprefix("No alert can open: ")
        silent = f'<p class="notice critical"><strong>No alert can open:</strong> {escape(reason)}</p>\n'
    if not alerts:
        return silent
    items = []
    for alert in sorted(alerts, key=lambda one: _LEVELS.index(one.level)):
        items.append(
            f'<li class="notice {alert.level}"><h3>{_plot_words(alert.plot)}: {escape(plain_label(alert.label))}</h3>'
            f"<p>{escape(alert.text)}</p>"
            f'<p class="soft">{alert.level.capitalize()} by the rule “{escape(alert.rule)}”, open since '
            f"{_time_html(alert.since_s)} ({duration_words(state.at_s - alert.since_s)})</p></li>\n"
        )
    return f"{silent}<ul>\n{''.join(items)}</ul>\n"


def _resolved_html(alerts: Sequence[Alert]) -> str:
    if not alerts:
        return '<p class="soft">None yet. An alert moves here when its rule no longer holds.</p>\n'
    items = []
    for alert in alerts:
        ended_s = alert.updated_s if alert.resolved_s is None else alert.resolved_s
        items.append(
            f"<li><h3>{_plot_words(alert.plot)}: {escape(plain_label(alert.label))}</h3>"
            f'<p class="soft">Rule “{escape(alert.rule)}”, resolved {_time_html(ended_s)} after '
            f"{duration_words(ended_s - alert.since_s)}</p></li>\n"
        )
    return f'<ul class="resolved">\n{"".join(items)}</ul>\n'


def _state_html(state: AgentState) -> str:
    trouble = source_trouble_words(state)
    rows = [
        ("Source", f"{state.source}: {trouble or 'available'}", bool(trouble)),
        ("Model", model_words(state), False),
        ("Running for", duration_words(state.uptime_s), False),
        ("Frames", f"{state.frames:,}", False),
        ("Frames without an answer", f"{state.skipped:,} skipped, {state.unreadable:,} unreadable", False),
        ("Broker", broker_words(state), state.broker is not None and not state.broker.get("connected")),
        ("Waiting for the broker", queue_words(state), False),
        *((f"Waiting for the {name}", waiting_words(waits), False) for name, waits in state.outputs.items()),
    ]
    if state.kept is not None:
        trouble = state.kept["trouble"]
        rows.append(("Kept photos", trouble or kept_words(state.kept), bool(trouble)))
    if state.latency_ms:
        # No-break spaces keep a number and its unit on the same line.
        shares = (f"{name.lstrip('p')}\N{NO-BREAK SPACE}%" for name in state.latency_ms)
        times = (f"{value:.0f}\N{NO-BREAK SPACE}ms" for value in state.latency_ms.values())
        times_text = ", ".join(f"{share} within {time}" for share, time in zip(shares, times, strict=True))
        rows.append(("Time for a frame", times_text, False))
    if state.processor_celsius is not None:
        rows.append(("Processor", f"{state.processor_celsius:.0f} °C", False))
    if state.memory_bytes is not None:
        rows.append(("Memory", bytes_words(state.memory_bytes), False))
    if state.disk_free_bytes is not None:
        rows.append(("Free on the disk", bytes_words(state.disk_free_bytes), False))
    marks = {True: ' class="bad"', False: ""}
    cells = "".join(f"<div><dt>{name}</dt><dd{marks[bad]}>{escape(value)}</dd></div>\n" for name, value, bad in rows)
    return f"<dl>\n{cells}</dl>\n"


def _detections_html(history: History, healthy: Sequence[str]) -> str:
    detections = history.recent(_SHOWN_DETECTIONS)
    if not detections:
        return (
            '<p class="notice">There are no photos yet. Each new photo appears here with the answer of the model.</p>\n'
        )
    cards = (_card(one, history.thumbnail(one.event_id) is not None, healthy) for one in detections)
    return f'<ul class="cards">\n{"".join(cards)}</ul>\n'


def _card(detection: Detection, has_picture: bool, healthy: Sequence[str]) -> str:
    sure = detection.verdict == "answer"
    if has_picture:
        source = f"/detections/{escape(detection.event_id)}.jpg"
        picture = f'<div class="picture"><img src="{source}" alt="{escape(detection.photo)}" loading="lazy"></div>'
    else:
        picture = '<div class="picture">No picture</div>'
    words = f"<h3>{escape(detection_words(detection))}</h3>"
    health = ""
    if sure and detection.label is not None:
        health = "healthy" if is_healthy(detection.label, healthy) else "ill"
        words = _badge_html(health, health.capitalize()) + words
    if detection.verdict == "unsure":  # for other verdicts `detection_words` contains the reason
        words += f"<p>{escape(detection.reason)}</p>"
    if detection.probability is not None:
        words += (
            '<svg class="bar" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect width="{100 * detection.probability:.1f}" height="1"/></svg>'
        )
    return (
        f'<li class="card {"" if sure else "doubt "}{detection.verdict} {health}">{picture}<div class="words">{words}'
        f'<p class="soft">{_plot_words(detection.plot)}, {_time_html(detection.at_s)}</p>'
        f'<p class="soft">{escape(detection.photo)}</p></div></li>\n'
    )

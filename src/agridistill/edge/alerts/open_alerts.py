"""Open alerts as the agent's state holds them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agridistill.edge.events import Alert
from agridistill.edge.words import moment, plain_label

_MOST = 50


def open_alerts_json(alerts: Iterable[Alert]) -> list[dict[str, Any]]:
    """The newest alerts, newest first: which plot, which disease, since when.

    Args:
        alerts: that are open.
    """
    return [_json(alert) for alert in sorted(alerts, key=lambda alert: -alert.since_s)[:_MOST]]


def _json(alert: Alert) -> dict[str, Any]:
    since = moment(alert.since_s)
    return {
        "plot": alert.plot,
        "disease": plain_label(alert.label),
        "since": since.isoformat(timespec="seconds") if since is not None else None,
        "text": alert.text,
        "rule": alert.rule,
        "level": alert.level,
        "label": alert.label,
        "since_s": alert.since_s,
        "share": alert.share,
        "leaves": alert.leaves,
    }

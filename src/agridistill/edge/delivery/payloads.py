"""What is sent, as bytes: JSON with a schema version (docs/mqtt.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agridistill.edge.alerts.lifecycle import AlertMessage
from agridistill.edge.alerts.plot_report import PlotReport
from agridistill.edge.events import AgentState, Detection

PLOT_SCHEMA_VERSION = 2
"""Of a plot's message alone. 1 had a label always, and in `probability` how probable it was as the one condition of the
whole plot."""


def detection_payload(detection: Detection) -> bytes:
    """A detection."""
    return _bytes(detection.to_json())


def alert_payload(message: AlertMessage) -> bytes:
    """An alert, what happened to it, and the id by which a duplicate is known."""
    return _bytes({**message.alert.to_json(), "change": message.change, "event_id": message.event_id})


def state_payload(state: AgentState) -> bytes:
    """How the agent is."""
    return _bytes(state.to_json())


def plot_payload(report: PlotReport) -> bytes:
    """What a plot's leaves say together."""
    return _bytes(
        {
            "schema": PLOT_SCHEMA_VERSION,
            "plot": report.plot,
            "seen_s": round(report.seen_s, 1),
            "condition": report.condition,
            "leaves": report.leaves,
            "ill_leaves": report.ill_leaves,
            "ill_share": round(report.ill_share, 4),
            "label": report.label,
            "probability": None if report.probability is None else round(report.probability, 4),
            "shares": {name: round(share, 4) for name, share in report.shares.items()},
        }
    )


def _bytes(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()

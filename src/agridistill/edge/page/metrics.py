"""The agent's state in Prometheus's text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from agridistill.edge.events import AgentState
from agridistill.edge.words import total

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_Kind = Literal["counter", "gauge"]
# Key in the state; name, kind and meaning of the metric.
_OUTBOX: tuple[tuple[str, str, _Kind, str], ...] = (
    ("waiting", "outbox_messages", "gauge", "Messages that wait for a receiver."),
    ("waiting_bytes", "outbox_bytes", "gauge", "Size of the messages that wait."),
    ("oldest_s", "outbox_oldest_seconds", "gauge", "Age of the oldest message that waits."),
    ("delivered", "outbox_delivered_total", "counter", "Messages that their receiver acknowledged."),
    ("dropped", "outbox_dropped_total", "counter", "Messages that had to go for want of room or for age."),
)


@dataclass(frozen=True)
class _Family:
    """One metric with its values by their labels; without values it is left out."""

    name: str
    kind: _Kind
    text: str
    samples: list[tuple[dict[str, str], float]] = field(default_factory=list)


def metrics_text(state: AgentState) -> str:
    """The state as Prometheus scrapes it. What is not known is left out.

    Example:
        A line of it: `agridistill_frames_total{verdict="answer"} 120`.
    """
    return "".join(line + "\n" for family in _families(state) if family.samples for line in _lines(family))


def _families(state: AgentState) -> Iterator[_Family]:
    names = {"device": state.device, "version": state.version, "model": str(state.model.get("name", ""))}
    names["model_sha256"] = str(state.model.get("sha256", ""))
    yield _Family("info", "gauge", "Always 1; its labels name device, version and model.", [(names, 1)])
    yield _one("start_time_seconds", "gauge", "When the agent started, since 1970.", state.started_s)
    yield _one("state_time_seconds", "gauge", "When these figures were taken, since 1970.", state.at_s)
    yield _one("uptime_seconds", "gauge", "Time since the agent started.", state.uptime_s)
    yield _one("open_alerts", "gauge", "Alerts that are open.", state.open_alerts)
    latencies = [({"percentile": name.lstrip("p")}, value / 1000) for name, value in state.latency_ms.items()]
    yield _Family("frame_latency_seconds", "gauge", "From taking a frame to its commit, of the last frames.", latencies)
    lost = state.source_lost_s
    here = [({"source": state.source}, float(lost is None))]
    yield _Family("source_up", "gauge", "1 while the source is there, 0 while it is away.", here)
    yield _one("source_lost_seconds", "gauge", "Time that the source has been away; 0 while it is there.", lost or 0)
    verdicts = [({"verdict": verdict}, float(count)) for verdict, count in state.verdicts.items()]
    yield _Family("frames_total", "counter", "Frames that were decided on, by verdict.", verdicts)
    yield _one("frames_skipped_total", "counter", "Live frames that came while the model was busy.", state.skipped)
    yield _one("photos_unreadable_total", "counter", "Photos that could not be read.", state.unreadable)
    connected = None if state.broker is None else float(bool(state.broker.get("connected")))
    yield _one("broker_connected", "gauge", "1 while the broker is connected.", connected)
    # One family for all receivers, by the label `to`: one alert rule covers each of them.
    for key, name, kind, text in _OUTBOX:
        found = {to: counts[key] for to, counts in state.outboxes.items() if counts.get(key) is not None}
        yield _Family(name, kind, text, [({"to": to}, float(total(value))) for to, value in found.items()])
    yield _one("memory_resident_bytes", "gauge", "Memory that the agent holds in RAM.", state.memory_bytes)
    celsius = state.processor_celsius
    yield _one("processor_temperature_celsius", "gauge", "Temperature of the processor's hottest zone.", celsius)
    yield _one("disk_free_bytes", "gauge", "Room on the disk where the state lies.", state.disk_free_bytes)


def _one(name: str, kind: _Kind, text: str, value: float | None) -> _Family:
    return _Family(name, kind, text, [] if value is None else [({}, value)])


def _lines(family: _Family) -> Iterable[str]:
    name = f"agridistill_{family.name}"
    yield f"# HELP {name} {family.text}"
    yield f"# TYPE {name} {family.kind}"
    for labels, value in family.samples:
        inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"{name}{{{inner}}} {_number(value)}" if inner else f"{name} {_number(value)}"


def _number(value: Any) -> str:
    # Whole numbers without a fraction: a float's exponent would hide the last digits of large sizes.
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

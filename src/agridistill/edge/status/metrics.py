"""The agent's state in Prometheus's text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from agridistill.edge.events import AgentState
from agridistill.edge.words import total

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_Kind = Literal["counter", "gauge"]
# Key in the state, name of the metric, its kind, and what it tells.
_OUTBOX: tuple[tuple[str, str, _Kind, str], ...] = (
    ("waiting", "outbox_messages", "gauge", "Messages that wait for a receiver."),
    ("waiting_bytes", "outbox_bytes", "gauge", "Size of the messages that wait."),
    ("oldest_s", "outbox_oldest_seconds", "gauge", "Age of the oldest message that waits."),
    ("delivered", "outbox_delivered_total", "counter", "Messages that their receiver acknowledged."),
    ("dropped", "outbox_dropped_total", "counter", "Messages that had to go for want of room or for age."),
)


@dataclass(frozen=True)
class _Family:
    """One metric: its name, what it tells, and its values by their labels."""

    name: str
    kind: _Kind
    tells: str
    samples: list[tuple[dict[str, str], float]] = field(default_factory=list)


def metrics_text(state: AgentState) -> str:
    """All that the state tells, as a scrape wants it. What is not known is left out.

    Example:
        A line of it: `agridistill_frames_total{verdict="answer"} 120`.
    """
    return "".join(line + "\n" for family in _families(state) if family.samples for line in _lines(family))


def _families(state: AgentState) -> Iterator[_Family]:
    yield from _agent(state)
    yield from _source(state)
    yield from _broker(state)
    yield from _outboxes(state)
    yield from _device(state)


def _agent(state: AgentState) -> Iterator[_Family]:
    names = {"device": state.device, "version": state.version, "model": str(state.model.get("name", ""))}
    names["model_sha256"] = str(state.model.get("sha256", ""))
    yield _Family("info", "gauge", "Always 1; its labels name device, version and model.", [(names, 1)])
    yield _one("start_time_seconds", "gauge", "When the agent started, since 1970.", state.started_s)
    yield _one("state_time_seconds", "gauge", "When these figures were taken, since 1970.", state.at_s)
    yield _one("uptime_seconds", "gauge", "For how long the agent has run.", state.uptime_s)
    yield _one("open_alerts", "gauge", "Alerts that are open.", state.open_alerts)
    latencies = [({"percentile": name.lstrip("p")}, value / 1000) for name, value in state.latency_ms.items()]
    yield _Family("frame_latency_seconds", "gauge", "From when a frame is taken to its commit, lately.", latencies)


def _source(state: AgentState) -> Iterator[_Family]:
    lost = state.source_lost_s
    here = [({"source": state.source}, float(lost is None))]
    yield _Family("source_up", "gauge", "1 while the source is there, 0 while it is away.", here)
    yield _one("source_lost_seconds", "gauge", "For how long the source has been away; 0 while it is there.", lost or 0)
    verdicts = [({"verdict": verdict}, float(count)) for verdict, count in state.verdicts.items()]
    yield _Family("frames_total", "counter", "Frames that were decided on, by verdict.", verdicts)
    yield _one("frames_skipped_total", "counter", "Live frames that came while the model was busy.", state.skipped)
    yield _one("photos_unreadable_total", "counter", "Photos that could not be read.", state.unreadable)


def _broker(state: AgentState) -> Iterator[_Family]:
    if state.broker is not None:
        connected = float(bool(state.broker.get("connected")))
        yield _one("broker_connected", "gauge", "1 while the broker is connected.", connected)


def _outboxes(state: AgentState) -> Iterator[_Family]:
    """One family for all receivers, which `to` tells apart: a rule that warns of an outbox finds each of them."""
    for key, name, kind, tells in _OUTBOX:
        values = [
            ({"to": to}, float(total(waits[key]))) for to, waits in state.outboxes.items() if waits.get(key) is not None
        ]
        yield _Family(name, kind, tells, values)


def _device(state: AgentState) -> Iterator[_Family]:
    yield _one("memory_resident_bytes", "gauge", "Memory that the agent holds in RAM.", state.memory_bytes)
    celsius = state.processor_celsius
    yield _one("processor_temperature_celsius", "gauge", "Temperature of the processor's hottest zone.", celsius)
    yield _one("disk_free_bytes", "gauge", "Room on the disk where the state lies.", state.disk_free_bytes)


def _one(name: str, kind: _Kind, tells: str, value: float | None) -> _Family:
    return _Family(name, kind, tells, [] if value is None else [({}, value)])


def _lines(family: _Family) -> Iterable[str]:
    name = f"agridistill_{family.name}"
    yield f"# HELP {name} {family.tells}"
    yield f"# TYPE {name} {family.kind}"
    for labels, value in family.samples:
        inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"{name}{{{inner}}} {_number(value)}" if inner else f"{name} {_number(value)}"


def _number(value: Any) -> str:
    # Whole numbers without a fraction: a float's exponent would hide the last digits of large sizes.
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

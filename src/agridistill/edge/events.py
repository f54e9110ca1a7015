"""What passes through the agent: frames in, detections and alerts out, and the agent's own state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from agridistill.runtime.verdict import Verdict as Verdict

SCHEMA_VERSION = 1
"""Of the JSON of detections, alerts and states; it grows where a reader of the old one would be misled."""

AlertState = Literal["open", "resolved"]


@dataclass(frozen=True)
class Frame:
    """One photo from a source.

    Attributes:
        pixels: `(H, W, 3)` uint8, RGB, upright.
        name: of the file, relative to the source, or the frame's number.
        plot: where the plant stands; "" where nobody said.
        at_s: when it was seen, seconds since 1970 by the device's clock.
        identity: the same when the same photo is read again after a restart; "" for live frames, which cannot be.
        taken_s: when it was taken, by the photo itself, where that is what counts; else None.
    """

    pixels: NDArray[np.uint8]
    name: str
    plot: str
    at_s: float
    identity: str = ""
    taken_s: float | None = None


@dataclass(frozen=True)
class Detection:
    """What the agent says about one frame.

    Attributes:
        event_id: 32 hexadecimal digits, by which a receiver knows a duplicate.
        at_s: when the frame was seen, seconds since 1970 by the device's clock.
        device: its name.
        source: name of the source, without secrets.
        photo: the frame's name.
        plot: where the plant stands; "" where nobody said.
        model: first 12 digits of the model file's sha256.
        verdict: how far it may be believed.
        reason: in words, why it is no answer; "" for an answer.
        label: the most probable class; None where the model was not asked.
        probability: of it, 0 to 1, calibrated; None where the model was not asked.
        probabilities: of all classes; empty where the model was not asked.
        taken_s: when the photo was taken, by itself, where it counts by that; None where it counts by `at_s`.
    """

    event_id: str
    at_s: float
    device: str
    source: str
    photo: str
    plot: str
    model: str
    verdict: Verdict
    reason: str = ""
    label: str | None = None
    probability: float | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    taken_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is published; see docs/mqtt.md."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Detection:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: another version, or wrong fields.
        """
        detection = _read(cls, document)
        times = detection.at_s, detection.at_s if detection.taken_s is None else detection.taken_s
        if detection.verdict not in get_args(Verdict) or not all(map(math.isfinite, times)):
            raise ValueError("a detection expected")
        return detection


@dataclass(frozen=True)
class Alert:
    """A rule that holds, or held, for a plot.

    Attributes:
        alert_id: 32 hexadecimal digits, the same from its opening to its end.
        rule: name of the rule.
        plot: where.
        state: "open" until it is resolved.
        since_s: when it opened, seconds since 1970 by the device's clock.
        updated_s: when it last changed.
        resolved_s: when it ended; None while it is open.
        label: the class that is warned of.
        share: of the leaves in the rule's window, 0 to 1, at the last change.
        leaves: in that window.
        text: one line for people.
        level: "info", "warning" or "critical", as the rule says.
    """

    alert_id: str
    rule: str
    plot: str
    state: AlertState
    since_s: float
    updated_s: float
    resolved_s: float | None
    label: str
    share: float
    leaves: int
    text: str
    level: str = "warning"

    def to_json(self) -> dict[str, Any]:
        """As it is published; see docs/mqtt.md."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Alert:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: another version, or wrong fields.
        """
        return _read(cls, document)


@dataclass(frozen=True)
class AgentState:
    """How the agent is. Written to `state.json` in the state folder every few seconds, and retained at the broker.

    Attributes:
        device: its name.
        version: of AgriDistill.
        pid: of the process.
        started_s: when the agent started, seconds since 1970.
        at_s: when this was written.
        uptime_s: by a clock that is never set back.
        source: its name, without secrets.
        source_lost_s: for how long the source has been away; None while it is there.
        frames: that were decided on.
        skipped: live frames that came while the model was busy.
        unreadable: photos that could not be read.
        verdicts: how many frames by verdict.
        open_alerts: how many.
        alerts: the newest of them, at most 50, newest first: plot, rule, level, text, share, leaves, label, disease
            (the label in words), since_s, since (the same as text).
        model: name, version, sha256 and where it lies.
        broker: None where none is configured, else host, port and whether it is connected.
        outbox: None where none is configured, else waiting, waiting_bytes, oldest_s, delivered, dropped.
        latency_ms: p50 and p99 of the last frames, from the frame's being taken to its commit.
        memory_bytes: resident.
        processor_celsius: None where it is not known.
        disk_free_bytes: where the state lies.
        trouble: why detections cannot be committed; None where they can.
        outputs: by name ("webhook", "command") the same as `outbox`, of alerts that wait for it.
        cannot_warn: why no alert can open, and what to do; None where there are rules.
        source_trouble: what is wrong with a source that answers, such as a wrong password; None where nothing is.
        finished: whether the source came to its end (a video, or a folder's photos by `--once`): it needs no agent.
        stopped: whether the user ended the agent with Ctrl-C.
    """

    device: str
    version: str
    pid: int
    started_s: float
    at_s: float
    uptime_s: float
    source: str
    source_lost_s: float | None
    frames: int
    skipped: int
    unreadable: int
    verdicts: Mapping[str, int]
    open_alerts: int
    model: Mapping[str, Any]
    broker: Mapping[str, Any] | None
    outbox: Mapping[str, Any] | None
    latency_ms: Mapping[str, float]
    memory_bytes: int | None
    processor_celsius: float | None
    disk_free_bytes: int | None
    trouble: str | None = None
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    finished: bool = False
    stopped: bool = False
    cannot_warn: str | None = None
    alerts: tuple[Mapping[str, Any], ...] = ()
    source_trouble: str | None = None

    @property
    def outboxes(self) -> dict[str, Mapping[str, Any]]:
        """Of all that there are, by receiver: "broker", "webhook", "command"."""
        return ({"broker": self.outbox} if self.outbox is not None else {}) | dict(self.outputs)

    def to_json(self) -> dict[str, Any]:
        """As it is written and published."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> AgentState:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: another version, or wrong fields.
        """
        return _read(cls, document)


_Event = TypeVar("_Event", Detection, Alert, AgentState)


def _read(kind: type[_Event], document: Mapping[str, Any]) -> _Event:
    given = dict(document)
    version = given.pop("schema", None)
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema {SCHEMA_VERSION} expected, got {version!r}")
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(str(error)) from None

"""What passes through the agent: frames in, detections and alerts out, and the agent's own state."""

from __future__ import annotations

import json
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
    """One photo from a source."""

    pixels: NDArray[np.uint8]  # (H, W, 3), RGB, upright
    name: str  # of the file, relative to the source, or the frame's number
    plot: str  # where the plant stands; "" where that is not known
    at_s: float  # when it was seen, seconds since 1970 by the device's clock
    identity: str = ""  # the same when the same photo is read again after a restart; "" for live frames
    taken_s: float | None = None  # when it was taken, by the photo itself, where that is what counts


@dataclass(frozen=True)
class Detection:
    """The agent's decision on one frame."""

    event_id: str  # 32 hexadecimal digits, by which a receiver recognises a duplicate
    at_s: float  # when the frame was seen, seconds since 1970 by the device's clock
    device: str
    source: str  # name of the source, without secrets
    photo: str  # the frame's name
    plot: str  # where the plant stands; "" where that is not known
    model: str  # first 12 digits of the model file's sha256
    verdict: Verdict
    reason: str = ""  # in words, why it is no answer; "" for an answer
    label: str | None = None  # the most probable class; None where the model was not run
    probability: float | None = None  # of it, 0 to 1, calibrated
    probabilities: Mapping[str, float] = field(default_factory=dict)  # of all classes
    taken_s: float | None = None  # when the photo was taken, where it counts by that; None where it counts by `at_s`

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
    """A rule that holds, or held, for a plot."""

    alert_id: str  # 32 hexadecimal digits, the same from its opening to its end
    rule: str
    plot: str
    state: AlertState
    since_s: float  # when it opened, seconds since 1970 by the device's clock
    updated_s: float  # when it last changed
    resolved_s: float | None  # when it ended
    label: str  # the most frequent of the rule's classes
    share: float  # of the leaves in the rule's window, 0 to 1, at the last change
    leaves: int  # in that window
    text: str  # one line for people
    level: str = "warning"  # "info", "warning" or "critical", as the rule says

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
    """The agent's state: `state.json` in the state folder, and retained at the broker."""

    device: str
    version: str  # of AgriDistill
    pid: int
    started_s: float  # seconds since 1970
    at_s: float  # when this was written
    uptime_s: float  # by a monotonic clock
    source: str  # its name, without secrets
    source_lost_s: float | None  # time that the source has been away
    frames: int  # that were decided on
    skipped: int  # live frames that came while the model was busy
    unreadable: int  # photos that could not be read
    verdicts: Mapping[str, int]  # number of frames by verdict
    open_alerts: int
    model: Mapping[str, Any]  # name, version, sha256 and path
    broker: Mapping[str, Any] | None  # host, port, connected; None without a broker
    outbox: Mapping[str, Any] | None  # waiting, waiting_bytes, oldest_s, delivered, dropped; None without a broker
    latency_ms: Mapping[str, float]  # p50 and p99 of the last frames, from taking a frame to its commit
    memory_bytes: int | None  # resident
    processor_celsius: float | None
    disk_free_bytes: int | None  # where the state lies
    trouble: str | None = None  # why detections cannot be committed
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # as `outbox`, of "webhook" and "command"
    finished: bool = False  # the source came to its end (a video, or a folder's photos by `--once`)
    stopped: bool = False  # the user ended the agent with Ctrl-C
    cannot_warn: str | None = None  # why no alert can open, and the remedy
    alerts: tuple[Mapping[str, Any], ...] = ()  # the newest open ones, at most 50 (alerts.lifecycle.open_alerts_json)
    source_trouble: str | None = None  # of a source that answers, such as a wrong password

    @property
    def outboxes(self) -> dict[str, Mapping[str, Any]]:
        """Of all receivers by name: "broker", "webhook", "command"."""
        return ({"broker": self.outbox} if self.outbox is not None else {}) | dict(self.outputs)

    def to_json(self) -> dict[str, Any]:
        """As it is written and published."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}


_Event = TypeVar("_Event", Detection, Alert)


def _read(kind: type[_Event], document: Mapping[str, Any]) -> _Event:
    given = dict(document)
    version = given.pop("schema", None)
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema {SCHEMA_VERSION} expected, got {version!r}")
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(str(error)) from None


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """A JSON document as it is sent."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()

"""The agent's data: frames (its input), detections and alerts (its output), and their texts for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from agridistill.runtime.verdict import Verdict as Verdict
from agridistill.runtime.verdict import plain_label as plain_label
from agridistill.runtime.verdict import verdict_words

SCHEMA_VERSION = 1  # of the JSON of detections, alerts and states; raised if old programs would misread it

AlertState = Literal["open", "resolved"]
Level = Literal["info", "warning", "critical"]


@dataclass(frozen=True)
class Document:
    """Base of `Detection`, `Alert` and `AgentState`, which are stored and published as JSON (docs/mqtt.md)."""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as a dictionary, plus the key `schema` with the version of the format."""
        return {"schema": SCHEMA_VERSION, **vars(self)}  # not `asdict`, whose deep copies take half a millisecond

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Creates the object from a dictionary as `to_json` returns it; unknown keys are ignored.

        Raises:
            ValueError: `schema` is missing or another version, or a field is missing or has a wrong type.
        """
        version = document.get("schema") if isinstance(document, Mapping) else None
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema {version} instead of {SCHEMA_VERSION}")
        try:
            found: Self = _adapter(cls).validate_python(document)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return found


@cache
def _adapter(kind: type[Document]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@dataclass(frozen=True)
class Frame:
    """One picture from a source, with its name, its plot and the time when it arrived."""

    pixels: NDArray[np.uint8]  # (H, W, 3), RGB, upright
    name: str  # file name relative to the source, or the frame's number
    plot: str  # where the plant stands; "" if that is not known
    at_s: float  # when it arrived, seconds since 1970 by the device's clock
    identity: str = ""  # stays the same if the photo is read again after a restart; "" for live frames
    taken_s: float | None = None  # EXIF time, seconds since 1970, with the setting time = "photo"; else None
    original: Path | bytes | None = None  # the photo as file or as content; None if the source has only pixels


@dataclass(frozen=True)
class Detection(Document):
    """The agent's verdict on one frame, with the model's class probabilities; `Prediction.verdict` explains it."""

    event_id: str  # 32 hexadecimal digits, by which a receiver recognises a duplicate
    at_s: float  # when the frame arrived, seconds since 1970 by the device's clock
    device: str
    source: str  # name of the source, without secrets
    photo: str  # the frame's name
    plot: str  # where the plant stands; "" if that is not known
    model: str  # first 12 digits of the model file's sha256
    verdict: Verdict
    reason: str = ""  # why the verdict is not "answer", in words; "" for an answer
    label: str | None = None  # the most probable class; None if the model was not run
    probability: float | None = None  # probability of `label`, 0 to 1, calibrated
    probabilities: Mapping[str, float] = field(default_factory=dict)  # by class; empty if the model was not run
    taken_s: float | None = None  # EXIF time, which rules then use instead of `at_s`; None if they use `at_s`


@dataclass(frozen=True)
class Alert(Document):
    """An alert: the condition of a rule, such as a share of ill leaves, is or was met on a plot."""

    alert_id: str  # 32 hexadecimal digits, the same from the opening to the end of the alert
    rule: str
    plot: str
    state: AlertState
    since_s: float  # when it opened, seconds since 1970 by the device's clock
    updated_s: float  # when it last changed
    resolved_s: float | None  # when it ended; None while it is open
    label: str  # the most frequent of the rule's classes
    share: float  # expected share of leaves with the rule's classes in the rule's window, 0 to 1, at the last change
    leaves: int  # number of leaves in that window
    text: str  # one line for people
    level: Level = "warning"  # the rule's level


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """Encodes a JSON document as UTF-8; raises ValueError if it contains NaN or infinity."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()


def sendable(name: str) -> str:
    """Replaces bytes of a file name that are not UTF-8 by escapes, because JSON and SQLite need UTF-8.

    Example:
        >>> print(sendable("leaf\\udce9.jpg"))
        leaf\\udce9.jpg
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def detection_words(detection: Detection) -> str:
    """Returns a detection as short text, such as "Late blight 93 %" or "unusable: too dark"."""
    label, probability = detection.label, detection.probability
    top = [(label, probability)] if label is not None and probability is not None else []
    return verdict_words(detection.verdict, detection.reason, top)


def duration_words(seconds: float) -> str:
    """Returns a duration in seconds as text with its two largest units.

    Example:
        >>> duration_words(7384)
        '2 h 3 min'
    """
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    units = (86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")
    size, unit, below, small = next(row for row in units if whole >= row[0])
    # From ten minutes on, seconds are omitted.
    rest = 0 if unit == "min" and whole >= 600 else whole % size // below
    return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")


def bytes_words(size: float) -> str:
    """Returns a size in bytes as text with a decimal unit (1 kB is 1,000 bytes).

    Example:
        >>> bytes_words(1_234_567)
        '1.2 MB'
    """
    for unit_size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit_size:
            return f"{size / unit_size:.1f} {unit}"
    return f"{size:.0f} B"


def number_of(number: int, thing: str) -> str:
    """Returns a number and its noun as text; the noun gets an "s" unless the number is 1.

    Example:
        >>> number_of(1, "message"), number_of(1200, "message")
        ('1 message', '1,200 messages')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def leaves_words(number: int) -> str:
    """Returns "1 leaf" or "1,200 leaves"."""
    return f"{number:,} {'leaf' if number == 1 else 'leaves'}"


def moment(at_s: float) -> datetime | None:
    """Converts seconds since 1970 to a datetime in UTC; None if the value is out of range."""
    try:
        return datetime.fromtimestamp(at_s, UTC)
    except (OverflowError, ValueError, OSError):
        return None

"""Labels, times and sizes as people read them, on the page and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from agridistill.edge.events import AgentState, Detection
from agridistill.runtime.verdict import plain_label as plain_label
from agridistill.runtime.verdict import verdict_words


def sendable(name: str) -> str:
    """A file name as text for JSON and SQLite, which take no lone surrogates (a name that is not UTF-8).

    Example:
        >>> print(sendable("leaf\\udce9.jpg"))
        leaf\\udce9.jpg
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def detection_words(detection: Detection) -> str:
    """The decision on a photo in the words of `predict`: "Late blight 93 %", "unusable: too dark"."""
    label, probability = detection.label, detection.probability
    top = [(label, probability)] if label is not None and probability is not None else []
    return verdict_words(detection.verdict, detection.reason, top)


def verdict_counts_words(verdicts: Mapping[str, int]) -> str:
    """Numbers of frames by verdict; "none" without frames.

    Example:
        >>> verdict_counts_words({"unsure": 2, "answer": 12, "unusable": 0})
        '12 answers, 2 unsure'
    """
    counts = (
        number_of(count, verdict) if verdict == "answer" else f"{count:,} {verdict}"
        for verdict, count in sorted(verdicts.items())
        if count
    )
    return ", ".join(counts) or "none"


def duration_words(seconds: float) -> str:
    """A length of time in its two largest units.

    Example:
        >>> duration_words(7384)
        '2 h 3 min'
    """
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    for size, unit, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            # Seconds are noise from ten minutes on.
            rest = 0 if unit == "min" and whole >= 600 else whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    raise AssertionError("unreachable")


def bytes_words(size: float) -> str:
    """A size with its decimal unit.

    Example:
        >>> bytes_words(1_234_567)
        '1.2 MB'
    """
    for unit_size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit_size:
            return f"{size / unit_size:.1f} {unit}"
    return f"{size:.0f} B"


def number_of(number: int, thing: str) -> str:
    """A number and its noun.

    Example:
        >>> number_of(1, "message"), number_of(1200, "message")
        ('1 message', '1,200 messages')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def leaves_words(number: int) -> str:
    """A number of leaves.

    Example:
        >>> leaves_words(1), leaves_words(1200)
        ('1 leaf', '1,200 leaves')
    """
    return f"{number:,} {'leaf' if number == 1 else 'leaves'}"


def moment(at_s: float) -> datetime | None:
    """A time in UTC from seconds since 1970; None where no calendar holds it."""
    try:
        return datetime.fromtimestamp(at_s, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def total(counts: int | Mapping[str, int]) -> int:
    """The sum of numbers by kind, or the number itself."""
    return sum(counts.values()) if isinstance(counts, Mapping) else counts


def model_words(state: AgentState) -> str:
    """Name, version and the first digits of the checksum of the agent's model."""
    name, version, sha256 = (str(state.model.get(key) or "") for key in ("name", "version", "sha256"))
    return " ".join(part for part in (name or "unknown", version, f"({sha256[:12]})" if sha256 else "") if part)


def source_trouble_words(state: AgentState) -> str:
    """Trouble of the agent's source; "" without trouble."""
    away = "" if state.source_lost_s is None else f"away for {duration_words(state.source_lost_s)}"
    return state.source_trouble or away


def broker_words(state: AgentState) -> str:
    """Address of the agent's broker, and whether it is connected."""
    if state.broker is None:
        return "none configured"
    where = f"{state.broker.get('host', '')}:{state.broker.get('port', '')}"
    return f"{where}: {'connected' if state.broker.get('connected') else 'away'}"


def queue_words(state: AgentState) -> str:
    """Messages that wait for the broker, and dropped ones."""
    return "nothing: no broker" if state.outbox is None else waiting_words(state.outbox)


def waiting_words(outbox: Mapping[str, Any]) -> str:
    """Messages that wait in one outbox of the state, and dropped ones."""
    waiting, dropped = (total(outbox.get(key, 0)) for key in ("waiting", "dropped"))
    oldest = f", the oldest for {duration_words(outbox.get('oldest_s', 0))}" if waiting else ""
    return number_of(waiting, "message") + oldest + (f"; {dropped:,} dropped" if dropped else "")

"""What goes into the outbox and comes out of it, how much may wait there, and what became of it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from agridistill.errors import OutboxError

Kind = Literal["detection", "alert"]


@dataclass(frozen=True)
class Message:
    """Something to be delivered.

    Attributes:
        payload: as it will be sent.
        kind: alerts outlive detections where room is short.
        plot: messages of one plot arrive in their order.
        event_id: by which a receiver knows a duplicate.
    """

    payload: bytes
    kind: Kind = "detection"
    plot: str = ""
    event_id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Pending:
    """A message on the disk.

    Attributes:
        seq: its place in the order of all messages.
        message: what is to be delivered.
        created_s: when it was committed, seconds since 1970 by the device's clock.
    """

    seq: int
    message: Message
    created_s: float


@dataclass(frozen=True)
class OutboxLimits:
    """How much may wait.

    Attributes:
        max_bytes: payloads and what they cost beside, together.
        max_age_s: of a message; 0 for no limit.
    """

    max_bytes: int = 200_000_000
    max_age_s: float = 0.0

    def __post_init__(self) -> None:
        if self.max_bytes < 10_000 or self.max_age_s < 0:
            raise OutboxError(
                "limits of at least 10,000 bytes and an age of 0 or more",
                f"{self.max_bytes} bytes and {self.max_age_s} s",
                "correct them",
            )


@dataclass(frozen=True)
class OutboxCounts:
    """What waits, and what became of the rest since the outbox was made.

    Attributes:
        waiting: messages by kind.
        waiting_bytes: of all of them.
        oldest_s: age of the oldest; 0 without any.
        accepted: messages that were committed.
        delivered: messages that were acknowledged.
        dropped: messages by kind that had to go for want of room, or were too old.
    """

    waiting: Mapping[str, int]
    waiting_bytes: int
    oldest_s: float
    accepted: int
    delivered: int
    dropped: Mapping[str, int]

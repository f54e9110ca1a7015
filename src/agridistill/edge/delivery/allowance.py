"""What a broker takes and refuses: how a connection ends, and what one broker allows one device."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 60.0, 6 * 3600.0
_ADVICE = "check user name, device name and access list"
# Of a PUBLISH beside topic and payload: its header, two lengths, the packet's number, no properties.
_PACKET_BYTES = 10

_Key = tuple[str, int | None]


class LostError(Exception):
    """The connection ended, or could not be made."""


class OldProtocolError(LostError):
    """The broker answers that it does not speak MQTT 5."""


class UnansweredError(LostError):
    """The broker does not answer in MQTT 5: it speaks 3.1.1 alone, or the connection was lost."""


class RefusedError(LostError):
    """The broker is there and refuses the device, for instance its user name or password."""


class TermsError(LostError):
    """The broker refuses the last will for its quality of service or its being retained; the allowance knows now."""


@dataclass(frozen=True)
class UnderWay:
    """A message or subscription that the broker has not acknowledged yet."""

    topic: str
    sent: float  # on the monotonic clock
    seq: int | None = None  # place in the outbox; None for what is not of the outbox
    is_subscription: bool = False


class Allowance:
    """What one broker allows one device, over its connections.

    Some brokers refuse a message with a reason (MQTT 5); others close the connection (RabbitMQ, aedes), and close it
    again whenever the same message comes. A refused message is left out, offered again after pauses that double, and
    reported once.

    Args:
        where: host and port, for the log.
    """

    def __init__(self, where: str = "") -> None:
        self.where = where
        self.retain, self.qos = True, 1  # qos 0: the broker takes messages without acknowledgement alone
        self.largest_bytes: int | None = None  # of a packet
        # Messages of the outbox up to this place go one by one, so that a lost connection names its cause.
        self.careful_until = 0
        self._reported: set[str] = set()
        self._due: dict[_Key, float] = {}
        self._pauses: dict[_Key, float] = {}
        self._suspect: _Key | None = None
        self._taken: set[str] = set()
        self._taken_levels: set[str] = set()

    def announced(self, *, retain: bool = True, qos: int = 1, largest_bytes: int | None = None) -> None:
        """Takes over what the broker announces when it accepts or refuses a connection."""
        self.retain, self.qos, self.largest_bytes = retain, min(qos, 1), largest_bytes
        if not self.retain:
            self._warn_once(
                "retain",
                f"the broker {self.where} keeps no retained messages: a later subscriber, such as Home Assistant, gets "
                "status, state and plots when they are sent again, after 10 minutes at most",
            )
        if not self.qos:
            self._warn_once(
                "qos",
                f"the broker {self.where} acknowledges no message (maximum QoS 0): it has read what leaves the outbox, "
                "but what its access list denies is lost",
            )

    def fits(self, topic: str, payload: bytes, seq: int | None = None) -> bool:
        """Whether a message is no larger than the broker allows; reports the first one that is."""
        size = len(topic.encode()) + len(payload) + _PACKET_BYTES
        if self.largest_bytes is None or size <= self.largest_bytes:
            return True
        rest = "left out" if seq is None else "kept in the outbox"
        self._warn_once(
            f"size {seq is None}",
            f"the broker {self.where} takes packets of up to {self.largest_bytes:,} bytes: a message of {size:,} on "
            f"'{topic}' and all others that are too large are {rest}; raise the broker's limit",
        )
        return False

    def may_send(self, topic: str, seq: int | None = None) -> bool:
        """Whether a message, or a subscription, was not refused lately."""
        refused = (topic, None), (_level(topic), None), (topic, seq)
        return not any(key in self._due for key in refused)

    @property
    def leaves_out(self) -> bool:
        """Whether anything is left out now."""
        return bool(self._due)

    def offers_again(self) -> bool:
        """Whether the pause of a refused message has ended since the last call."""
        over = [key for key, due in self._due.items() if due <= time.monotonic()]
        for key in over:
            del self._due[key]
        return bool(over)

    def taken(self, item: UnderWay) -> None:
        """The broker acknowledged something."""
        key = item.topic, item.seq
        if self._suspect == key:
            self._suspect = None
        if item.seq is not None:
            self._taken.add(item.topic)
        else:
            self._taken_levels.add(_level(item.topic))
        keys = key, (item.topic, None), (_level(item.topic), None)
        if [each for each in keys if self._pauses.pop(each, None) is not None]:
            logger.warning("the broker %s takes '%s' again", self.where, item.topic)

    def refused(self, item: UnderWay, reason: str, *, key: _Key | None = None) -> None:
        """The broker refused something: it is left out for a while.

        Args:
            item: that was refused.
            reason: for the log.
            key: what is left out; None for the topic.
        """
        key = key or (item.topic, None)
        pause = self._pauses.get(key, 0.0)
        self._pauses[key] = min(2 * pause, _LONGEST_PAUSE_S) if pause else _FIRST_PAUSE_S
        self._due[key] = time.monotonic() + self._pauses[key]
        if item.is_subscription:
            group, line = "read", f"the broker refuses to let the device read '{item.topic}' ({reason}): {_ADVICE}"
        elif item.seq is None:
            # One for a device's own topics, one for Home Assistant's: each further one would repeat it.
            group = item.topic.partition("/")[0]
            line = f"the broker refuses '{item.topic}' ({reason}): it and others like it are left out; {_ADVICE}"
        elif key[1] is not None:
            group = "message"
            line = (
                f"the broker {self.where} does not take a message on '{item.topic}' ({reason}): it waits in the outbox "
                "and later ones pass it"
            )
        else:
            group = "messages"
            line = (
                f"the broker {self.where} does not take messages ('{item.topic}': {reason}; {_ADVICE}): those of this "
                "topic wait in the outbox"
            )
        self._warn_once(f"refused {group}", line)

    def ended(self, under_way: Collection[UnderWay], reason: str) -> bool:
        """The connection ended while these were under way; returns whether this was reported as a refusal.

        A connection that ends twice with the same single message under way ends because of it, where the broker could
        be reached at once in between (`unreachable`).
        """
        self.careful_until = max([self.careful_until, *(item.seq for item in under_way if item.seq is not None)])
        if len(under_way) != 1:
            return False
        (item,) = under_way
        suspect, key = (item.topic, item.seq), self._key_of(item)
        if suspect != self._suspect and key not in self._pauses:
            self._suspect = suspect
            return False
        self._suspect = None
        self.refused(item, f"{reason}, each time it is sent", key=key)
        return True

    @property
    def suspects(self) -> bool:
        """Whether the last connection may have ended because of a message."""
        return self._suspect is not None

    def unreachable(self) -> None:
        """The broker cannot be reached: then the last connection ended for that, and not because of a message."""
        self._suspect = None

    def _key_of(self, item: UnderWay) -> _Key:
        """What is left out where a connection ends for this: a message, its topic, or all topics beside it."""
        # The last where another of them was refused before and none was ever taken: each denied plot would cost two
        # connections, and each end is an "offline" for Home Assistant.
        level = _level(item.topic)
        beside = {topic for topic, seq in self._pauses if seq is None and _level(topic) == level} - {item.topic}
        if item.seq is None and not item.is_subscription and level not in self._taken_levels and beside:
            return level, None
        return item.topic, item.seq if item.topic in self._taken else None

    def _warn_once(self, group: str, line: str) -> None:
        logger.log(logging.INFO if group in self._reported else logging.WARNING, "%s", line)
        self._reported.add(group)


def _level(topic: str) -> str:
    """The topic that stands for all topics beside one."""
    return topic.rpartition("/")[0] + "/+"

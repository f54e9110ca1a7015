"""Settings of the MQTT broker, a device's login and topics there, and the record of messages that it refuses."""

from __future__ import annotations

import hashlib
import logging
import re
import ssl
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated
from urllib.parse import SplitResult, unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from pydantic import Field

from agridistill.errors import ConfigError

logger = logging.getLogger(__name__)

# Replaced in a topic level: some of these characters separate levels or are wildcards, others are special in a shell.
_UNSAFE = re.compile(r"[^\w.-]+")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 60.0, 6 * 3600.0
_ADVICE = "check user name, device name and access list"
# Size of a PUBLISH packet besides topic and payload: its header, two lengths, the packet's number, no properties.
_PACKET_BYTES = 10

_Key = tuple[str, int | None]
"""What is refused: a topic, and a message's `seq` in the outbox, or None for all messages of the topic."""


@dataclass(frozen=True)
class BrokerSettings:
    """Section [broker]: the MQTT broker that gets all messages.

    Raises:
        ConfigError: `url` has another scheme, no host or a password, or there are certificates without TLS.
    """

    url: str  # `mqtt[s]://[USER@]HOST[:PORT][/PREFIX]`; the default port is 1883, or 8883 with TLS
    password_file: Path | None = None  # file with the password; None uses AGRIDISTILL_MQTT_PASSWORD
    ca_file: Path | None = None  # certificate authorities to trust; None trusts the system's
    cert_file: Path | None = None  # certificate of this device, if the broker requires one
    key_file: Path | None = None  # private key of `cert_file`
    keepalive_s: Annotated[int, Field(ge=1, le=65_535)] = 30  # seconds without traffic before the broker is pinged
    inflight: Annotated[int, Field(ge=1, le=1000)] = 20  # most messages sent and not yet acknowledged
    discovery: bool = True  # whether Home Assistant gets a description of the device
    discovery_prefix: str = "homeassistant"  # first level of the topic of that description

    def __post_init__(self) -> None:
        parts = self._parts
        if parts.password is not None:
            raise ConfigError(
                "a broker's address without a password",
                "an address with one",
                "put the password into AGRIDISTILL_MQTT_PASSWORD, or name a password_file in [broker]",
            )
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise ConfigError("a broker's address such as mqtt://host:1883", f"'{self.url}'", "correct it")
        if (self.cert_file or self.ca_file) and not self.tls:
            expected = "a broker's address with mqtts:// for ca_file or cert_file"
            raise ConfigError(expected, "mqtt://", "correct the url in [broker], or remove the certificates")

    @property
    def _parts(self) -> SplitResult:
        # The message omits the address: it may hold a password, whose '/', '#' or '?' made the address invalid.
        unusable = ConfigError(
            "a broker's address such as mqtt://host:1883",
            "an invalid address (not shown, because it may hold a password)",
            "correct it",
        )
        try:
            parts = urlsplit(self.url if "://" in self.url else f"mqtt://{self.url}")
            if parts.port == 0 or parts.query or parts.fragment or "@" in parts.path:
                raise unusable
        except ValueError:
            raise unusable from None
        return parts

    @property
    def host(self) -> str:
        """Host name or IP address of the broker."""
        return self._parts.hostname or ""

    @property
    def port(self) -> int:
        """Port in the address, else 1883, or 8883 with TLS."""
        return self._parts.port or (8883 if self.tls else 1883)

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted and the broker's certificate checked."""
        return self._parts.scheme == "mqtts"

    @property
    def username(self) -> str | None:
        """User name in the address; None without one."""
        return unquote(self._parts.username) if self._parts.username else None

    @property
    def prefix(self) -> str:
        """First levels of all topics: the path of the address, else "agridistill"."""
        return self._parts.path.strip("/") or "agridistill"


@dataclass
class Connection:
    """The connection to the broker, for the agent's state; the broker's thread updates it."""

    host: str
    port: int
    connected: bool = False


@dataclass(frozen=True)
class BrokerAccess:
    """Login and topics of a device at a broker.

    Raises:
        ConfigError: there is a password without a user name.
    """

    settings: BrokerSettings
    device: str  # the device's name, which becomes a level of its topics
    password: str | None = field(default=None, repr=False)
    ack_timeout_s: float = 30.0  # a connection is dead if a message is not acknowledged for so long

    def __post_init__(self) -> None:
        if self.password is not None and not self.settings.username:
            expected = "a user name for the broker's password, such as mqtt://USER@host"
            raise ConfigError(expected, "none", "add it to the url in [broker]")

    @property
    def where(self) -> str:
        """Host and port, for the log."""
        return f"{self.settings.host}:{self.settings.port}"

    @property
    def base(self) -> str:
        """First levels of the device's topics: the prefix and the device's name."""
        return "/".join(topic_level(part) for part in (*self.settings.prefix.split("/"), self.device))

    def topic(self, name: str) -> str:
        """Returns the full topic for a name such as "status"; docs/mqtt.md lists the names."""
        return f"{self.base}/{name}"

    def plot_topic(self, plot: str, kind: str = "plot") -> str:
        """Returns a plot's topic: `PREFIX/DEVICE/plots/PLOT`, or `…/detections/PLOT`, `…/alerts/PLOT` by `kind`."""
        return self.topic(f"{kind}s/{plot_level(plot)}")

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        """The TLS context with the certificates of the settings; None without TLS.

        Raises:
            ConfigError: a certificate cannot be read.
        """
        settings = self.settings
        if not settings.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=settings.ca_file)
            if settings.cert_file is not None:
                context.load_cert_chain(settings.cert_file, settings.key_file)
        except OSError as error:
            named = [settings.ca_file, settings.cert_file, settings.key_file]
            files = ", ".join(f"'{file}'" for file in named if file is not None)
            raise ConfigError("readable certificates for the broker", f"{files} ({error})", "check the files") from None
        return context

    def create_client(self, protocol: MQTTProtocolVersion) -> paho.Client:
        """Creates an MQTT client with the device's id and login; it is not connected yet."""
        # A clean session: nothing of an earlier connection may continue. The same client id each time: the broker then
        # ends a dead earlier connection now. Otherwise its last will ("offline") could come after our "online".
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            # Every broker takes ids of up to 23 letters and digits.
            client_id="agridistill" + hashlib.sha256(self.base.encode()).hexdigest()[:12],
            protocol=protocol,
            clean_session=None if protocol == MQTTProtocolVersion.MQTTv5 else True,
        )
        client.max_inflight_messages_set(0)  # no limit here: `Session` limits the messages under way
        if self.settings.username is not None:
            client.username_pw_set(self.settings.username, self.password)
        if self.tls is not None:
            client.tls_set_context(self.tls)
        return client


def topic_level(name: str) -> str:
    """Turns a name into one level of a topic. A name that must be changed gets a digest: no two names share a topic.

    Example:
        >>> topic_level("north")
        'north'
        >>> topic_level("north field/#3")
        'north_field_3-ff0b1c'
    """
    safe = _UNSAFE.sub("_", name).strip("_")
    return safe if safe and safe == name else with_digest(safe, name)


def plot_level(plot: str) -> str:
    """Turns a plot into one level of a topic. Photos without a plot get "all"; a plot named "all" gets a digest."""
    return with_digest("all", plot) if plot == "all" else topic_level(plot or "all")


def with_digest(safe: str, name: str) -> str:
    """Appends six digits of the sha256 of `name` to `safe`, so that different names stay different."""
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class UnderWay:
    """A message or subscription that was sent, and that the broker has not acknowledged yet."""

    topic: str
    sent: float  # when it was sent, in monotonic seconds
    seq: int | None = None  # `Pending.seq` of a message of the outbox; None for all others
    is_subscription: bool = False


class Refusals:
    """Remembers, over several connections, which messages of this device the broker refuses.

    Some brokers refuse a message with a reason (MQTT 5). Others (RabbitMQ, aedes) close the connection, and close it
    again whenever the same message comes. A refused message is skipped, sent again after pauses that double, and logged
    once.

    Args:
        where: host and port of the broker, for the log.
    """

    def __init__(self, where: str = "") -> None:
        self.where = where
        self.retain = True
        self.largest_bytes: int | None = None  # largest packet that the broker takes; None if it names no limit
        # Messages of the outbox up to this `seq` are sent one by one: a lost connection then shows which one caused it.
        self.careful_until = 0
        self._reported: set[str] = set()
        self._due: dict[_Key, float] = {}
        self._pauses: dict[_Key, float] = {}
        self._suspect: _Key | None = None
        self._taken: set[str] = set()

    def announced(self, *, retain: bool = True, largest_bytes: int | None = None) -> None:
        """Stores the limits that the broker announces: whether it retains messages, and its largest packet."""
        self.retain, self.largest_bytes = retain, largest_bytes
        if not retain:
            self._warn_once(
                "retain",
                f"the broker {self.where} keeps no retained messages: a later subscriber, such as Home Assistant, gets "
                "status, state and plots only when they change",
            )

    def fits(self, topic: str, payload: bytes, seq: int | None = None) -> bool:
        """Whether a message is small enough for the broker; logs the first message that is too large."""
        size = len(topic.encode()) + len(payload) + _PACKET_BYTES
        if self.largest_bytes is None or size <= self.largest_bytes:
            return True
        rest = "skipped" if seq is None else "kept in the outbox"
        self._warn_once(
            f"size {rest}",
            f"the broker {self.where} takes packets of up to {self.largest_bytes:,} bytes, but a message on '{topic}' "
            f"has {size:,}: it and all other messages that are too large are {rest}; raise the broker's limit",
        )
        return False

    def may_send(self, topic: str, seq: int | None = None) -> bool:
        """Whether a message or subscription can be sent now: it was not refused, or its pause is over."""
        return (topic, None) not in self._due and (topic, seq) not in self._due

    @property
    def leaves_out(self) -> bool:
        """Whether some messages may have to be skipped now."""
        return bool(self._due) or self.largest_bytes is not None

    def offers_again(self) -> bool:
        """Ends the pauses that are over; returns whether there was one, so that refused messages are sent again."""
        over = [key for key, due in self._due.items() if due <= time.monotonic()]
        for key in over:
            del self._due[key]
        return bool(over)

    def taken(self, item: UnderWay) -> None:
        """Records that the broker acknowledged a message or subscription."""
        keys = (item.topic, item.seq), (item.topic, None)
        if self._suspect == keys[0]:
            self._suspect = None
        if item.seq is not None:
            self._taken.add(item.topic)
        if self._pauses.keys() & keys:
            for key in keys:
                self._pauses.pop(key, None)
            logger.warning("the broker %s takes '%s' again", self.where, item.topic)

    def refused(self, item: UnderWay, reason: str, *, key: _Key | None = None) -> None:
        """Skips what was refused for a while, and logs it: `key`, or the whole topic if `key` is None."""
        key = key or (item.topic, None)
        self._pauses[key] = min(2 * self._pauses.get(key, _FIRST_PAUSE_S / 2), _LONGEST_PAUSE_S)
        self._due[key] = time.monotonic() + self._pauses[key]
        if item.is_subscription:
            group, what, then = "read", "to let the device read", "the device asks again later"
        elif item.seq is None:
            # One warning for the device's topics and one for Home Assistant's: more would only repeat them.
            group, what, then = (
                item.topic.partition("/")[0],
                "a message on",
                "it and similar messages are skipped for now",
            )
        elif key[1] is None:
            group, what, then = "messages", "messages on", "the messages on this topic wait in the outbox"
        else:
            group, what, then = "message", "a message on", "it waits in the outbox, and later ones are sent before it"
        line = f"the broker {self.where} refuses {what} '{item.topic}' ({reason}): {then}; {_ADVICE}"
        self._warn_once(f"refused {group}", line)

    def ended(self, under_way: Collection[UnderWay], reason: str) -> bool:
        """Records that the connection ended while `under_way` were not acknowledged.

        A connection that ends twice with the same single message under way ends because of that message, unless the
        broker was away in between (`unreachable`).

        Returns:
            Whether the end was logged as the refusal of a message.
        """
        self.careful_until = max([self.careful_until, *(item.seq for item in under_way if item.seq is not None)])
        if len(under_way) != 1:
            return False
        (item,) = under_way
        suspect = item.topic, item.seq
        # If the broker took messages on this topic before, it refuses only this message.
        key = item.topic, item.seq if item.topic in self._taken else None
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
        """Records that the broker cannot be reached: so the last connection did not end because of a message."""
        self._suspect = None

    def _warn_once(self, group: str, line: str) -> None:
        logger.log(logging.INFO if group in self._reported else logging.WARNING, "%s", line)
        self._reported.add(group)

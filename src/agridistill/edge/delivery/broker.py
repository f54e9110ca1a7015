"""The [broker] section, the login and topics of a device at its broker, and what that broker refuses."""

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

# One level of a topic: other characters would be another level, a wildcard, or trouble in a shell.
_UNSAFE = re.compile(r"[^\w.-]+")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 60.0, 6 * 3600.0
_ADVICE = "check user name, device name and access list"
# Of a PUBLISH beside topic and payload: its header, two lengths, the packet's number, no properties.
_PACKET_BYTES = 10

_Key = tuple[str, int | None]
"""What is refused: a topic, and the place of one message in the outbox, or None for all of the topic."""


@dataclass(frozen=True)
class BrokerSettings:
    """[broker]: where messages go.

    Raises:
        ConfigError: another scheme, no host, a password in the address, or certificates without TLS.
    """

    url: str  # `mqtt[s]://[USER@]HOST[:PORT][/PREFIX]`; 1883, with TLS 8883
    password_file: Path | None = None  # else AGRIDISTILL_MQTT_PASSWORD
    ca_file: Path | None = None  # certificates of trusted authorities; None for the system's
    cert_file: Path | None = None  # of this device, where the broker asks for one
    key_file: Path | None = None  # of that certificate
    keepalive_s: Annotated[int, Field(ge=1, le=65_535)] = 30  # a silence after which the broker is pinged
    inflight: Annotated[int, Field(ge=1, le=1000)] = 20  # messages under way without an acknowledgement, at most
    discovery: bool = True  # whether Home Assistant gets a description of the device
    discovery_prefix: str = "homeassistant"

    def __post_init__(self) -> None:
        parts = self._parts
        if parts.password is not None:
            raise ConfigError(
                "a broker's address without a password",
                "one with",
                "put it into AGRIDISTILL_MQTT_PASSWORD, or name a password_file under [broker]",
            )
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise ConfigError("a broker such as mqtt://host:1883", f"'{self.url}'", "correct it")
        if (self.cert_file or self.ca_file) and not self.tls:
            raise ConfigError("mqtts:// where there is a certificate", "mqtt://", "correct the broker's settings")

    @property
    def _parts(self) -> SplitResult:
        # The message omits such an address: a password with a '/', '#' or '?' makes it one.
        unusable = ConfigError("a broker such as mqtt://host:1883", "an address that is none", "correct it")
        try:
            parts = urlsplit(self.url if "://" in self.url else f"mqtt://{self.url}")
            if parts.port == 0 or parts.query or parts.fragment or "@" in parts.path:
                raise unusable
        except ValueError:
            raise unusable from None
        return parts

    @property
    def host(self) -> str:
        """Name or address."""
        return self._parts.hostname or ""

    @property
    def port(self) -> int:
        """As in the address, else the standard one."""
        return self._parts.port or (8883 if self.tls else 1883)

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted and the broker's certificate checked."""
        return self._parts.scheme == "mqtts"

    @property
    def username(self) -> str | None:
        """None for none."""
        return unquote(self._parts.username) if self._parts.username else None

    @property
    def prefix(self) -> str:
        """First levels of all topics."""
        return self._parts.path.strip("/") or "agridistill"


@dataclass
class Connection:
    """The broker in the agent's state, kept up to date by the broker's thread."""

    host: str
    port: int
    connected: bool = False


@dataclass(frozen=True)
class BrokerAccess:
    """A device at a broker: its login and its topics.

    Raises:
        ConfigError: a password without a user.
    """

    settings: BrokerSettings
    device: str  # one level of the topics
    password: str | None = field(default=None, repr=False)
    ack_timeout_s: float = 30.0  # a message without an acknowledgement for so long means a dead connection

    def __post_init__(self) -> None:
        if self.password is not None and not self.settings.username:
            raise ConfigError("a user with the password, as mqtt://USER@host", "none", "correct the broker's settings")

    @property
    def where(self) -> str:
        """Host and port, for the log."""
        return f"{self.settings.host}:{self.settings.port}"

    @property
    def base(self) -> str:
        """First levels of the device's topics."""
        return "/".join(topic_level(part) for part in (*self.settings.prefix.split("/"), self.device))

    def topic(self, name: str) -> str:
        """A topic of the device, such as "status"; see docs/mqtt.md."""
        return f"{self.base}/{name}"

    def plot_topic(self, plot: str, kind: str = "plot") -> str:
        """`PREFIX/DEVICE/plots/PLOT`, likewise of a "detection" or an "alert"."""
        return self.topic(f"{kind}s/{plot_level(plot)}")

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        """With the certificates of the settings; None without TLS.

        Raises:
            ConfigError: certificates that cannot be read.
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
            raise ConfigError("certificates that can be read", f"{files} ({error})", "check the files") from None
        return context

    def create_client(self, protocol: MQTTProtocolVersion) -> paho.Client:
        """A client with the device's name and login, not connected."""
        # A clean session: whatever an earlier connection left at the broker is not this one's. The same id: the broker
        # ends an earlier connection that only seems to be there now, and not, with its last will, after our "online".
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            # Of this device, always the same; every broker takes 23 letters and digits.
            client_id="agridistill" + hashlib.sha256(self.base.encode()).hexdigest()[:12],
            protocol=protocol,
            clean_session=None if protocol == MQTTProtocolVersion.MQTTv5 else True,
        )
        client.max_inflight_messages_set(0)  # the window is the session's
        if self.settings.username is not None:
            client.username_pw_set(self.settings.username, self.password)
        if self.tls is not None:
            client.tls_set_context(self.tls)
        return client


def topic_level(name: str) -> str:
    """A name as one level of a topic; a name that has to be changed gets a digest, so that no two share a topic.

    Example:
        >>> topic_level("north")
        'north'
        >>> topic_level("north field/#3")
        'north_field_3-ff0b1c'
    """
    safe = _UNSAFE.sub("_", name).strip("_")
    return safe if safe and safe == name else with_digest(safe, name)


def plot_level(plot: str) -> str:
    """A plot as one level of a topic; "all" stands for photos without a plot alone."""
    return with_digest("all", plot) if plot == "all" else topic_level(plot or "all")


def with_digest(safe: str, name: str) -> str:
    """A name that stands for another one alone."""
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class UnderWay:
    """A message or subscription that the broker has not acknowledged yet."""

    topic: str
    sent: float  # on the monotonic clock
    seq: int | None = None  # place in the outbox; None for what is not of the outbox
    is_subscription: bool = False


class Refusals:
    """What one broker does not take from one device, over its connections.

    Some brokers refuse a message with a reason (MQTT 5); others close the connection (RabbitMQ, aedes), and close it
    again whenever the same message comes. A refused message is left out, offered again after pauses that double, and
    reported once.

    Args:
        where: host and port, for the log.
    """

    def __init__(self, where: str = "") -> None:
        self.where = where
        self.retain = True
        self.largest_bytes: int | None = None  # of a packet
        # Messages of the outbox up to this place go one by one, so that a lost connection names its cause.
        self.careful_until = 0
        self._reported: set[str] = set()
        self._due: dict[_Key, float] = {}
        self._pauses: dict[_Key, float] = {}
        self._suspect: _Key | None = None
        self._taken: set[str] = set()

    def announced(self, *, retain: bool = True, largest_bytes: int | None = None) -> None:
        """Takes over what the broker announces when it accepts or refuses a connection."""
        self.retain, self.largest_bytes = retain, largest_bytes
        if not retain:
            self._warn_once(
                "retain",
                f"the broker {self.where} keeps no retained messages: a later subscriber, such as Home Assistant, gets "
                "status, state and plots only when they change",
            )

    def fits(self, topic: str, payload: bytes, seq: int | None = None) -> bool:
        """Whether a message is no larger than the broker allows; reports the first one that is."""
        size = len(topic.encode()) + len(payload) + _PACKET_BYTES
        if self.largest_bytes is None or size <= self.largest_bytes:
            return True
        rest = "left out" if seq is None else "kept in the outbox"
        self._warn_once(
            f"size {rest}",
            f"the broker {self.where} takes packets of up to {self.largest_bytes:,} bytes: a message of {size:,} on "
            f"'{topic}' and all others that are too large are {rest}; raise the broker's limit",
        )
        return False

    def may_send(self, topic: str, seq: int | None = None) -> bool:
        """Whether a message, or a subscription, was not refused lately."""
        return (topic, None) not in self._due and (topic, seq) not in self._due

    @property
    def leaves_out(self) -> bool:
        """Whether some messages may be left out now."""
        return bool(self._due) or self.largest_bytes is not None

    def offers_again(self) -> bool:
        """Whether the pause of a refused message has ended since the last call."""
        over = [key for key, due in self._due.items() if due <= time.monotonic()]
        for key in over:
            del self._due[key]
        return bool(over)

    def taken(self, item: UnderWay) -> None:
        """The broker acknowledged something."""
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
        """Leaves something out for a while: `key`, or the topic where it is None."""
        key = key or (item.topic, None)
        self._pauses[key] = min(2 * self._pauses.get(key, _FIRST_PAUSE_S / 2), _LONGEST_PAUSE_S)
        self._due[key] = time.monotonic() + self._pauses[key]
        if item.is_subscription:
            group, what, then = "read", "to let the device read", "it asks again later"
        elif item.seq is None:
            # One for a device's own topics, one for Home Assistant's: each further one would repeat it.
            group, what, then = item.topic.partition("/")[0], "a message on", "it and others like it are left out"
        elif key[1] is None:
            group, what, then = "messages", "messages on", "those of this topic wait in the outbox"
        else:
            group, what, then = "message", "a message on", "it waits in the outbox and later ones pass it"
        line = f"the broker {self.where} refuses {what} '{item.topic}' ({reason}): {then}; {_ADVICE}"
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
        suspect = item.topic, item.seq
        # Of a topic that was taken before, it is this message alone.
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
        """The broker cannot be reached: then the last connection ended for that, and not because of a message."""
        self._suspect = None

    def _warn_once(self, group: str, line: str) -> None:
        logger.log(logging.INFO if group in self._reported else logging.WARNING, "%s", line)
        self._reported.add(group)

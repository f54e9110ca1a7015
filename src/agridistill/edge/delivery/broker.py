"""The MQTT broker: its settings, a device's login and topics, and the record of messages that the broker refuses."""

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

from agridistill.edge.network import usable_url
from agridistill.errors import ConfigError

logger = logging.getLogger(__name__)

# Replaced in a topic level: some of these characters separate levels or are wildcards, others are special in a shell.
_UNSAFE = re.compile(r"[^\w.-]+")
# An address that may be shown: what follows a colon is a port, not a password (as in mqtt://user:password).
_SHOWN_URL = re.compile(r"(\w+://)?[^/:@?#]*(:\d*)?(/[^:@?#]*)?")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 60.0, 6 * 3600.0
_ADVICE = "check user name, device name and the broker's access list"
# Size of a PUBLISH packet besides topic and payload: its header, two lengths, the packet's number, no properties.
_PACKET_BYTES = 10

# What is refused: a topic, and a message's `seq` in the outbox, or None for all messages of the topic.
_Key = tuple[str, int | None]


@dataclass(frozen=True)
class BrokerSettings:
    """Section [broker] of watch.toml: the MQTT broker to which the agent sends its state, detections and alerts.

    Raises:
        ConfigError: `url` has no host, another scheme than mqtt or mqtts, or a password; or `ca_file` or `cert_file` is
            set without mqtts.
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
        parts = usable_url(self._whole_url, "mqtt", "mqtts")
        if parts is None or parts.query or parts.fragment or "@" in parts.path:
            # It may contain a password, whose '/', '#' or '?' made the address invalid.
            hidden = "an invalid address (hidden, because it may contain a password)"
            raise ConfigError(
                "a broker address such as mqtt://host:1883",
                f"'{self.url}'" if _SHOWN_URL.fullmatch(self.url) else hidden,
                "correct --broker, or url in [broker]",
            )
        if parts.password is not None:
            raise ConfigError(
                "a broker address without a password",
                "an address that contains a password",
                "set AGRIDISTILL_MQTT_PASSWORD, or password_file in [broker], instead",
            )
        if (self.cert_file or self.ca_file) and not self.tls:
            raise ConfigError(
                "a broker address with mqtts://, because ca_file or cert_file is set",
                f"'{self.url}'",
                "correct url in [broker], or remove ca_file and cert_file",
            )

    @property
    def _parts(self) -> SplitResult:
        return urlsplit(self._whole_url)

    @property
    def _whole_url(self) -> str:
        return self.url if "://" in self.url else f"mqtt://{self.url}"

    @property
    def host(self) -> str:
        """Host of `url`."""
        return self._parts.hostname or ""

    @property
    def port(self) -> int:
        """Port of `url`, else 8883 with TLS and 1883 without."""
        return self._parts.port or (8883 if self.tls else 1883)

    @property
    def tls(self) -> bool:
        """Whether `url` begins with mqtts://: traffic is encrypted, and the broker's certificate is verified."""
        return self._parts.scheme == "mqtts"

    @property
    def username(self) -> str | None:
        """User name in `url`."""
        return unquote(self._parts.username) if self._parts.username else None

    @property
    def prefix(self) -> str:
        """Topic prefix of all devices: the path of `url`, or "agridistill" if it has no path."""
        return self._parts.path.strip("/") or "agridistill"


@dataclass
class Connection:
    """Address of the MQTT broker, and whether the agent is connected to it now; the MQTT thread updates `connected`."""

    host: str
    port: int
    connected: bool = False


@dataclass(frozen=True)
class BrokerAccess:
    """Login and topic names of one device at the MQTT broker.

    Raises:
        ConfigError: `password` is set, but the broker's `url` has no user name.
    """

    settings: BrokerSettings
    device: str  # the device's name, which becomes a level of its topics
    password: str | None = field(default=None, repr=False)
    ack_timeout_s: float = 30.0  # a connection is dead if a message is not acknowledged within this time

    def __post_init__(self) -> None:
        if self.password is not None and not self.settings.username:
            raise ConfigError(
                "a broker address with a user name, such as mqtt://USER@host, because a password is set",
                "an address without a user name",
                "add the user name to url in [broker]",
            )

    @property
    def where(self) -> str:
        """Host and port of the broker, `HOST:PORT`, for log lines."""
        return f"{self.settings.host}:{self.settings.port}"

    @property
    def base(self) -> str:
        """Topic prefix of this device, `PREFIX/DEVICE`; characters that are special in topics are replaced."""
        return "/".join(topic_level(part) for part in (*self.settings.prefix.split("/"), self.device))

    def topic(self, name: str) -> str:
        """Returns the full MQTT topic for a name such as "status": `PREFIX/DEVICE/status`."""
        return f"{self.base}/{name}"

    def plot_topic(self, plot: str, kind: str = "plot") -> str:
        """Returns the topic `PREFIX/DEVICE/plots/PLOT`, `…/detections/PLOT` or `…/alerts/PLOT`, by `kind`."""
        return self.topic(f"{kind}s/{plot_level(plot)}")

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        """TLS context for mqtts://, else None; raises ConfigError if a certificate file cannot be read."""
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
            raise ConfigError(
                "readable certificates for the broker",
                f"{files} ({error})",
                "check ca_file, cert_file and key_file in [broker]",
            ) from None
        return context

    def create_client(self, protocol: MQTTProtocolVersion) -> paho.Client:
        """Creates a paho client with the device's client id, login and TLS context; it does not connect yet."""
        # A clean session: nothing of an earlier connection may continue. The same client id each time: the broker then
        # ends a dead earlier connection now. Otherwise its last will ("offline") could come after our "online".
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            # Every broker takes ids of up to 23 letters and digits.
            client_id="agridistill" + hashlib.sha256(self.base.encode()).hexdigest()[:12],
            protocol=protocol,
            clean_session=None if protocol == MQTTProtocolVersion.MQTTv5 else True,
        )
        client.max_inflight_messages_set(0)  # no limit here: `Session` limits the messages in flight
        if self.settings.username is not None:
            client.username_pw_set(self.settings.username, self.password)
        if self.tls is not None:
            client.tls_set_context(self.tls)
        return client


def topic_level(name: str) -> str:
    """Makes a name safe as one level of an MQTT topic: only letters, digits, `.`, `_` and `-`.

    A name that must be changed gets a hash suffix, so that two names never share a topic.

    Example:
        >>> topic_level("north")
        'north'
        >>> topic_level("north field/#3")
        'north_field_3-ff0b1c'
    """
    safe = _UNSAFE.sub("_", name).strip("_")
    return safe if safe and safe == name else with_digest(safe, name)


def plot_level(plot: str) -> str:
    """Returns a plot's topic level: "all" for photos without a plot (""); a plot named "all" gets a hash suffix."""
    return with_digest("all", plot) if plot == "all" else topic_level(plot or "all")


def with_digest(safe: str, name: str) -> str:
    """Appends six hex digits of the sha256 of `name` to `safe`, so that names with the same safe form stay distinct."""
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class InFlight:
    """A message or subscription that was sent to the broker but is not acknowledged yet."""

    topic: str
    sent: float  # when it was sent, in monotonic seconds
    seq: int | None = None  # `Pending.seq` of a message of the outbox; None for all others
    is_subscription: bool = False


class Refusals:
    """Tracks which messages the broker refuses, across reconnects, so that they do not block other messages.

    Some brokers refuse a message with a reason code (MQTT 5). Others (RabbitMQ, aedes) close the connection each time
    the message is sent. A refused message is skipped and sent again after a minute; the pause doubles with each further
    refusal, up to 6 hours. The first refusal of each kind is logged as a warning.
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
        # The item that may have ended the last connection. Set it to None if the broker is unreachable instead.
        self.suspect: _Key | None = None
        self._accepted: set[str] = set()

    def announced(self, *, retain: bool = True, largest_bytes: int | None = None) -> None:
        """Stores what the broker announces: whether it supports retained messages, and its largest packet."""
        self.retain, self.largest_bytes = retain, largest_bytes
        if not retain:
            self._warn_once(
                "retain",
                f"the broker {self.where} does not support retained messages: subscribers that connect later, such as "
                "Home Assistant, get status, state and plots only when they change",
            )

    def fits(self, topic: str, payload: bytes, seq: int | None = None) -> bool:
        """Whether a message is within the broker's largest packet size; the first one that is too large is logged."""
        size = len(topic.encode()) + len(payload) + _PACKET_BYTES
        if self.largest_bytes is None or size <= self.largest_bytes:
            return True
        rest = "are skipped" if seq is None else "wait in the outbox"
        self._warn_once(
            f"size {rest}",
            f"the broker {self.where} accepts at most {self.largest_bytes:,} bytes, but a message on '{topic}' has "
            f"{size:,}: messages that are too large {rest}; raise the broker's maximum packet size",
        )
        return False

    def may_send(self, topic: str, seq: int | None = None) -> bool:
        """Whether a message or subscription can be sent now: the broker did not refuse it, or the pause is over."""
        return (topic, None) not in self._due and (topic, seq) not in self._due

    @property
    def may_skip(self) -> bool:
        """Whether some messages may have to be skipped now: refused ones, or ones that are too large."""
        return bool(self._due) or self.largest_bytes is not None

    def end_pauses(self) -> bool:
        """Removes the pauses that are over. Returns True if there was one: refused messages must be sent again."""
        over = [key for key, due in self._due.items() if due <= time.monotonic()]
        for key in over:
            del self._due[key]
        return bool(over)

    def acknowledged(self, item: InFlight) -> None:
        """Records that the broker acknowledged a message or subscription; logs it if it was refused before."""
        keys = (item.topic, item.seq), (item.topic, None)
        if self.suspect == keys[0]:
            self.suspect = None
        if item.seq is not None:
            self._accepted.add(item.topic)
        if self._pauses.keys() & keys:
            for key in keys:
                self._pauses.pop(key, None)
            logger.warning("the broker %s accepts the topic '%s' again", self.where, item.topic)

    def refused(self, item: InFlight, reason: str, *, key: _Key | None = None) -> None:
        """Logs a refusal and starts its pause; `key` is the topic and message to skip, None skips the whole topic."""
        key = key or (item.topic, None)
        self._pauses[key] = min(2 * self._pauses.get(key, _FIRST_PAUSE_S / 2), _LONGEST_PAUSE_S)
        self._due[key] = time.monotonic() + self._pauses[key]
        if item.is_subscription:
            group, what, then = "subscription", "the subscription to", "it is tried again later"
        elif item.seq is None:
            # One warning for the device's topics and one for Home Assistant's: more would only repeat them.
            group, what, then = item.topic.partition("/")[0], "a retained message on", "it is tried again later"
        elif key[1] is None:
            group, what, then = "topic", "messages on", "they wait in the outbox and are tried again later"
        else:
            group, what, then = "message", "a message on", "it waits in the outbox, and newer ones are sent before it"
        line = f"the broker {self.where} refuses {what} '{item.topic}' ({reason}): {then}; {_ADVICE}"
        self._warn_once(f"refused {group}", line)

    def ended(self, in_flight: Collection[InFlight], reason: str) -> bool:
        """Records that the connection ended, for `reason`, while the items in `in_flight` were not acknowledged.

        If it ends twice in a row with the same single item in flight, this item is taken as the cause and counts as
        refused, unless the broker was unreachable in between. Returns whether an item was logged as refused.
        """
        self.careful_until = max([self.careful_until, *(item.seq for item in in_flight if item.seq is not None)])
        if len(in_flight) != 1:
            return False
        (item,) = in_flight
        suspect = item.topic, item.seq
        # If the broker took messages on this topic before, it refuses only this message.
        key = item.topic, item.seq if item.topic in self._accepted else None
        if suspect != self.suspect and key not in self._pauses:
            self.suspect = suspect
            return False
        self.suspect = None
        self.refused(item, f"{reason}, each time it is sent", key=key)
        return True

    def _warn_once(self, group: str, line: str) -> None:
        logger.log(logging.INFO if group in self._reported else logging.WARNING, "%s", line)
        self._reported.add(group)

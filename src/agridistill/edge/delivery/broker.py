"""The [broker] section, and the login and topics of a device at its broker."""

from __future__ import annotations

import hashlib
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agridistill.edge.store.outbox import Pending
from agridistill.errors import ConfigError

# One level of a topic: other characters would be another level, a wildcard, or trouble in a shell.
_UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class BrokerSettings:
    """[broker]: where messages go.

    Raises:
        ConfigError: another scheme, no host, a password in the address, or a value out of range.
    """

    url: str  # `mqtt[s]://[USER@]HOST[:PORT][/PREFIX]`; 1883, with TLS 8883
    password_file: Path | None = None  # else AGRIDISTILL_MQTT_PASSWORD
    ca_file: Path | None = None  # certificates of trusted authorities; None for the system's
    cert_file: Path | None = None  # of this device, where the broker asks for one
    key_file: Path | None = None  # of that certificate
    keepalive_s: int = 30  # a silence after which the broker is pinged
    inflight: int = 20  # messages under way without an acknowledgement, at most
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
        for holds, expected, got in (
            (1 <= self.inflight <= 1000, "broker.inflight from 1 to 1,000 messages", self.inflight),
            (self.keepalive_s >= 1, "broker.keepalive_s of 1 or more", self.keepalive_s),
            (self.tls or not (self.cert_file or self.ca_file), "mqtts:// where there is a certificate", "mqtt://"),
        ):
            if not holds:
                raise ConfigError(expected, str(got), "correct the broker's settings")

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

    @property
    def client_id(self) -> str:
        """Of this device at the broker, always the same; every broker takes 23 letters and digits."""
        return "agridistill" + hashlib.sha256(self.base.encode()).hexdigest()[:12]

    @property
    def status_topic(self) -> str:
        """Retained: "online", or "offline" as the MQTT last will."""
        return f"{self.base}/status"

    @property
    def state_topic(self) -> str:
        """Retained: the agent's state as JSON."""
        return f"{self.base}/state"

    @property
    def update_topic(self) -> str:
        """A signed release sent to the device."""
        return f"{self.base}/update/set"

    @property
    def update_result_topic(self) -> str:
        """Retained: the result of the last release."""
        return f"{self.base}/update/result"

    def plot_topic(self, plot: str) -> str:
        """Retained: a plot's condition."""
        return f"{self.base}/plots/{plot_level(plot)}"

    def topic_of(self, pending: Pending) -> str:
        """`PREFIX/DEVICE/detections/PLOT` or `…/alerts/PLOT`."""
        return f"{self.base}/{pending.message.kind}s/{plot_level(pending.message.plot)}"

    def create_client(self, tls: ssl.SSLContext | None, protocol: MQTTProtocolVersion) -> paho.Client:
        """A client with the device's name and login, not connected."""
        # A clean session: whatever an earlier connection left at the broker is not this one's. The same id: the broker
        # ends an earlier connection that only seems to be there now, and not, with its last will, after our "online".
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.client_id,
            protocol=protocol,
            clean_session=None if protocol == MQTTProtocolVersion.MQTTv5 else True,
        )
        client.max_inflight_messages_set(0)  # the window is the session's
        if self.settings.username is not None:
            client.username_pw_set(self.settings.username, self.password)
        if tls is not None:
            client.tls_set_context(tls)
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
    return safe if safe and safe == name else _with_digest(safe, name)


def plot_level(plot: str) -> str:
    """A plot as one level of a topic; "all" stands for photos without a plot alone."""
    return _with_digest("all", plot) if plot == "all" else topic_level(plot or "all")


def _with_digest(safe: str, name: str) -> str:
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"

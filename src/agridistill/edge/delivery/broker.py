"""How a broker is reached, and the topics of a device."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from agridistill.edge.store.outbox import Pending
from agridistill.errors import ConfigError

# One level of a topic: what is not in here would be another level, a wildcard, or trouble in a shell.
_UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class BrokerSettings:
    """How a broker is reached.

    Attributes:
        host: name or address.
        port: 1883, with TLS 8883.
        device: name of this device, one level of its topics.
        prefix: first level of all topics.
        username: None for none.
        password: never shown.
        tls: whether the connection is encrypted and the broker's certificate checked.
        ca_file: certificates of the authorities to trust; None takes the system's.
        cert_file: of this device, where the broker asks for one.
        key_file: of that certificate.
        keepalive_s: a silence after which the broker is asked whether it is there.
        inflight: messages under way without an acknowledgement, at most.
        ack_timeout_s: a message without one for so long says that the connection is dead.
    """

    host: str
    port: int = 1883
    device: str = "device"
    prefix: str = "agridistill"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    keepalive_s: int = 30
    inflight: int = 20
    ack_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for holds, expected, got in (
            (bool(self.host), "a broker's host", "none"),
            (0 < self.port < 65536, "a port from 1 to 65535", self.port),
            (1 <= self.inflight <= 1000, "1 to 1,000 messages under way", self.inflight),
            (self.keepalive_s >= 1 and self.ack_timeout_s > 0, "waiting times above 0", "less"),
            (self.tls or not (self.cert_file or self.ca_file), "mqtts:// where there is a certificate", "mqtt://"),
            (self.username or self.password is None, "a user with the password, as mqtt://USER@host", "none"),
        ):
            if not holds:
                raise ConfigError(expected, str(got), "correct the broker's settings")

    @property
    def base(self) -> str:
        """First levels of the device's topics."""
        return "/".join(topic_level(part) for part in (*self.prefix.strip("/").split("/"), self.device))

    @property
    def client_id(self) -> str:
        """Of this device at the broker, always the same; 23 letters and digits are what every broker takes."""
        return "agridistill" + hashlib.sha256(self.base.encode()).hexdigest()[:12]

    @property
    def status_topic(self) -> str:
        """Retained: "online", or "offline" by the broker's word where the device vanishes."""
        return f"{self.base}/status"

    @property
    def state_topic(self) -> str:
        """Retained: how the agent is, as JSON."""
        return f"{self.base}/state"

    @property
    def update_topic(self) -> str:
        """Where a signed release may be sent to the device."""
        return f"{self.base}/update/set"

    @property
    def update_result_topic(self) -> str:
        """Retained: what became of the last release."""
        return f"{self.base}/update/result"

    def plot_topic(self, plot: str) -> str:
        """Retained: what a plot's leaves say together."""
        return f"{self.base}/plots/{plot_level(plot)}"

    def topic_of(self, pending: Pending) -> str:
        """`PREFIX/DEVICE/detections/PLOT` or `…/alerts/PLOT`."""
        return f"{self.base}/{pending.message.kind}s/{plot_level(pending.message.plot)}"


def topic_level(name: str) -> str:
    """A name as one level of a topic; one that has to be changed gets a digest, so that no two share a topic.

    Example:
        >>> topic_level("north")
        'north'
        >>> topic_level("north field/#3")
        'north_field_3-ff0b1c'
    """
    safe = _UNSAFE.sub("_", name).strip("_")
    return safe if safe and safe == name else _with_digest(safe, name)


def plot_level(plot: str) -> str:
    """A plot as one level of a topic; "all" stands for photos without a plot, and for them alone."""
    return _with_digest("all", plot) if plot == "all" else topic_level(plot or "all")


def _with_digest(safe: str, name: str) -> str:
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def parse_broker(url: str, **settings: Any) -> BrokerSettings:
    """Settings from `mqtt://[USER@]HOST[:PORT][/PREFIX]` or `mqtts://…`.

    Args:
        url: without a password: it would stand in process lists and logs.
        settings: further ones.

    Raises:
        ConfigError: another scheme, no host, or a password.
    """
    # Nothing of such an address is shown: a password with a '/', '#' or '?' makes it one.
    unusable = ConfigError("a broker such as mqtt://host:1883", "an address that is none", "correct it")
    try:
        parts = urlsplit(url if "://" in url else f"mqtt://{url}")
        port = parts.port
    except ValueError:
        raise unusable from None
    if parts.query or parts.fragment or "@" in parts.path:
        raise unusable
    if parts.password is not None:
        raise ConfigError(
            "a broker's address without a password",
            "one with",
            "put it into AGRIDISTILL_MQTT_PASSWORD, or name a password_file under [broker]",
        )
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
        raise ConfigError("a broker such as mqtt://host:1883", f"'{url}'", "correct it")
    tls = parts.scheme == "mqtts"
    given: dict[str, Any] = {"host": parts.hostname, "port": port or (8883 if tls else 1883), "tls": tls}
    if parts.username:
        given["username"] = unquote(parts.username)
    if parts.path.strip("/"):
        given["prefix"] = parts.path.strip("/")
    return BrokerSettings(**given | settings)

"""From the outbox to an MQTT broker: at least once, in order, a bounded number under way."""

from __future__ import annotations

import logging
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from agridistill.edge.messages import Pending
from agridistill.edge.outbox import Outbox
from agridistill.errors import ConfigError, OutboxError

logger = logging.getLogger(__name__)

ONLINE, OFFLINE = b"online", b"offline"
_POLL_S = 0.02
_CONNECT_S = 10.0
_GOODBYE_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
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
            (self.cert_file is None or self.tls, "mqtts:// for a certificate", "mqtt://"),
        ):
            if not holds:
                raise ConfigError(expected, str(got), "correct the broker's settings")

    @property
    def base(self) -> str:
        """First levels of the device's topics."""
        return f"{topic_level(self.prefix)}/{topic_level(self.device)}"

    @property
    def status_topic(self) -> str:
        """Retained: "online", or "offline" by the broker's word where the device vanishes."""
        return f"{self.base}/status"

    def topic_of(self, pending: Pending) -> str:
        """`PREFIX/DEVICE/detections/PLOT` or `…/alerts/PLOT`."""
        return f"{self.base}/{pending.message.kind}s/{topic_level(pending.message.plot or 'all')}"


def topic_level(name: str) -> str:
    """A name as one level of a topic.

    Example:
        >>> topic_level("north field/#3")
        'north_field_3'
    """
    return _UNSAFE.sub("_", name).strip("_") or "_"


def parse_broker(url: str, **settings: Any) -> BrokerSettings:
    """Settings from `mqtt://[USER@]HOST[:PORT][/PREFIX]` or `mqtts://…`.

    Args:
        url: without a password: it would stand in process lists and logs.
        settings: further ones.

    Raises:
        ConfigError: another scheme, no host, or a password.
    """
    try:
        parts = urlsplit(url if "://" in url else f"mqtt://{url}")
        port = parts.port
    except ValueError as error:
        raise ConfigError("a broker such as mqtt://host:1883", f"an address with {error}", "correct it") from None
    if parts.password is not None:
        raise ConfigError(
            "a broker's address without a password",
            "one with",
            "put it into AGRIDISTILL_MQTT_PASSWORD or a file for --password-file",
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


class _LostError(Exception):
    """The connection ended, or never came to be."""


class MqttPublisher:
    """Brings what is in the outbox to the broker, and lets it go when the broker has acknowledged it.

    Every connection starts with what is not acknowledged yet, oldest first, so that a plot's messages arrive in their
    order; a message may arrive twice, with the same event id. paho's own resending is not used: it knows neither the
    order nor the limit after a reconnect, and nothing after a new start.

    Args:
        outbox: of this device.
        settings: of the broker.
        retained: told the broker on every connection, by topic: it may have forgotten. Read anew each time.
    """

    def __init__(
        self,
        outbox: Outbox,
        settings: BrokerSettings,
        retained: Callable[[], Mapping[str, bytes]] = dict,
    ) -> None:
        self.outbox, self.settings, self._retained = outbox, settings, retained
        self._connected = False
        self._told_lost = False

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        return self._connected

    def run(self, stop: threading.Event) -> None:
        """Publishes until `stop`; an outage is told once, and its end once.

        Raises:
            ConfigError: certificates that cannot be read.
        """
        tls = self._tls()
        pause = _FIRST_PAUSE_S
        while not stop.is_set():
            session = _Session(self.outbox, self.settings, tls, self._retained)
            try:
                session.open()
                self._connected = True
                if self._told_lost:
                    logger.warning("the broker %s is back", self._where)
                    self._told_lost = False
                pause = _FIRST_PAUSE_S
                while not stop.is_set():
                    session.step()
                session.say_goodbye()
            except (_LostError, OSError, OutboxError) as error:
                if not self._told_lost and not stop.is_set():
                    logger.warning("the broker %s is away (%s): messages wait in the outbox", self._where, error)
                    self._told_lost = True
            finally:
                self._connected = False
                session.close()
            # Hundreds of devices must not come back in one moment.
            stop.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    @property
    def _where(self) -> str:
        return f"{self.settings.host}:{self.settings.port}"

    def _tls(self) -> ssl.SSLContext | None:
        settings = self.settings
        if not settings.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=str(settings.ca_file) if settings.ca_file else None)
            if settings.cert_file is not None:
                context.load_cert_chain(settings.cert_file, settings.key_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError("certificates that can be read", str(error), "check the files") from None
        return context


class _Session:
    """One connection: a window of messages under way, from the oldest that is not acknowledged."""

    def __init__(
        self,
        outbox: Outbox,
        settings: BrokerSettings,
        tls: ssl.SSLContext | None,
        retained: Callable[[], Mapping[str, bytes]],
    ) -> None:
        self._outbox, self._settings, self._retained = outbox, settings, retained
        self._under_way: dict[int, tuple[int, float]] = {}
        self._acknowledged: list[int] = []
        self._last_sent = 0
        self._refused: str | None = None
        self._accepted = False
        # No id of our own and a clean session: whatever an earlier connection left at the broker is not this one's.
        client = self._client = paho.Client(CallbackAPIVersion.VERSION2, clean_session=True)
        client.max_inflight_messages_set(settings.inflight + 16)  # retained ones come on top; the window is ours
        client.connect_timeout = _CONNECT_S
        if settings.username is not None:
            client.username_pw_set(settings.username, settings.password)
        if tls is not None:
            client.tls_set_context(tls)
        client.will_set(settings.status_topic, OFFLINE, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish

    def open(self) -> None:
        """Connects, and tells what has to be retained."""
        self._client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s)
        deadline = time.monotonic() + _CONNECT_S
        while not self._accepted:
            self._loop()
            if self._refused is not None:
                raise _LostError(f"it refuses: {self._refused}")
            if time.monotonic() > deadline:
                raise _LostError("no answer")
        for topic, payload in {**self._retained(), self._settings.status_topic: ONLINE}.items():
            self._client.publish(topic, payload, qos=1, retain=True)

    def step(self) -> None:
        """Takes acknowledgements, and sends what there is room for."""
        self._loop()
        if self._acknowledged:
            seqs, self._acknowledged = self._acknowledged, []
            self._outbox.delivered(seqs)
        room = self._settings.inflight - len(self._under_way)
        if room > 0:
            for pending in self._outbox.pending(after=self._last_sent, limit=room):
                info = self._client.publish(self._settings.topic_of(pending), pending.message.payload, qos=1)
                if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                    raise _LostError(paho.error_string(info.rc))
                self._under_way[info.mid] = (pending.seq, time.monotonic())
                self._last_sent = pending.seq
        oldest = min((sent for _, sent in self._under_way.values()), default=None)
        if oldest is not None and time.monotonic() - oldest > self._settings.ack_timeout_s:
            raise _LostError(f"no acknowledgement for {self._settings.ack_timeout_s:g} s")

    def say_goodbye(self) -> None:
        """Waits a little for what is under way, and says that the device is off by its own will."""
        self._client.publish(self._settings.status_topic, OFFLINE, qos=1, retain=True)
        deadline = time.monotonic() + _GOODBYE_S
        while self._under_way and time.monotonic() < deadline:
            self._loop()
        self._client.disconnect()
        for _ in range(5):
            self._client.loop(_POLL_S)

    def close(self) -> None:
        """Lets go of the connection, whatever its state, and keeps what was acknowledged."""
        if self._acknowledged:
            try:
                self._outbox.delivered(self._acknowledged)
            except OutboxError as error:
                logger.info("acknowledged messages will be sent again: %s", error)
            self._acknowledged = []
        self._client.disconnect()
        self._client.loop(0)

    def _loop(self) -> None:
        code = self._client.loop(_POLL_S)
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS and self._refused is None:
            raise _LostError(paho.error_string(code))

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self._refused = str(reason)
        else:
            self._accepted = True

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        found = self._under_way.pop(mid, None)
        if found is not None:
            self._acknowledged.append(found[0])

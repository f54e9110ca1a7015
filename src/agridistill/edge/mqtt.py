"""From the outbox to an MQTT broker: at least once, in order, a bounded number under way."""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from agridistill.edge.broker import BrokerSettings
from agridistill.edge.outbox import Outbox
from agridistill.errors import ConfigError, OutboxError

logger = logging.getLogger(__name__)

ONLINE, OFFLINE = b"online", b"offline"
_POLL_S = 0.02
_CONNECT_S = 10.0
_GOODBYE_S = 5.0
_TELL_EVERY_S = 1.0
_LONGEST_ORDER_BYTES = 2_000_000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


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
        retained: told the broker on every connection, by topic, for it may have forgotten, and where something
            changes. Read every second.
        commands: what to do with a message on a topic; the topics are subscribed to.
    """

    def __init__(
        self,
        outbox: Outbox,
        settings: BrokerSettings,
        retained: Callable[[], Mapping[str, bytes]] = dict,
        commands: Mapping[str, Callable[[bytes], None]] | None = None,
    ) -> None:
        self.outbox, self.settings, self._retained = outbox, settings, retained
        self._commands = dict(commands or {})
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
            session = _Session(self.outbox, self.settings, tls, self._retained, self._commands)
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
        commands: Mapping[str, Callable[[bytes], None]],
    ) -> None:
        self._outbox, self._settings, self._retained, self._commands = outbox, settings, retained, commands
        self._told: dict[str, bytes] = {}
        self._tell_at = 0.0
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
        client.on_message = self._on_message

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
        for topic in self._commands:
            self._client.subscribe(topic, qos=1)
        self._client.publish(self._settings.status_topic, ONLINE, qos=1, retain=True)
        self._tell()

    def step(self) -> None:
        """Takes acknowledgements, and sends what there is room for."""
        self._loop()
        if self._acknowledged:
            seqs, self._acknowledged = self._acknowledged, []
            self._outbox.delivered(seqs)
        if time.monotonic() >= self._tell_at:
            self._tell()
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

    def _tell(self) -> None:
        """Retained topics that the broker does not know yet as they are."""
        for topic, payload in self._retained().items():
            if self._told.get(topic) != payload:
                self._client.publish(topic, payload, qos=1, retain=True)
                self._told[topic] = payload
        self._tell_at = time.monotonic() + _TELL_EVERY_S

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        act = self._commands.get(message.topic)
        # Nobody sends an order of megabytes; a retained one of no bytes takes the order back.
        if act is not None and 0 < len(message.payload) <= _LONGEST_ORDER_BYTES:
            act(bytes(message.payload))

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

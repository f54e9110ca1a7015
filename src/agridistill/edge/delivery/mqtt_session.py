"""One connection to a broker: a window of messages under way, from the oldest that is not acknowledged."""

from __future__ import annotations

import logging
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from agridistill.edge.delivery.broker import BrokerSettings
from agridistill.edge.store.outbox import Outbox
from agridistill.errors import OutboxError

logger = logging.getLogger(__name__)

ONLINE, OFFLINE = b"online", b"offline"
_POLL_S = 0.02
_CONNECT_S = 10.0
_GOODBYE_S = 5.0
_TELL_EVERY_S = 1.0
_LONGEST_ORDER_BYTES = 2_000_000


class LostError(Exception):
    """The connection ended, or never came to be."""


class DeniedError(Exception):
    """The broker is there and refuses a message."""


class OldProtocolError(LostError):
    """The broker does not answer in MQTT 5."""


@dataclass(frozen=True)
class _UnderWay:
    """A message without an acknowledgement; `seq` is None for one that is not of the outbox."""

    topic: str
    sent: float
    seq: int | None


class Session:
    """One connection.

    Args:
        outbox: what is to be sent.
        settings: of the broker.
        tls: None for none.
        retained: what the broker has to know, by topic.
        commands: what to do with a message on a topic.
        protocol: by MQTT 5 a broker says what it refuses; by 3.1.1 it acknowledges that, too.
        denied: retained topics that the broker refused before; they are left out, and new ones are added.
    """

    def __init__(
        self,
        outbox: Outbox,
        settings: BrokerSettings,
        tls: ssl.SSLContext | None,
        retained: Callable[[], Mapping[str, bytes]],
        commands: Mapping[str, Callable[[bytes], None]],
        protocol: MQTTProtocolVersion,
        denied: set[str] | None = None,
    ) -> None:
        self._outbox, self._settings, self._retained, self._commands = outbox, settings, retained, commands
        self._window, self._denied_topics = settings.inflight, denied if denied is not None else set[str]()
        self._took_one = False
        self._to_tell: deque[tuple[str, bytes]] = deque()
        self._told: dict[str, bytes] = {}
        self._tell_at = 0.0
        self._under_way: dict[int, _UnderWay] = {}
        self._acknowledged: list[int] = []
        self._last_sent = 0
        self._refused = self._denied = ""
        self._ended = ""
        self._accepted = False
        self._is_new = protocol == MQTTProtocolVersion.MQTTv5
        self.is_proven = False
        """Whether the broker took something, or nothing waits for it."""
        # A clean session: whatever an earlier connection left at the broker is not this one's. The same id: the broker
        # ends an earlier connection that only seems to be there now, and not, with its last will, after our "online".
        client = self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            protocol=protocol,
            clean_session=None if self._is_new else True,
        )
        client.max_inflight_messages_set(0)  # the window is ours
        client.connect_timeout = _CONNECT_S
        if settings.username is not None:
            client.username_pw_set(settings.username, settings.password)
        if tls is not None:
            client.tls_set_context(tls)
        client.will_set(settings.status_topic, OFFLINE, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message

    def open(self) -> None:
        """Connects, and begins to tell what has to be retained.

        Raises:
            OldProtocolError: it does not answer in MQTT 5.
            LostError: it does not answer, or refuses the user.
            OSError: nobody is there.
        """
        self._client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s)
        deadline = time.monotonic() + _CONNECT_S
        while not self._accepted:
            try:
                self._loop()
            except LostError as error:
                # A broker of 3.1.1 alone closes, with an answer that MQTT 5 does not know.
                raise (OldProtocolError if self._is_new else LostError)(str(error)) from None
            if self._refused:
                old = self._is_new and "rotocol" in self._refused
                raise (OldProtocolError if old else LostError)(f"it refuses: {self._refused}")
            if time.monotonic() > deadline:
                raise LostError("no answer")
        for topic in self._commands:
            self._client.subscribe(topic, qos=1)
        self._to_tell.append((self._settings.status_topic, ONLINE))
        self._look_what_to_tell()

    def step(self) -> None:
        """Takes acknowledgements, and sends what there is room for.

        Raises:
            LostError: the connection ended, or an acknowledgement does not come.
            DeniedError: the broker refuses a message, which stays in the outbox.
            OutboxError: the disk refuses.
        """
        self._loop()
        if self._acknowledged:
            seqs, self._acknowledged = self._acknowledged, []
            self._outbox.delivered(seqs)
            self._took_one = self.is_proven = True
        if self._denied:
            raise DeniedError(self._denied)
        if time.monotonic() >= self._tell_at:
            self._look_what_to_tell()
        self._send()
        oldest = min((each.sent for each in self._under_way.values()), default=None)
        if oldest is not None and time.monotonic() - oldest > self._settings.ack_timeout_s:
            raise LostError(f"no acknowledgement for {self._settings.ack_timeout_s:g} s")
        if not self._under_way and not self._to_tell:
            self.is_proven = True

    def say_goodbye(self) -> None:
        """Waits a little for what is under way, and says that the device is off by its own will."""
        self._look_what_to_tell()
        self._to_tell.append((self._settings.status_topic, OFFLINE))
        deadline = time.monotonic() + _GOODBYE_S
        while (self._under_way or self._to_tell) and time.monotonic() < deadline:
            self._tell_next()
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
        # paho closes the pair of sockets that wakes it when the client is let go of. In a circle with its callbacks
        # that is some day: a broker that refuses for hours would fill the table of open files before.
        self._client.on_connect = self._client.on_disconnect = None
        self._client.on_publish = self._client.on_message = None

    def _look_what_to_tell(self) -> None:
        """Retained topics that the broker does not know yet as they are."""
        for topic, payload in self._retained().items():
            if self._told.get(topic) != payload and topic not in self._denied_topics:
                self._to_tell.append((topic, payload))
                self._told[topic] = payload
        self._tell_at = time.monotonic() + _TELL_EVERY_S

    def _send(self) -> None:
        if self._to_tell or any(each.seq is None for each in self._under_way.values()):
            self._tell_next()
            return
        # The first one alone: Mosquitto 2.0 closes the connection behind a message that it refuses where others follow,
        # and its answer may be lost with it.
        room = (self._window if self._took_one else 1) - len(self._under_way)
        if room > 0:
            for pending in self._outbox.pending(after=self._last_sent, limit=room):
                self._publish(self._settings.topic_of(pending), pending.message.payload, pending.seq)
                self._last_sent = pending.seq

    def _tell_next(self) -> None:
        """One retained message, alone under way for the same reason."""
        if self._to_tell and not self._under_way:
            topic, payload = self._to_tell.popleft()
            self._publish(topic, payload, None)

    def _publish(self, topic: str, payload: bytes, seq: int | None) -> None:
        info = self._client.publish(topic, payload, qos=1, retain=seq is None)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise LostError(self._ended or paho.error_string(info.rc))
        self._under_way[info.mid] = _UnderWay(topic, time.monotonic(), seq)

    def _loop(self) -> None:
        try:
            code = self._client.loop(_POLL_S)
        except (ValueError, IndexError, MQTTException) as error:
            # What is no MQTT at all; paho has no one error for it.
            raise LostError(f"an answer that cannot be read ({type(error).__name__})") from None
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS and not (self._refused or self._denied):
            raise LostError(self._ended or paho.error_string(code))

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self._refused = str(reason)
            return
        self._accepted = True
        # More at once would be an offence, for which a broker closes the connection (MQTT 5, 3.2.2.3.3).
        self._window = min(self._window, getattr(properties, "ReceiveMaximum", self._window))

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            self._ended = f"it ends the connection: {reason}"

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        found = self._under_way.pop(mid, None)
        if found is None:
            return
        if not reason.is_failure:
            if found.seq is not None:
                self._acknowledged.append(found.seq)
        elif found.seq is None:
            # One for a device's own topics, one for Home Assistant's: each further one would say the same.
            first_level = found.topic.partition("/")[0]
            told = any(topic.partition("/")[0] == first_level for topic in self._denied_topics)
            logger.log(
                logging.INFO if told else logging.WARNING,
                "the broker refuses '%s' (%s): it and others like it are left out; "
                "check user name, device name and access list",
                found.topic,
                reason,
            )
            self._denied_topics.add(found.topic)
        elif not self._denied:
            self._denied = f"'{found.topic}': {reason}; check user name, device name and access list"

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        act = self._commands.get(message.topic)
        # Nobody sends an order of megabytes; a retained one of no bytes takes the order back.
        if act is not None and 0 < len(message.payload) <= _LONGEST_ORDER_BYTES:
            act(bytes(message.payload))

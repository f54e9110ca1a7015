"""One connection to an MQTT broker: sends messages, the oldest first and a limited number at a time."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from agridistill.edge.delivery.broker import BrokerAccess, InFlight, Refusals
from agridistill.edge.store.outbox import Outbox
from agridistill.errors import OutboxError

logger = logging.getLogger(__name__)

ONLINE, OFFLINE = b"online", b"offline"
_CONNECT_S, _POLL_S, _COLLECT_EVERY_S, _GOODBYE_S = 10.0, 0.02, 1.0, 5.0
_SKIMMED = 200
# Reason codes of MQTT 5.
_WITH_WILL, _NO_RETAIN, _NO_QOS = 0x04, 0x9A, 0x9B
# The broker refuses the device: client id, user or password, rights, a ban, authentication method.
_ABOUT_THE_DEVICE = (0x85, 0x86, 0x87, 0x8A, 0x8C)
# The broker ends a connection, but not because of a message: it is busy, shuts down, had no traffic, another device has
# this name, an operator ended it, another server is to be used, there are too many connections.
_ABOUT_NO_MESSAGE = (0x89, 0x8B, 0x8D, 0x8E, 0x98, 0x9C, 0x9D, 0x9F, 0xA0)


class LostError(Exception):
    """The connection to the broker ended, or could not be established."""


class UnansweredError(LostError):
    """The broker gives no valid answer in MQTT 5: it supports only 3.1.1, or the network failed."""


class NoRetainError(LostError):
    """The broker refuses a retained last will; connect again, and the next session has one that is not retained."""


class RefusedError(LostError):
    """The broker answers, but refuses this device or acknowledges no messages; `remedy` says what the user can do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


class Session:
    """One connection to the MQTT broker; sends retained payloads and the messages of the outbox.

    The arguments are those of `MqttPublisher`; `refusals` continues over several sessions. With MQTT 3.1.1 a broker may
    acknowledge a message that it refuses.
    """

    def __init__(
        self,
        outbox: Outbox,
        access: BrokerAccess,
        protocol: MQTTProtocolVersion,
        refusals: Refusals | None = None,
        retained: Callable[[], Mapping[str, bytes]] = dict,
        commands: Mapping[str, Callable[[bytes], None]] | None = None,
    ) -> None:
        self._outbox, self._access, self._retained, self._commands = outbox, access, retained, commands or {}
        self._window, self._refusals = access.settings.inflight, refusals or Refusals()
        self._status = access.topic("status")
        # Payloads by topic; None is a subscription to the topic.
        self._to_send: dict[str, bytes | None] = {}
        self._known: dict[str, bytes | None] = {}
        self._collect_at = 0.0
        self._in_flight: dict[int, InFlight] = {}
        self._acknowledged: list[int] = []
        self._last_sent, self._starts_over = 0, False
        self._delivered_one = self._is_turn_of_outbox = False
        self._answer: ReasonCode | None = None
        self._max_qos = 1
        self._ended, self._ends_for_a_message = "", True
        self._was_refused = self._said_goodbye = False
        self._is_mqtt5 = protocol == MQTTProtocolVersion.MQTTv5
        self.confirmed_working = False  # the broker acknowledged a message, or no message waits for it
        client = self._client = access.create_client(protocol)
        client.connect_timeout = _CONNECT_S
        client.will_set(self._status, OFFLINE, qos=1, retain=self._refusals.retain)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_publish, client.on_subscribe = self._on_publish, self._on_subscribe
        client.on_message = self._on_message

    def open(self) -> None:
        """Connects to the broker and publishes the device's status "online".

        Raises:
            UnansweredError: there is no valid answer in MQTT 5; try 3.1.1.
            RefusedError: the broker refuses this device, or acknowledges no messages.
            NoRetainError: the broker refuses the retained last will; try again with a new session.
            LostError: there is no answer within 10 s, or the broker refuses the connection.
            OSError: the broker cannot be reached.
        """
        settings = self._access.settings
        self._client.connect(settings.host, settings.port, settings.keepalive_s)
        deadline = time.monotonic() + _CONNECT_S
        # A broker that only speaks 3.1.1 closes the connection, sends an invalid answer, or is silent (amqtt).
        unanswered = UnansweredError if self._is_mqtt5 else LostError
        while self._answer is None:
            try:
                self._loop()
            except LostError as error:
                raise unanswered(str(error)) from None
            if self._answer is None and time.monotonic() > deadline:
                raise unanswered(f"no answer within {_CONNECT_S:g} s")
        self._require_accepted(self._answer)
        # First "online": messages that the broker may refuse, and for which it may close the connection, come later.
        if self._refusals.may_send(self._status):
            self._publish(self._status, ONLINE, None)
        self._collect_changes()

    def step(self) -> None:
        """Does network I/O for up to 20 ms: deletes acknowledged messages from the outbox, and sends further ones.

        Call it in a loop. The setting `inflight` limits the messages that are sent but not acknowledged.

        Raises:
            LostError: the connection ended, or an acknowledgement took longer than `ack_timeout_s`.
            OutboxError: the outbox cannot be read or written.
        """
        self._loop()
        if self._acknowledged:
            seqs, self._acknowledged = self._acknowledged, []
            self._outbox.delivered(seqs)
            self._delivered_one = self.confirmed_working = True
        if time.monotonic() >= self._collect_at:
            self._collect_changes()
        self._send()
        oldest = min((each.sent for each in self._in_flight.values()), default=None)
        if oldest is not None and time.monotonic() - oldest > self._access.ack_timeout_s:
            self._ended = f"no acknowledgement for {self._access.ack_timeout_s:g} s"
            raise LostError(self._ended)
        if not self._in_flight and not self._to_send:
            self.confirmed_working = True

    def explain_end(self) -> bool:
        """Records in `refusals` why the connection ended.

        Returns:
            True if the caller need not warn of an outage: a refusal was logged, or only a reconnect can show the cause.
        """
        in_flight = list(self._in_flight.values()) if self._ends_for_a_message else []
        is_reported = self._refusals.ended(in_flight, self._ended or "the broker closes the connection")
        return is_reported or self._was_refused or (bool(in_flight) and not self._ended)

    def say_goodbye(self) -> None:
        """Ends the connection cleanly: waits up to 5 s for acknowledgements, publishes "offline" and disconnects.

        If 5 s are not enough, `close` makes the broker publish the last will, which is "offline", too.
        """
        self._collect_changes()
        self._to_send[self._status] = OFFLINE  # sent last
        deadline = time.monotonic() + _GOODBYE_S
        while (self._in_flight or self._to_send) and time.monotonic() < deadline:
            if not self._in_flight:
                self._send_next()
            self._loop()
        if self._in_flight or self._to_send:
            return
        self._said_goodbye = True
        self._client.disconnect()
        for _ in range(5):
            self._client.loop(_POLL_S)

    def close(self) -> None:
        """Closes the connection in any state; deletes acknowledged messages from the outbox.

        Without a successful `say_goodbye` the broker then publishes the last will, "offline".
        """
        if self._acknowledged:
            try:
                self._outbox.delivered(self._acknowledged)
            except OutboxError as error:
                logger.info("acknowledged messages cannot be deleted, so they will be sent again: %s", error)
            self._acknowledged = []
        connection = self._client.socket()
        # After a failure the connection must end so that the broker publishes the last will. In 3.1.1 every DISCONNECT
        # cancels the last will, so the socket is closed instead.
        if not self._said_goodbye and self._is_mqtt5 and self._answer is not None and not self._answer.is_failure:
            self._client.disconnect(ReasonCode(PacketTypes.DISCONNECT, identifier=_WITH_WILL))
        elif not self._said_goodbye and isinstance(connection, socket.socket):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._client.loop(0)
        # paho closes its pair of sockets when the client is garbage-collected. The client and its callbacks refer to
        # each other, so that comes late: during hours of refused connections the process would run out of open files.
        del self._client

    def _collect_changes(self) -> None:
        """Collects the subscriptions to make, and the retained payloads that changed since they were sent."""
        self._starts_over |= self._refusals.end_pauses()
        wanted = {**dict.fromkeys(self._commands), **self._retained()}
        for topic, payload in wanted.items():
            if (topic, payload) not in self._known.items() and self._refusals.may_send(topic):
                self._known[topic] = payload
                if payload is None or self._refusals.fits(topic, payload):
                    self._to_send[topic] = payload
        # Keep the order of importance, also for payloads that wait already: the state comes before the plots.
        self._to_send = {topic: self._to_send[topic] for topic in wanted if topic in self._to_send} | self._to_send
        self._collect_at = time.monotonic() + _COLLECT_EVERY_S

    def _send(self) -> None:
        if any(each.seq is None for each in self._in_flight.values()):
            return
        # Retained payloads, which the broker may refuse, wait until it has acknowledged one message of the outbox. Then
        # both take turns: on a slow line the state of many plots must not delay detections and alerts.
        if not self._to_send or self._is_turn_of_outbox or not self._delivered_one:
            self._send_from_outbox()
            self._is_turn_of_outbox = False
        if self._to_send and not self._in_flight:
            self._send_next()
            self._is_turn_of_outbox = True

    def _send_from_outbox(self) -> None:
        if self._starts_over and not self._in_flight:
            self._last_sent, self._starts_over = 0, False
        # Send the first message alone: if Mosquitto 2.0 refuses a message and others follow, it closes the connection,
        # and its reason code may be lost.
        goes_alone = not self._delivered_one or self._last_sent < self._refusals.careful_until
        room = (1 if goes_alone else self._window) - len(self._in_flight)
        if room <= 0:
            return
        limit = _SKIMMED if self._refusals.may_skip else room
        for pending in self._outbox.pending(after=self._last_sent, limit=limit):
            self._last_sent = pending.seq
            message = pending.message
            topic, payload = self._access.plot_topic(message.plot, message.kind), message.payload
            if self._refusals.may_send(topic, pending.seq) and self._refusals.fits(topic, payload, pending.seq):
                self._publish(topic, payload, pending.seq)
                room -= 1
                if not room:
                    return

    def _send_next(self) -> None:
        """Sends one retained message or subscription; it is called only if nothing is in flight."""
        topic = next(iter(self._to_send))
        payload = self._to_send.pop(topic)
        if not self._refusals.may_send(topic):
            self._known.pop(topic, None)
        elif payload is None:
            code, mid = self._client.subscribe(topic, qos=1)
            self._require_sent(code)
            self._in_flight[mid or 0] = InFlight(topic, time.monotonic(), is_subscription=True)
        else:
            self._publish(topic, payload, None)

    def _publish(self, topic: str, payload: bytes, seq: int | None) -> None:
        info = self._client.publish(topic, payload, qos=1, retain=seq is None and self._refusals.retain)
        self._require_sent(info.rc)
        self._in_flight[info.mid] = InFlight(topic, time.monotonic(), seq)

    def _require_sent(self, code: MQTTErrorCode) -> None:
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise LostError(self._ended or paho.error_string(code))

    def _loop(self) -> None:
        try:
            code = self._client.loop(_POLL_S)
        except (ValueError, IndexError, MQTTException) as error:
            # The answer is not MQTT; paho raises various errors for it.
            raise LostError(f"the broker's answer is not MQTT ({type(error).__name__})") from None
        # A broker that refuses a login also closes the connection: `_require_accepted` reports the refusal instead.
        if self._answer is None or not self._answer.is_failure:
            self._require_sent(code)

    def _require_accepted(self, answer: ReasonCode) -> None:
        if answer.value == _NO_QOS or self._max_qos == 0:
            raise RefusedError("the broker acknowledges no messages: its maximum QoS is 0", "allow QoS 1 in the broker")
        if not answer.is_failure:
            return
        if self._is_mqtt5 and "rotocol" in str(answer):
            raise UnansweredError(f"the broker refuses the connection: {answer}")
        if answer.value == _NO_RETAIN and self._refusals.retain:
            self._refusals.announced(retain=False)
            raise NoRetainError(str(answer))
        if answer.value in _ABOUT_THE_DEVICE:
            raise RefusedError(f"the broker refuses this device: {answer}", "check user name, password and certificate")
        raise LostError(f"the broker refuses the connection: {answer}")

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._answer = reason
        if reason.is_failure:
            return
        self._max_qos = getattr(properties, "MaximumQoS", 1)
        self._refusals.announced(
            retain=bool(getattr(properties, "RetainAvailable", True)),
            largest_bytes=getattr(properties, "MaximumPacketSize", None),
        )
        # A broker closes the connection if more messages are in flight than it allows (MQTT 5, 3.2.2.3.3).
        self._window = min(self._window, getattr(properties, "ReceiveMaximum", self._window))

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            self._ended = f"the broker ends the connection: {reason}"
            self._ends_for_a_message = reason.value not in _ABOUT_NO_MESSAGE

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        self._resolve(mid, str(reason) if reason.is_failure else "")

    def _on_subscribe(self, client: Any, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        self._resolve(mid, next((str(reason) for reason in reasons if reason.is_failure), ""))

    def _resolve(self, mid: int, refusal: str) -> None:
        found = self._in_flight.pop(mid, None)
        if found is None:
            return
        self._was_refused = bool(refusal)
        if refusal:
            self._refusals.refused(found, refusal)
            self._known.pop(found.topic, None)  # sent again once `Refusals.may_send` allows it
            return
        self._refusals.acknowledged(found)
        if found.seq is not None:
            self._acknowledged.append(found.seq)

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        act = self._commands.get(message.topic)
        # An empty message only clears a retained command.
        if act is not None and message.payload:
            act(bytes(message.payload))

"""Sends the outbox to an MQTT broker: connects, reconnects after an outage, and logs each outage once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from paho.mqtt.enums import MQTTProtocolVersion

from agridistill.edge.delivery.broker import BrokerAccess, Connection, Refusals
from agridistill.edge.delivery.session import LostError, NoRetainError, RefusedError, Session, UnansweredError
from agridistill.edge.network import Backoff
from agridistill.edge.store.outbox import Outbox
from agridistill.errors import OutboxError

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
# Only a connection of this length resets the pauses: two devices with the same name keep disconnecting each other.
_STEADY_S = 20.0
# If a broker spoke MQTT 5 before, 3.1.1 is tried only after this number of attempts without an answer in a row.
_MOST_UNANSWERED = 3


class MqttPublisher:
    """Sends the messages of the outbox to the MQTT broker, and deletes each one after the broker acknowledged it.

    Each connection starts with the oldest message that is not acknowledged, so the messages of a plot arrive in order.
    A message may arrive twice, with the same event id. A message that the broker refuses waits, and does not block
    others. paho's own queue is not used: after a reconnect it ignores order and limit, and a restart loses it.

    Args:
        connection: its field `connected` is set whenever the connection opens or ends.
        retained: called every second; returns the retained payloads by topic, the most important first. Each payload is
            sent on a new connection and when it changes; an empty one deletes the topic's message.
        commands: by topic, a function that is called with the payload of each message received there.

    Raises:
        ConfigError: a certificate file cannot be read.
    """

    def __init__(
        self,
        outbox: Outbox,
        access: BrokerAccess,
        connection: Connection,
        retained: Callable[[], Mapping[str, bytes]] = dict,
        commands: Mapping[str, Callable[[bytes], None]] | None = None,
    ) -> None:
        self._outbox, self._access, self._retained, self._commands = outbox, access, retained, commands or {}
        self.connection = connection
        self._refusals = Refusals(access.where)
        self._reported: set[str] = set()  # kinds of trouble that were logged since the broker worked last
        self._reported_mqtt3 = self._spoke_mqtt5 = False
        self._unanswered = 0
        access.tls  # noqa: B018 - raises now if a certificate cannot be read

    def run(self, stop: threading.Event) -> None:
        """Publishes until `stop` is set; reconnects after outages, and logs start and end of each outage once."""
        where = self._access.where
        # The pauses vary, so that hundreds of devices do not reconnect at the same moment.
        backoff, was_at_once = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S), False
        while not stop.is_set():
            session: Session | None = None
            try:
                session = self._open()
                self.connection.connected = True
                opened = time.monotonic()
                while not stop.is_set():
                    session.step()
                    if session.confirmed_working and self._reported:
                        logger.warning("the broker %s is back", where)
                        self._reported.clear()
                    if time.monotonic() - opened > _STEADY_S:
                        backoff.reset()
                session.say_goodbye()
            except OutboxError as error:
                self._report("disk", f"the outbox for the broker {where} cannot be used: {error}", stop)
            except (LostError, OSError, UnicodeError) as error:
                if session is None:
                    self._refusals.suspect = None
                if session is not None and session.explain_end():
                    logger.info("the connection to the broker %s ended (%s)", where, error)
                elif isinstance(error, RefusedError):
                    line = f"the broker {where} cannot be used ({error}): messages wait in the outbox; {error.remedy}"
                    self._report("refused", line, stop)
                else:
                    self._report("away", f"the broker {where} is away ({error}): messages wait in the outbox", stop)
            finally:
                self.connection.connected = False
                if session is not None:
                    session.close()
            # Reconnect at once to find out whether the broker refuses a message: a broker that restarts is still away.
            was_at_once = self._refusals.suspect is not None and not was_at_once
            if not was_at_once:
                stop.wait(backoff.pause_s())

    def _open(self) -> Session:
        """Opens a connection with MQTT 5 or, if the broker does not know that, with MQTT 3.1.1."""
        while True:
            try:
                session = self._open_by(MQTTProtocolVersion.MQTTv5)
                self._spoke_mqtt5, self._unanswered = True, 0
                return session
            except NoRetainError:
                continue
            except UnansweredError:
                self._unanswered += 1
                if self._spoke_mqtt5 and self._unanswered < _MOST_UNANSWERED:
                    raise
                break
        session = self._open_by(MQTTProtocolVersion.MQTTv311)
        if not self._reported_mqtt3:
            logger.warning(
                "the broker %s supports only MQTT 3.1.1: messages that its access list refuses may be lost unnoticed",
                self._access.where,
            )
            self._reported_mqtt3 = True
        return session

    def _open_by(self, protocol: MQTTProtocolVersion) -> Session:
        session = Session(self._outbox, self._access, protocol, self._refusals, self._retained, self._commands)
        try:
            session.open()
        except BaseException:
            session.close()
            raise
        return session

    def _report(self, kind: str, line: str, stop: threading.Event) -> None:
        if kind not in self._reported and not stop.is_set():
            logger.warning("%s", line)
            self._reported.add(kind)

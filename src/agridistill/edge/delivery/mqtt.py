"""From the outbox to an MQTT broker: connects, reconnects after an outage, and reports both once."""

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
# Two devices of one name disconnect each other: a connection shorter than this does not shorten the pauses.
_STEADY_S = 20.0
# In a row, by a broker that spoke MQTT 5 before: a lost connection is no sign of another version.
_MOST_UNANSWERED = 3


class MqttPublisher:
    """Sends what is in the outbox to the broker, and removes it when the broker has acknowledged it.

    Every connection starts with what is not acknowledged yet, oldest first, so that a plot's messages arrive in their
    order; a message may arrive twice, with the same event id. paho's own resending is not used: it knows neither the
    order nor the limit after a reconnect, and nothing after a new start. What the broker denies waits, and lets the
    rest pass (`Refusals`).

    Args:
        retained: payloads by topic that the broker keeps, the most important first; an empty one clears its topic. Read
            every second, sent on every connection and where something changes.
        commands: handlers of messages by topic; the topics are subscribed to.
        connection: is kept up to date.

    Raises:
        ConfigError: certificates that cannot be read.
    """

    def __init__(
        self,
        outbox: Outbox,
        access: BrokerAccess,
        retained: Callable[[], Mapping[str, bytes]] = dict,
        commands: Mapping[str, Callable[[bytes], None]] | None = None,
        connection: Connection | None = None,
    ) -> None:
        self._outbox, self._access, self._retained, self._commands = outbox, access, retained, commands or {}
        self.connection = connection or Connection(access.settings.host, access.settings.port)
        self._refusals = Refusals(access.where)
        self._reported: set[str] = set()  # kinds of trouble since the broker was there
        self._reported_old = self._spoke_new = False
        self._unanswered = 0
        access.tls  # noqa: B018 - unreadable certificates end the start

    def run(self, stop: threading.Event) -> None:
        """Publishes until `stop`; an outage is logged once, and its end once."""
        where = self._access.where
        # Hundreds of devices must not reconnect in one moment: pauses vary.
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
                self._report("disk", f"nothing goes to the broker {where}: {error}", stop)
            except (LostError, OSError, UnicodeError) as error:
                if session is None:
                    self._refusals.unreachable()
                if session is not None and session.explain_end():
                    logger.info("the connection to the broker %s ended (%s)", where, error)
                elif isinstance(error, RefusedError):
                    line = f"the broker {where} {error}: messages wait in the outbox; {error.remedy}"
                    self._report("refused", line, stop)
                else:
                    self._report("away", f"the broker {where} is away ({error}): messages wait in the outbox", stop)
            finally:
                self.connection.connected = False
                if session is not None:
                    session.close()
            # Only a broker that is there at once refuses a message; one that starts anew is not.
            was_at_once = self._refusals.suspects and not was_at_once
            if not was_at_once:
                stop.wait(backoff.pause_s())

    def _open(self) -> Session:
        """A connection by MQTT 5, else by 3.1.1."""
        while True:
            try:
                session = self._open_by(MQTTProtocolVersion.MQTTv5)
                self._spoke_new, self._unanswered = True, 0
                return session
            except NoRetainError:
                continue
            except UnansweredError:
                self._unanswered += 1
                if self._spoke_new and self._unanswered < _MOST_UNANSWERED:
                    raise
                break
        session = self._open_by(MQTTProtocolVersion.MQTTv311)
        if not self._reported_old:
            line = "the broker %s speaks MQTT 3.1.1 alone: it acknowledges what its access list denies, too"
            logger.warning(line, self._access.where)
            self._reported_old = True
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

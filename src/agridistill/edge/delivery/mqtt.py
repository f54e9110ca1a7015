"""From the outbox to an MQTT broker: connects, comes back after an outage, and tells of both once."""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping

from paho.mqtt.enums import MQTTProtocolVersion

from agridistill.edge.delivery.allowance import Allowance
from agridistill.edge.delivery.broker import BrokerSettings
from agridistill.edge.delivery.lost import LostError, OldProtocolError, RefusedError, TermsError, UnansweredError
from agridistill.edge.delivery.mqtt_session import Session
from agridistill.edge.store.outbox import Outbox
from agridistill.errors import ConfigError, OutboxError

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
# Two devices of one name throw each other out: what does not last so long does not shorten the pauses.
_STEADY_S = 20.0
# In a row, by a broker that spoke MQTT 5 before: a lost connection shows no other version.
_MOST_UNANSWERED = 3


class MqttPublisher:
    """Brings what is in the outbox to the broker, and lets it go when the broker has acknowledged it.

    Every connection starts with what is not acknowledged yet, oldest first, so that a plot's messages arrive in their
    order; a message may arrive twice, with the same event id. paho's own resending is not used: it knows neither the
    order nor the limit after a reconnect, and nothing after a new start. What the broker denies waits, and lets the
    rest pass (`Allowance`).

    Args:
        outbox: of this device.
        settings: of the broker.
        retained: told the broker on every connection, by topic, for it may have forgotten, and where something
            changes. Read every second.
        commands: what to do with a message on a topic; the topics are subscribed to.

    Raises:
        ConfigError: certificates that cannot be read.
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
        self._told: set[str] = set()  # kinds of trouble since the broker was there
        self._told_old = self._spoke_new = False
        self._unanswered = 0
        self._allowance = Allowance(self._where)
        self._tls = _tls_context(settings)

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        return self._connected

    def run(self, stop: threading.Event) -> None:
        """Publishes until `stop`; an outage is told once, and its end once."""
        pause, was_at_once = _FIRST_PAUSE_S, False
        while not stop.is_set():
            session: Session | None = None
            try:
                session = self._opened()
                self._connected = True
                opened = time.monotonic()
                while not stop.is_set():
                    session.step()
                    if session.is_proven:
                        self._tell_back()
                    if time.monotonic() - opened > _STEADY_S:
                        pause = _FIRST_PAUSE_S
                session.say_goodbye()
            except OutboxError as error:
                self._tell_trouble("disk", f"nothing goes to the broker {self._where}: {error}", stop)
            except RefusedError as error:
                self._allowance.unreachable()
                self._tell_trouble(
                    "refused",
                    f"the broker {self._where} refuses the device ({error}): messages wait in the outbox; check user "
                    "name, password and certificate",
                    stop,
                )
            except (LostError, OSError, UnicodeError) as error:
                if session is None:
                    self._allowance.unreachable()
                if session is not None and session.explain_end():
                    logger.info("the connection to the broker %s ended (%s)", self._where, error)
                else:
                    self._tell_trouble(
                        "away", f"the broker {self._where} is away ({error}): messages wait in the outbox", stop
                    )
            finally:
                self._connected = False
                if session is not None:
                    session.close()
            # Only a broker that is there at once refuses a message; one that starts anew is not.
            was_at_once = self._allowance.suspects and not was_at_once
            if was_at_once:
                continue
            # Hundreds of devices must not come back in one moment.
            stop.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _opened(self) -> Session:
        """A connection by MQTT 5, else by 3.1.1."""
        while True:
            try:
                session = self._opened_by(MQTTProtocolVersion.MQTTv5)
                self._spoke_new, self._unanswered = True, 0
                return session
            except TermsError:
                continue  # with another last will; a broker has two reasons at most
            except OldProtocolError:
                break
            except UnansweredError:
                self._unanswered += 1
                if self._spoke_new and self._unanswered < _MOST_UNANSWERED:
                    raise
                break
        session = self._opened_by(MQTTProtocolVersion.MQTTv311)
        if not self._told_old:
            logger.warning(
                "the broker %s speaks MQTT 3.1.1 alone: it acknowledges what its access list denies, too", self._where
            )
            self._told_old = True
        return session

    def _opened_by(self, protocol: MQTTProtocolVersion) -> Session:
        session = Session(
            self.outbox, self.settings, self._tls, self._retained, self._commands, protocol, self._allowance
        )
        try:
            session.open()
        except BaseException:
            session.close()
            raise
        return session

    def _tell_trouble(self, kind: str, line: str, stop: threading.Event) -> None:
        if kind not in self._told and not stop.is_set():
            logger.warning("%s", line)
            self._told.add(kind)

    def _tell_back(self) -> None:
        if self._told:
            logger.warning("the broker %s is back", self._where)
            self._told.clear()

    @property
    def _where(self) -> str:
        return f"{self.settings.host}:{self.settings.port}"


def _tls_context(settings: BrokerSettings) -> ssl.SSLContext | None:
    if not settings.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=str(settings.ca_file) if settings.ca_file else None)
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        named = [settings.ca_file, settings.cert_file, settings.key_file]
        files = ", ".join(f"'{file}'" for file in named if file is not None)
        raise ConfigError("certificates that can be read", f"{files} ({error})", "check the files") from None
    return context

"""The link to the MQTT broker: connections, what the agent publishes and receives, and Home Assistant's discovery."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paho.mqtt.enums import MQTTProtocolVersion

from agridistill.edge.alerts import PlotHealth
from agridistill.edge.delivery.broker import BrokerAccess, Connection, Refusals, plot_level, with_digest
from agridistill.edge.delivery.session import (
    OFFLINE,
    ONLINE,
    LostError,
    NoRetainError,
    RefusedError,
    Session,
    UnansweredError,
)
from agridistill.edge.events import json_bytes, sendable
from agridistill.edge.network import Backoff
from agridistill.edge.state import AgentState
from agridistill.edge.store.outbox import Outbox
from agridistill.edge.updates.updater import UpdateWorker
from agridistill.errors import OutboxError
from agridistill.storage import write_json
from agridistill.version import __version__

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
# Only a connection of this length resets the pauses: two devices with the same name keep disconnecting each other.
_STEADY_S = 20.0
# If a broker spoke MQTT 5 before, 3.1.1 is tried only after this number of attempts without an answer in a row.
_MOST_UNANSWERED = 3
# Sending the state every few seconds would cost half a megabyte an hour on a mobile network, and Home Assistant stores
# each message about a plot in its database.
_SEND_EVERY_S = 60.0
# Time for which the description removes the sensor of a removed plot: Home Assistant may not be running at first.
_CLEARED_S = 7 * 86_400.0
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
# Attributes: plot, disease, since, text, … of the newest alert, and a list of the 20 newest ones. Home Assistant does
# not record attributes of more than 16 kB, and warns each time.
_ALERTS = "{% set all = value_json.alerts[:20] %}{{ dict(all[0] if all else {}, alerts=all) | tojson }}"
# The description of a component that Home Assistant must remove; it would keep a component without a description.
_REMOVED = {"p": "sensor"}
_DIAGNOSTIC = {"state_class": "measurement", "entity_category": "diagnostic"}


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


class BrokerLink:
    """Publishes the agent's state, plots, detections and alerts to the MQTT broker, and receives model updates.

    Args:
        health: returns the health of each plot that had leaves in the last 31 days.
        updates: receives the releases (signed model updates) sent to `update/set`; None does not subscribe to them.
        photos: the watched folder: a plot whose subfolder is deleted is removed at the broker; None for a camera.
        plot: plot of photos that lie directly in the watched folder.
        page_url: returns the local page's address for other machines; None if they cannot open the page.
    """

    def __init__(
        self,
        access: BrokerAccess,
        outbox: Outbox,
        state: Callable[[], AgentState],
        health: Callable[[], Sequence[PlotHealth]],
        *,
        connection: Connection,
        updates: UpdateWorker | None = None,
        photos: Path | None = None,
        plot: str = "",
        page_url: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._access, self._state, self._health, self._updates = access, state, health, updates
        self._photos, self._plot, self._page_url = photos, plot, page_url
        self._published = PublishedPlots(outbox.path.with_name("published_plots.json"))
        self._sent: dict[str, tuple[float, object, bytes]] = {}  # by topic: time, news and payload
        self._folders = frozenset[str]()
        self._folders_at = -_SEND_EVERY_S
        self._has_temperature = False
        self._ends = threading.Event()
        commands = {access.topic("update/set"): updates.offer} if updates is not None else {}
        self._publisher = MqttPublisher(outbox, access, connection, self.retained, commands)

    def run(self, stop: threading.Event) -> None:
        """Connects and publishes until `stop` is set; reconnects after an outage."""
        self._ends = stop
        self._publisher.run(stop)

    def retained(self) -> dict[str, bytes]:
        """Returns the payload that the broker must retain for each topic; an empty one deletes the topic's message."""
        state = self._state()
        health = [one for one in self._health() if self._is_watched(one.plot)]
        plots = [one.plot for one in health]
        gone = self._published.update(plots, forget=self._publisher.connection.connected)
        # A change of one of these is sent at once.
        alerts = [(alert["plot"], alert["rule"], alert["label"], alert["since_s"]) for alert in state.alerts]
        news = state.open_alerts, alerts, state.source_lost_s is None, state.model.get("sha256")
        documents: dict[str, tuple[dict[str, Any], object]] = {self._access.topic("state"): (state.to_json(), news)}
        documents |= {self._access.plot_topic(one.plot): (one.to_json(), None) for one in health}
        found = {topic: self._paced(topic, *each) for topic, each in documents.items()}
        if self._updates is not None and self._updates.last is not None:
            found[self._access.topic("update/result")] = json_bytes(self._updates.last.to_json())
        if self._access.settings.discovery:
            # Keep the entity if the temperature cannot be read for a moment: Home Assistant then shows "unknown".
            self._has_temperature |= state.processor_celsius is not None
            found |= discovery(
                self._access,
                plots,
                gone,
                model=" ".join(str(state.model.get(key) or "") for key in ("name", "version")).strip(),
                page_url=self._page_url(),
                has_temperature=self._has_temperature,
            )
        # The empty messages come after the description, which removes the plot's sensor: it could not parse them.
        return found | {self._access.plot_topic(plot): b"" for plot in gone}

    def _is_watched(self, plot: str) -> bool:
        """Whether the folder of a plot still exists; always true for a camera."""
        if self._photos is None or plot in ("", self._plot):
            return True
        # List the folder only every minute: more often would keep a network drive awake.
        if time.monotonic() - self._folders_at >= _SEND_EVERY_S:
            self._folders, self._folders_at = plot_folders(self._photos), time.monotonic()
        # An empty folder may be a disk that is not mounted. A plot that is not in the list may be new.
        return not self._folders or plot in self._folders or (self._photos / plot).exists()

    def _paced(self, topic: str, document: Mapping[str, Any], news: object) -> bytes:
        """Returns a topic's payload. It stays the same for a minute, unless `news` changes or the agent ends.

        The last payload stays at the broker after the agent's end, so it must be up to date.
        """
        sent_at, before, payload = self._sent.get(topic, (-_SEND_EVERY_S, None, b""))
        if news != before or self._ends.is_set() or time.monotonic() - sent_at >= _SEND_EVERY_S:
            now = json_bytes(document)
            # The minute only starts when a payload changes.
            if now != payload:
                self._sent[topic] = time.monotonic(), news, now
                return now
        return payload


class PublishedPlots:
    """Stores in a JSON file which plots have retained messages at the broker, to delete those of removed plots there.

    A missing or damaged file counts as empty.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._gone_s: dict[str, float | None] = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self._gone_s = {}

    def update(self, plots: Collection[str], *, forget: bool = True, now_s: float | None = None) -> list[str]:
        """Stores the plots that exist now, and returns those of earlier calls that no longer exist.

        With `forget`, plots that were removed more than 7 days ago are no longer returned. It must be False while the
        broker is unreachable, because their messages cannot be deleted there.
        """
        now_s = time.time() if now_s is None else now_s
        after = dict.fromkeys(plots)
        for plot in self._gone_s.keys() - after.keys():
            gone_s = self._gone_s[plot] or now_s
            if not forget or now_s - gone_s <= _CLEARED_S:
                after[plot] = gone_s
        if after != self._gone_s:
            self._gone_s = after
            try:
                write_json(self._file, after)
            except OSError as error:
                logger.info("cannot store which plots are published, so removed ones may stay at the broker: %s", error)
        return [plot for plot, gone_s in after.items() if gone_s is not None]


def plot_folders(photos: Path) -> frozenset[str]:
    """Returns the names of all files and folders in the watched folder; no names if it cannot be read."""
    try:
        return frozenset(sendable(path.name) for path in photos.iterdir())
    except OSError:
        return frozenset()


def discovery(
    access: BrokerAccess,
    plots: Iterable[str],
    gone: Iterable[str] = (),
    *,
    model: str = "",
    page_url: str | None = None,
    has_temperature: bool = False,
) -> dict[str, bytes]:
    """Returns the message by which Home Assistant adds this device and its sensors ("MQTT discovery").

    It is a retained message on the topic `DISCOVERY_PREFIX/device/ID/config`; Home Assistant understands the format
    since 2024.11. Each of `plots` gets a sensor; those of the plots that are `gone` are removed.
    """
    node, state = _name(access.base.replace("/", "_")), access.topic("state")
    sensors = {
        "alert": _sensor(
            state,
            "Disease alert",
            "'ON' if value_json.open_alerts > 0 else 'OFF'",
            p="binary_sensor",
            device_class="problem",
            json_attributes_topic=state,
            json_attributes_template=_ALERTS,
        ),
        "open_alerts": _sensor(
            state, "Open alerts", "value_json.open_alerts", state_class="measurement", icon="mdi:sprout"
        ),
        # `outbox` is null while it cannot be read; Home Assistant takes "None" for an unknown value.
        "waiting": _sensor(
            state, "Waiting messages", "value_json.outbox.waiting if value_json.outbox else None", **_DIAGNOSTIC
        ),
        "skipped": _sensor(state, "Skipped frames", "value_json.skipped", **_DIAGNOSTIC),
    }
    if has_temperature:
        celsius = {"device_class": "temperature", "unit_of_measurement": "°C", **_DIAGNOSTIC}
        value = "value_json.processor_celsius"
        sensors["temperature"] = _sensor(state, "Processor temperature", value, **celsius)
    for plot in plots:
        topic, name = access.plot_topic(plot), f"Plot {plot}" if plot else "Plants"
        condition = _sensor(topic, name, "value_json.condition", json_attributes_topic=topic, icon="mdi:leaf")
        sensors[_plot_id(plot)] = condition
    device = {
        "identifiers": [node],
        "name": access.device,
        "manufacturer": "AgriDistill",
        "model": model or None,
        "sw_version": __version__,
        "configuration_url": page_url,
    }
    removed = {_plot_id(plot): _REMOVED for plot in gone} | {"temperature": _REMOVED}
    document = {
        "dev": {key: value for key, value in device.items() if value is not None},
        "o": {"name": "AgriDistill", "sw_version": __version__},
        "cmps": removed | {name: config | {"unique_id": f"{node}_{name}"} for name, config in sensors.items()},
        "availability_topic": access.topic("status"),
        "payload_available": ONLINE.decode(),
        "payload_not_available": OFFLINE.decode(),
    }
    topic = f"{access.settings.discovery_prefix}/device/{node}/config"
    return {topic: json_bytes(document)}


def _sensor(topic: str, name: str, value: str, **further: str) -> dict[str, str]:
    return {"p": "sensor", "name": name, "state_topic": topic, "value_template": f"{{{{ {value} }}}}"} | further


def _plot_id(plot: str) -> str:
    return f"plot_{_name(plot_level(plot))}"


def _name(text: str) -> str:
    """Turns a text into an id for Home Assistant, which only takes ASCII; a changed text gets a digest."""
    safe = _UNSAFE.sub("_", text)
    return safe if safe == text else with_digest(safe, text)

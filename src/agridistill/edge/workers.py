"""What goes on beside the agent in threads of its own: looking for models, and the broker's side."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agridistill.edge.agent import Agent
from agridistill.edge.delivery.broker import BrokerSettings, parse_broker
from agridistill.edge.delivery.home_assistant import discovery
from agridistill.edge.delivery.mqtt import MqttPublisher
from agridistill.edge.delivery.payloads import plot_payload, state_payload
from agridistill.edge.events import AgentState
from agridistill.edge.settings import BrokerOptions, UpdateOptions, read_secret
from agridistill.edge.store.outbox import Outbox
from agridistill.edge.updates.settings import UpdateResult
from agridistill.edge.updates.updater import Updater

# A state sent every few seconds would cost a device on a mobile network half a megabyte an hour.
_TELL_STATE_EVERY_S = 60.0

# A postponed update is tried again after pauses that double, up to these or `every_hours`.
_FIRST_RETRY_S, _LONGEST_RETRY_S = 60.0, 3600.0
_POLL_S = 0.5


@dataclass
class _Look:
    """A source of updates, and when it is looked at next.

    Attributes:
        source: as for `Updater.check`.
        longest_s: where the pauses end.
        due: on the monotonic clock.
        postponed: how often in a row.
    """

    source: str | bytes
    longest_s: float
    due: float = field(default_factory=time.monotonic)
    postponed: int = 0

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self.due

    def postpone(self, patient: bool) -> None:
        pause = self.longest_s if patient else min(_FIRST_RETRY_S * 2.0 ** min(self.postponed, 60), self.longest_s)
        self.postponed += 1
        # Many devices must not come back to one server in one moment.
        self.due = time.monotonic() + pause * random.uniform(0.8, 1.0)


class UpdateWorker:
    """Looks for models from time to time, and takes those that come over MQTT; what was postponed is tried again."""

    def __init__(self, options: UpdateOptions, updater: Updater, agent: Agent) -> None:
        self._options, self._updater, self._agent = options, updater, agent
        self._every_s = 3600 * options.every_hours
        self._longest_s = min(_LONGEST_RETRY_S, self._every_s)
        self._offered: list[bytes] = []
        self._wake = threading.Event()
        self.last: UpdateResult | None = None

    def offer(self, envelope: bytes) -> None:
        """A release that came over MQTT; the latest one counts."""
        self._offered = [envelope]
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Looks and waits until `stop`."""
        place = _Look(self._options.source, self._longest_s) if self._options.source else None
        offer: _Look | None = None
        while not stop.is_set():
            self._wake.clear()
            if self._offered:
                offer = _Look(self._offered.pop(), self._longest_s)
            if offer is not None and offer.is_due and not self._is_postponed(offer, stop):
                offer = None
            if place is not None and place.is_due and not self._is_postponed(place, stop):
                place = _Look(place.source, self._longest_s, time.monotonic() + self._every_s)
            looks = [look for look in (offer, place) if look is not None]
            while not (stop.wait(_POLL_S) or self._wake.is_set() or any(look.is_due for look in looks)):
                pass

    def _is_postponed(self, look: _Look, stop: threading.Event) -> bool:
        self.last = self._updater.check(look.source, stop)
        if self.last.outcome == "installed":
            self._agent.model_changed.set()
        if self.last.outcome != "postponed":
            return False
        look.postpone(self.last.patient)
        return True


class BrokerLink:
    """The broker's side of the agent: what is retained there, and what it may order."""

    def __init__(self, options: BrokerOptions, device: str, outbox: Outbox) -> None:
        self._options, self._outbox = options, outbox
        self._settings = _broker_settings(options, device)
        self._is_connected: Callable[[], bool] = lambda: False
        self._told: tuple[object, ...] = ()
        self._told_at, self._payload = 0.0, b""

    def state(self) -> dict[str, object]:
        """For the agent's state."""
        return {"host": self._settings.host, "port": self._settings.port, "connected": self._is_connected()}

    def worker(self, agent: Agent, updates: UpdateWorker | None) -> Callable[[threading.Event], None]:
        """What the broker's thread runs."""

        def retained() -> Mapping[str, bytes]:
            views = agent.plots.views
            told = {self._settings.state_topic: self._state_payload(agent.state)}
            told |= {self._settings.plot_topic(plot): plot_payload(view) for plot, view in views.items()}
            if updates is not None and updates.last is not None:
                told[self._settings.update_result_topic] = json.dumps(updates.last.to_json()).encode()
            if self._options.discovery:
                told |= discovery(self._settings, views, self._options.discovery_prefix)
            return told

        commands = {self._settings.update_topic: updates.offer} if updates is not None else {}
        publisher = MqttPublisher(self._outbox, self._settings, retained, commands)
        self._is_connected = lambda: publisher.connected
        return publisher.run

    def _state_payload(self, state: AgentState) -> bytes:
        """The state as it was told last, until it is old or says something else that matters."""
        news = (state.open_alerts, state.source_lost_s is None, state.model.get("sha256"))
        if news != self._told or time.monotonic() - self._told_at >= _TELL_STATE_EVERY_S:
            self._told, self._told_at, self._payload = news, time.monotonic(), state_payload(state)
        return self._payload


def _broker_settings(options: BrokerOptions, device: str) -> BrokerSettings:
    return parse_broker(
        options.url,
        device=device,
        password=read_secret(options.password_file, "AGRIDISTILL_MQTT_PASSWORD"),
        ca_file=options.ca_file,
        cert_file=options.cert_file,
        key_file=options.key_file,
        keepalive_s=options.keepalive_s,
        inflight=options.inflight,
    )

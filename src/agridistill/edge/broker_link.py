"""The broker's side of the agent: what is retained there, and what it may order."""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agridistill.edge.agent import Agent
from agridistill.edge.alerts.plot_report import PlotReport
from agridistill.edge.delivery.broker import BrokerSettings, parse_broker
from agridistill.edge.delivery.home_assistant import DeviceFacts, discovery, earlier_descriptions
from agridistill.edge.delivery.mqtt import MqttPublisher
from agridistill.edge.delivery.payloads import plot_payload, state_payload
from agridistill.edge.delivery.published_plots import PublishedPlots, plot_folders
from agridistill.edge.events import AgentState
from agridistill.edge.settings import BrokerOptions, PageOptions, read_secret
from agridistill.edge.status.host import is_loopback
from agridistill.edge.store.outbox import Outbox
from agridistill.edge.updates.updater import UpdateWorker

# A state sent every few seconds would cost a device on a mobile network half a megabyte an hour, and each message about
# a plot becomes a row in Home Assistant's database.
_TELL_EVERY_S = 60.0
# Of a network for documentation (RFC 5737): the way there is the way to all others.
_ELSEWHERE = ("192.0.2.1", 9)


class BrokerLink:
    """Connects an agent with a broker.

    Args:
        options: of the broker.
        device: its name.
        outbox: of detections and alerts.
        photos: the watched folder; None for a camera.
        plot: of photos outside the folder's subfolders.
        page: of the device; None without one.
    """

    def __init__(
        self,
        options: BrokerOptions,
        device: str,
        outbox: Outbox,
        *,
        photos: Path | None = None,
        plot: str = "",
        page: PageOptions | None = None,
    ) -> None:
        self._options, self._outbox, self._photos, self._plot = options, outbox, photos, plot
        self._settings = _broker_settings(options, device)
        self._page_url = _page_url(page, self._settings)
        self._published = PublishedPlots(outbox.path.with_name("published_plots.json"))
        self._is_connected: Callable[[], bool] = lambda: False
        self._told: tuple[object, ...] = ()
        self._told_at, self._payload = 0.0, b""
        self._plots: dict[str, tuple[float, bytes]] = {}
        self._folders: frozenset[str] | None = None
        self._folders_at = -_TELL_EVERY_S
        self._earlier: dict[str, bytes] | None = None
        self._is_older = self._has_temperature = False
        self._ends = threading.Event()

    def state(self) -> dict[str, object]:
        """For the agent's state."""
        return {"host": self._settings.host, "port": self._settings.port, "connected": self._is_connected()}

    def worker(self, agent: Agent, updates: UpdateWorker | None) -> Callable[[threading.Event], None]:
        """What the broker's thread runs."""
        # A new device has no plots yet; one that told plots in today's way has a list of them.
        seen = {one.plot for one in agent.plots.reports}
        self._is_older = bool(seen) and not self._published.is_known
        if self._is_older:
            self._published.update(seen)

        def retained() -> Mapping[str, bytes]:
            state = agent.state
            reports = [one for one in agent.plots.reports if self._is_there(one.plot)]
            gone = self._published.update({one.plot for one in reports}, forget=self._is_connected())
            told = {self._settings.state_topic: self._state_payload(state)}
            told |= self._plot_payloads(reports)
            if updates is not None and updates.last is not None:
                told[self._settings.update_result_topic] = json.dumps(updates.last.to_json()).encode()
            if self._options.discovery:
                told |= self._description([one.plot for one in reports], gone, state)
            # Behind the description: a sensor that is still there could not read an empty message.
            return told | {self._settings.plot_topic(plot): b"" for plot in gone}

        commands = {self._settings.update_topic: updates.offer} if updates is not None else {}
        publisher = MqttPublisher(self._outbox, self._settings, retained, commands)
        self._is_connected = lambda: publisher.connected

        def run(stop: threading.Event) -> None:
            self._ends = stop
            publisher.run(stop)

        return run

    def _description(self, plots: Sequence[str], gone: Sequence[str], state: AgentState) -> dict[str, bytes]:
        """Home Assistant's; once in a device's life with the topics of earlier versions."""
        found = discovery(self._settings, plots, gone, self._facts(state), self._options.discovery_prefix)
        if self._earlier is None:
            self._earlier = earlier_descriptions(found) if self._is_older else {}
            return self._earlier | found
        return found | dict.fromkeys(self._earlier, b"")

    def _is_there(self, plot: str) -> bool:
        """Whether a plot is still watched: it goes with its folder."""
        if plot in ("", self._plot):
            return True
        # Not every second: that would keep a network drive awake.
        if time.monotonic() - self._folders_at >= _TELL_EVERY_S:
            self._folders, self._folders_at = plot_folders(self._photos), time.monotonic()
        if self._folders is None or plot in self._folders:
            return True
        return self._photos is not None and (self._photos / plot).exists()  # a new one

    def _state_payload(self, state: AgentState) -> bytes:
        """The state as it was told last, until it is old or says something else that matters."""
        alerts = [(alert["plot"], alert["rule"], alert["label"], alert["since_s"]) for alert in state.alerts]
        news = (state.open_alerts, alerts, state.source_lost_s is None, state.model.get("sha256"))
        if news != self._told or self._is_due(self._told_at):
            self._told, self._told_at, self._payload = news, time.monotonic(), state_payload(state)
        return self._payload

    def _plot_payloads(self, reports: Sequence[PlotReport]) -> dict[str, bytes]:
        """Each plot as it was told last, until that is old."""
        plots: dict[str, tuple[float, bytes]] = {}
        for one in reports:
            topic = self._settings.plot_topic(one.plot)
            told = self._plots.get(topic)
            if told is None or self._is_due(told[0]):
                payload = plot_payload(one)
                # What has not changed may change at once when it does.
                if told is None or payload != told[1]:
                    told = time.monotonic(), payload
            plots[topic] = told
        self._plots = plots
        return {topic: payload for topic, (_, payload) in plots.items()}

    def _is_due(self, told_at: float) -> bool:
        # At its end, too: nobody corrects later what is retained then.
        return self._ends.is_set() or time.monotonic() - told_at >= _TELL_EVERY_S

    def _facts(self, state: AgentState) -> DeviceFacts:
        model = " ".join(str(state.model.get(key) or "") for key in ("name", "version")).strip()
        # A sensor that sleeps for a moment is there: Home Assistant shows its value as unknown.
        self._has_temperature |= state.processor_celsius is not None
        return DeviceFacts(model, self._page_url(), self._has_temperature)


def _page_url(page: PageOptions | None, broker: BrokerSettings) -> Callable[[], str | None]:
    """The page's address for other machines; a page on loopback has none."""
    if page is None or not page.port or is_loopback(page.host):
        return lambda: None
    known: list[str] = [] if page.host in ("0.0.0.0", "::", "") else [page.host]  # noqa: S104 - compared

    def address() -> str | None:
        if not known:
            # A broker on this very machine is reached by an address that no other machine can open.
            for peer in ((broker.host, broker.port), _ELSEWHERE):
                found = _own_address(*peer)
                if found is not None and not _is_for_us_alone(found):
                    known.append(found)
                    break
            else:
                return None
            known.append(found)
        host = known[0]
        return f"http://{f'[{host}]' if ':' in host else host}:{page.port}/"

    return address


def _own_address(host: str, port: int) -> str | None:
    """By which this device reaches another one; nothing is sent."""
    try:
        family, kind, proto, _, peer = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.connect(peer)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _is_for_us_alone(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return found.is_loopback or found.is_link_local


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

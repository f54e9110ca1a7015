"""The agent at a broker: which messages are retained there, and which commands it takes."""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

from agridistill.edge.alerts import PlotReport
from agridistill.edge.delivery.broker import BrokerAccess, Connection
from agridistill.edge.delivery.home_assistant import DeviceFacts, discovery, earlier_descriptions
from agridistill.edge.delivery.mqtt import MqttPublisher
from agridistill.edge.events import AgentState, json_bytes
from agridistill.edge.network import is_loopback
from agridistill.edge.store.outbox import Outbox
from agridistill.edge.updates.updater import UpdateWorker
from agridistill.edge.words import sendable
from agridistill.storage import write_json

logger = logging.getLogger(__name__)

# A state sent every few seconds would cost a device on a mobile network half a megabyte an hour, and each message about
# a plot becomes a row in Home Assistant's database.
_SEND_EVERY_S = 60.0
# Home Assistant may be away when a plot goes: it reads the retained description later.
_CLEARED_S = 7 * 86_400.0
# Of a network for documentation (RFC 5737): the route there is the route to all others.
_ELSEWHERE = ("192.0.2.1", 9)


class AgentView(Protocol):
    """What the link reads of the agent, from its own thread."""

    @property
    def state(self) -> AgentState:
        """The agent's state now."""

    @property
    def reports(self) -> list[PlotReport]:
        """The condition of each plot that has recent leaves."""


class BrokerLink:
    """Connects an agent with a broker.

    Args:
        access: to the broker.
        outbox: of detections and alerts.
        agent: whose state and plots are published.
        connection: is kept up to date, for the agent's state.
        updates: that takes releases from the broker; None without updates.
        photos: the watched folder; None for a camera.
        plot: of photos outside the folder's subfolders.
        page_url: address of the local page for other machines; None where it has none.
    """

    def __init__(
        self,
        access: BrokerAccess,
        outbox: Outbox,
        agent: AgentView,
        *,
        connection: Connection | None = None,
        updates: UpdateWorker | None = None,
        photos: Path | None = None,
        plot: str = "",
        page_url: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._access, self._agent, self._updates, self._page_url = access, agent, updates, page_url
        self._photos, self._plot = photos, plot
        published = outbox.path.with_name("published_plots.json")
        # An agent of an earlier version published plots and kept no list of them; a new device has no plots yet.
        seen = {one.plot for one in agent.reports}
        self._is_older = bool(seen) and not published.exists()
        self._published = PublishedPlots(published)
        if self._is_older:
            self._published.update(seen)
        self._news: tuple[object, ...] = ()
        self._sent_at, self._payload = 0.0, b""
        self._plots: dict[str, tuple[float, bytes]] = {}
        self._folders: frozenset[str] | None = None
        self._folders_at = -_SEND_EVERY_S
        self._earlier: dict[str, bytes] | None = None
        self._has_temperature = False
        self._ends = threading.Event()
        commands = {access.update_topic: updates.offer} if updates is not None else {}
        self._publisher = MqttPublisher(outbox, access, self.retained, commands, connection)

    def run(self, stop: threading.Event) -> None:
        """Publishes until `stop`."""
        self._ends = stop
        self._publisher.run(stop)

    def retained(self) -> dict[str, bytes]:
        """Retained payloads by topic, as they are now."""
        state = self._agent.state
        reports = [one for one in self._agent.reports if self._is_watched(one.plot)]
        plots = [one.plot for one in reports]
        gone = self._published.update(plots, forget=self._publisher.connected)
        found = {self._access.state_topic: self._state_payload(state)}
        found |= self._plot_payloads(reports)
        if self._updates is not None and self._updates.last is not None:
            found[self._access.update_result_topic] = json.dumps(self._updates.last.to_json()).encode()
        if self._access.settings.discovery:
            found |= self._description(plots, gone, state)
        # Behind the description: a sensor that is still there could not read an empty message.
        return found | {self._access.plot_topic(plot): b"" for plot in gone}

    def _description(self, plots: Sequence[str], gone: Sequence[str], state: AgentState) -> dict[str, bytes]:
        """Home Assistant's; once in a device's life with the topics of earlier versions."""
        model = " ".join(str(state.model.get(key) or "") for key in ("name", "version")).strip()
        # A sensor that sleeps for a moment is there: Home Assistant shows its value as unknown.
        self._has_temperature |= state.processor_celsius is not None
        found = discovery(self._access, plots, gone, DeviceFacts(model, self._page_url(), self._has_temperature))
        if self._earlier is None:
            self._earlier = earlier_descriptions(found) if self._is_older else {}
            return self._earlier | found
        return found | dict.fromkeys(self._earlier, b"")

    def _is_watched(self, plot: str) -> bool:
        """Whether a plot's folder is there."""
        if plot in ("", self._plot):
            return True
        # Not every second: that would keep a network drive awake.
        if time.monotonic() - self._folders_at >= _SEND_EVERY_S:
            self._folders, self._folders_at = plot_folders(self._photos), time.monotonic()
        if self._folders is None or plot in self._folders:
            return True
        return self._photos is not None and (self._photos / plot).exists()  # a new one

    def _state_payload(self, state: AgentState) -> bytes:
        """The state as it was sent last, until it is old or an alert, the source or the model changes."""
        alerts = [(alert["plot"], alert["rule"], alert["label"], alert["since_s"]) for alert in state.alerts]
        news = (state.open_alerts, alerts, state.source_lost_s is None, state.model.get("sha256"))
        if news != self._news or self._is_due(self._sent_at):
            self._news, self._sent_at, self._payload = news, time.monotonic(), json_bytes(state.to_json())
        return self._payload

    def _plot_payloads(self, reports: Sequence[PlotReport]) -> dict[str, bytes]:
        """Each plot as it was sent last, until that is old."""
        plots: dict[str, tuple[float, bytes]] = {}
        for one in reports:
            topic = self._access.plot_topic(one.plot)
            sent = self._plots.get(topic)
            if sent is None or self._is_due(sent[0]):
                now = json_bytes(one.to_json())
                # What has not changed is sent at once when it does.
                if sent is None or now != sent[1]:
                    sent = time.monotonic(), now
            plots[topic] = sent
        self._plots = plots
        return {topic: sent for topic, (_, sent) in plots.items()}

    def _is_due(self, sent_at: float) -> bool:
        # At the end, too: what is retained then stays.
        return self._ends.is_set() or time.monotonic() - sent_at >= _SEND_EVERY_S


class PublishedPlots:
    """Plots with retained messages at the broker, over restarts: those of plots that are gone are cleared.

    Args:
        file: where; a damaged one counts as empty.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            self._gone_s = {str(plot): None if at is None else float(at) for plot, at in dict(found).items()}
        except (OSError, ValueError, TypeError):
            self._gone_s = {}

    def update(self, plots: Collection[str], *, forget: bool = True, now_s: float | None = None) -> list[str]:
        """Takes the plots that there are now, on the disk before they are published.

        Args:
            plots: their names.
            forget: those that were cleared long ago; only while the broker takes what is cleared.
            now_s: seconds since 1970.

        Returns:
            Plots that were published and are gone.
        """
        now_s = time.time() if now_s is None else now_s
        after = dict(self._gone_s) | dict.fromkeys(plots)
        for plot, gone_s in list(after.items()):
            if plot in plots:
                continue
            if gone_s is None:
                after[plot] = now_s
            elif forget and now_s - gone_s > _CLEARED_S:
                del after[plot]
        if after != self._gone_s:
            self._gone_s = after
            try:
                write_json(self._file, after)
            except OSError as error:
                logger.info("the list of published plots cannot be written: %s", error)
        return [plot for plot, gone_s in after.items() if gone_s is not None]


def plot_folders(photos: Path | None) -> frozenset[str] | None:
    """The names in the watched folder, of which some are plots; None where a plot may be there all the same.

    Args:
        photos: the watched folder; None for a camera. An empty one may be a disk that is not there.
    """
    if photos is None:
        return None
    try:
        return frozenset(sendable(path.name) for path in photos.iterdir()) or None
    except OSError:
        return None


def page_address(host: str, port: int, broker: tuple[str, int]) -> Callable[[], str | None]:
    """Gives the page's address for other machines, once it is known; None for a page on loopback.

    Args:
        host: that the page is bound to.
        port: of the page.
        broker: host and port.
    """
    if not port or is_loopback(host):
        return lambda: None
    known: list[str] = [] if host in ("0.0.0.0", "::", "") else [host]  # noqa: S104 - compared

    def address() -> str | None:
        if not known:
            # A broker on this machine is reached by an address that no other machine can open.
            own = (_own_address(*peer) for peer in (broker, _ELSEWHERE))
            found = next((each for each in own if each is not None and not _is_local(each)), None)
            if found is None:
                return None
            known.append(found)
        return f"http://{f'[{known[0]}]' if ':' in known[0] else known[0]}:{port}/"

    return address


def _own_address(host: str, port: int) -> str | None:
    """Address by which this device reaches another one; nothing is sent."""
    try:
        family, kind, proto, _, peer = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.connect(peer)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _is_local(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return found.is_loopback or found.is_link_local

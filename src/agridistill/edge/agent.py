"""The agent's main loop: takes frames, classifies them, stores the detections and sends alerts."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from agridistill.edge.alerts import AlertMessage, Plots
from agridistill.edge.alerts.plots import open_alerts_json
from agridistill.edge.delivery.broker import Connection
from agridistill.edge.events import Detection, Frame, json_bytes
from agridistill.edge.keep import Keeper
from agridistill.edge.keep.store import GroupTooLargeError
from agridistill.edge.network import Backoff
from agridistill.edge.sources import LatestFrame, SourceEndedError
from agridistill.edge.state import (
    AgentState,
    disk_free_bytes,
    notify_systemd,
    processor_celsius,
    resident_bytes,
    write_state,
)
from agridistill.edge.store.history import Decision, History
from agridistill.edge.store.outbox import Message, Outbox
from agridistill.edge.verdict import CurrentModel, thumbnail
from agridistill.errors import OutboxError, PhotoError
from agridistill.runtime.backends import return_freed_memory
from agridistill.version import __version__

logger = logging.getLogger(__name__)

BROKER = "broker"  # the outbox with detections and alerts; all others hold only alerts
_TAKE_S = 0.5
# If many photos wait in a folder, their detections are stored in groups: each wait for the disk takes milliseconds.
# A kill between two groups loses only work, because photos without a stored detection are read again.
_GROUP, _GROUP_S, _TAKE_IN_GROUP_S = 16, 0.2, 0.05
# Each write wears an SD card; readers treat an agent whose state is older than 30 s as dead.
_STATE_EVERY_S = 10.0
_FRAMES_BETWEEN_CLEARINGS = 500
_RETRY_FIRST_S, _RETRY_LONGEST_S = 0.5, 30.0
_LATENCIES = 500


@dataclass(frozen=True)
class Listeners:
    """Functions that the agent calls for each detection, for each alert, and with the page's address."""

    detection: Callable[[Detection], None] = lambda detection: None  # called when a detection is on the disk
    alert: Callable[[AlertMessage], None] = lambda message: None  # called when an alert is in the outboxes
    page: Callable[[str], None] = lambda address: None  # called with the page's address once it can be opened


@dataclass(frozen=True)
class Stores:
    """The databases in the agent's state folder: the history, and the unsent messages of each receiver."""

    folder: Path  # the state folder
    history: History
    outboxes: Mapping[str, Outbox] = field(default_factory=dict)  # by receiver: "broker", "webhook", "command"


class Agent:
    """Classifies the frames of a source, stores the detections, and opens and resolves alerts.

    `run` does this in the thread that calls it; source, broker, page and updates have their own threads. `plots`
    creates the health and alerts for a model's classes: it is called again if an update changes them. `command` is
    the words after `agridistill watch` that start this agent again.
    """

    def __init__(
        self,
        device: str,
        frames: LatestFrame,
        model: CurrentModel,
        plots: Callable[[tuple[str, ...]], Plots],
        stores: Stores,
        *,
        keep_thumbnails: bool = False,
        keep: Keeper | None = None,
        listeners: Listeners | None = None,
        connection: Connection | None = None,
        command: Sequence[str] = (),
    ) -> None:
        self._device, self._frames, self._model, self._stores = device, frames, model, stores
        self._create_plots, self._keep_thumbnails, self._keep = plots, keep_thumbnails, keep
        self._listeners, self._connection = listeners or Listeners(), connection
        self._command = tuple(command)
        self.plots = plots(model.decider.manifest.classes)
        self.model_changed = threading.Event()
        self._started_s, self._started = time.time(), time.monotonic()
        self._verdicts = Counter(stores.history.verdict_counts())
        self._decided = 0
        # Detections that are not stored yet, each with the time (of perf_counter) when its frame was taken.
        self._group: list[tuple[float, Decision]] = []
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._next_state = 0.0
        self._trouble: str | None = None
        self._finished = self.stopped = False
        self._alerts_backoff, self._alerts_refused = Backoff(_RETRY_FIRST_S, _RETRY_LONGEST_S), False
        self._send_alerts_at = 0.0
        self._sent_to: dict[str, set[str]] = {}  # event id of an alert: receivers whose outboxes hold it
        self.state = self._state()

    def run(self, stop: threading.Event) -> None:
        """Processes frames until `stop` is set or the source ends.

        If the source is away or the disk refuses writes, it waits and tries again.

        Raises:
            AgriDistillError: the model fails and no earlier model can replace it, the source can never be read, or a
                file in the state folder was removed or damaged.
        """
        notify_systemd("READY=1")
        with self._frames:
            try:
                self._follow_frames(stop)
            finally:
                self._store(stop)  # after an error too: otherwise, each start would do the same work and fail again
        notify_systemd("STOPPING=1")
        self.report(now=True)

    def _follow_frames(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.report()
            frame = None
            try:
                frame = self._frames.take(_TAKE_IN_GROUP_S if self._group else _TAKE_S)
            except PhotoError as error:
                logger.warning("a photo is skipped: %s", error)
            except SourceEndedError as error:
                logger.info("the source has ended: %s", error)
                self._finished = True
                return
            if frame is not None:
                self._take(frame, stop)
            if frame is None or not self._frames.has_backlog or self._group_is_full:
                self._store(stop)
            if self.model_changed.is_set():
                self._store(stop)
                self.model_changed.clear()
                self._follow_model()
            self._send_alerts()
            if self._keep is not None:
                self._keep.follow(self.plots)

    def _take(self, frame: Frame, stop: threading.Event) -> None:
        began = time.perf_counter()
        detection = self._model.decide(frame)
        small = thumbnail(frame) if self._keep_thumbnails else None
        decision = Decision(detection, small, frame.identity)
        if self._keep is not None:
            sha256 = self._model.decider.manifest.weights_sha256
            try:
                decision = self._keep.keep(frame, decision, self.plots, sha256)
            except GroupTooLargeError:
                self._store(stop)
                if stop.is_set():
                    return  # the group may not be stored; the next start decides on this photo again
                decision = self._keep.keep(frame, decision, self.plots, sha256)
        self._group.append((began, decision))

    @property
    def _group_is_full(self) -> bool:
        return len(self._group) >= _GROUP or time.perf_counter() - self._group[0][0] >= _GROUP_S

    def _store(self, stop: threading.Event) -> None:
        """Stores the group of detections; then the source, the listeners and the rules get them."""
        group, self._group = self._group, []
        new = self._commit([decision for _, decision in group], stop) if group else None
        if new is None:
            return
        if self._keep is not None:
            self._keep.stored()
        for began, (detection, _, identity, _) in group:
            self._latencies.append(1000 * (time.perf_counter() - began))
            self._decided += 1
            if identity:
                self._frames.done(identity)
            self._listeners.detection(detection)
            # A photo that could not be kept is decided again at the next start: its leaf counts once.
            if detection.event_id in new:
                self._verdicts[detection.verdict] += 1
                self.plots.see(detection)
            self._send_alerts()  # after each detection: a message names the leaves that opened the alert
            if self._decided % _FRAMES_BETWEEN_CLEARINGS == 0:
                return_freed_memory()
        if self._keep is not None:
            self._keep.follow(self.plots, now=True)

    def _commit(self, group: Sequence[Decision], stop: threading.Event) -> set[str] | None:
        """Writes detections to the broker's outbox, then to the history; retries until the disk accepts both.

        Returns the event ids that are new in the history; None if `stop` was set before that.
        """
        outbox = self._stores.outboxes.get(BROKER)
        messages = [
            Message(json_bytes(one.detection.to_json()), "detection", one.detection.plot, one.detection.event_id)
            for one in (group if outbox is not None else ())
        ]
        backoff = Backoff(_RETRY_FIRST_S, _RETRY_LONGEST_S)
        while True:
            try:
                if outbox is not None:
                    outbox.add(messages)
                    outbox = None
                new = self._stores.history.add_all(group)
            except OutboxError as error:
                if self._trouble is None:
                    logger.error("detections cannot be stored (%s): the agent waits for the disk", error)
                self._trouble = f"detections cannot be stored: {error}"
                if stop.wait(backoff.pause_s()):
                    return None
                self.report()
                continue
            if self._trouble is not None:
                logger.warning("detections can be stored again")
                self._trouble = None
            return new

    def _send_alerts(self) -> None:
        if time.monotonic() < self._send_alerts_at:
            return
        try:
            # Before sending: after a kill the history must know the id of an alert that was sent.
            self.plots.store()
            messages = self.plots.alerts.messages()
            for message in messages:
                self._send_alert(message)
            if messages:
                self.plots.store()
                self.report(now=True)  # the broker's thread publishes this state
        except OutboxError as error:
            if not self._alerts_refused:
                logger.error("an alert cannot be stored (%s): the agent will try again", error)
            self._alerts_refused, self._send_alerts_at = True, time.monotonic() + self._alerts_backoff.pause_s()
        else:
            self._alerts_refused = False
            self._alerts_backoff.reset()

    def _send_alert(self, message: AlertMessage) -> None:
        item = Message(json_bytes(message.to_json()), "alert", message.alert.plot, message.event_id)
        # An outbox may have delivered the alert before the next try: do not add it there twice.
        sent_to = self._sent_to.setdefault(message.event_id, set())
        for receiver, outbox in self._stores.outboxes.items():
            if receiver not in sent_to:
                outbox.add([item])
                sent_to.add(receiver)
        self.plots.alerts.sent(message)
        del self._sent_to[message.event_id]
        logger.warning("alert %s: %s", message.change, message.alert.text)
        self._listeners.alert(message)

    def _follow_model(self) -> None:
        self._model.refresh()
        classes = self._model.decider.manifest.classes
        if classes != self.plots.classes:
            self.plots = self._create_plots(classes)

    def report(self, *, now: bool = False) -> None:
        """Writes `state.json` and notifies systemd's watchdog, at most every 10 s unless `now` is True."""
        clock = time.monotonic()
        if clock >= self._next_state or now:
            self._next_state = clock + _STATE_EVERY_S
            notify_systemd("WATCHDOG=1")
            self.state = self._state()
            try:
                write_state(self._stores.folder, self.state)
            except OSError as error:
                logger.info("the agent's state file cannot be written: %s", error)

    def _state(self) -> AgentState:
        latencies = list(self._latencies)
        counts = {name: _outbox_state(outbox) for name, outbox in self._stores.outboxes.items()}
        open_alerts = self.plots.alerts.open
        return AgentState(
            device=self._device,
            version=__version__,
            pid=os.getpid(),
            started_s=self._started_s,
            at_s=time.time(),
            uptime_s=time.monotonic() - self._started,
            source=self._frames.name,
            source_lost_s=self._frames.lost_for_s,
            source_trouble=self._frames.trouble,
            frames=sum(self._verdicts.values()),
            skipped=self._frames.skipped,
            unreadable=self._frames.unreadable,
            verdicts=dict(self._verdicts),
            open_alerts=len(open_alerts),
            model=self._model.info,
            broker=None if self._connection is None else dict(vars(self._connection)),
            outbox=counts.pop(BROKER, None),
            outputs={name: found for name, found in counts.items() if found is not None},
            latency_ms={f"p{q}": round(float(np.percentile(latencies, q)), 2) for q in (50, 99) if latencies},
            memory_bytes=resident_bytes(),
            processor_celsius=processor_celsius(),
            disk_free_bytes=disk_free_bytes(self._stores.folder),
            trouble=self._trouble,
            finished=self._finished,
            stopped=self.stopped,
            cannot_warn=self.plots.cannot_warn,
            alerts=tuple(open_alerts_json(open_alerts)),
            kept=None if self._keep is None else self._keep.state(),
            command=self._command,
        )


def _outbox_state(outbox: Outbox) -> dict[str, object] | None:
    try:
        counts = outbox.counts()
    except OutboxError:
        return None
    return vars(counts) | {"waiting": sum(counts.waiting.values()), "oldest_s": round(counts.oldest_s, 1)}

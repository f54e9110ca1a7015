"""The agent: takes frames, decides, commits, warns, and keeps at it whatever happens around it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from agridistill.edge.alerts.lifecycle import AlertMessage
from agridistill.edge.alerts.open_alerts import open_alerts_json
from agridistill.edge.alerts.plots import Plots
from agridistill.edge.delivery.payloads import alert_payload, detection_payload
from agridistill.edge.events import AgentState, Detection, Frame
from agridistill.edge.sources import LatestFrame, SourceEndedError
from agridistill.edge.status.host import disk_free_bytes, processor_celsius, resident_bytes
from agridistill.edge.status.state_file import write_state
from agridistill.edge.store.history import History
from agridistill.edge.store.outbox import Message, Outbox
from agridistill.edge.systemd import notify
from agridistill.edge.verdict import CurrentModel, thumbnail
from agridistill.errors import EdgeError, OutboxError, PhotoError
from agridistill.runtime.backends import return_freed_memory
from agridistill.version import __version__

logger = logging.getLogger(__name__)

_TAKE_S = 0.5
# Each writing wears an SD card a little; half a minute without one reads as a dead agent.
_STATE_EVERY_S = 10.0
_FRAMES_BETWEEN_CLEARINGS = 500
_RETRY_FIRST_S, _RETRY_LONGEST_S = 0.5, 30.0
_LATENCIES = 500


@dataclass(frozen=True)
class Hooks:
    """Who else wants to know.

    Attributes:
        detection: called with each detection that is committed.
        alert: called with each message about an alert that is on its way.
        broker: gives host, port and whether it is connected; None without a broker.
        idle: called where no frame waits.
    """

    detection: Callable[[Detection], None] = lambda detection: None
    alert: Callable[[AlertMessage], None] = lambda message: None
    broker: Callable[[], dict[str, object] | None] = lambda: None
    idle: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Stores:
    """Where the agent keeps what it must not lose.

    Attributes:
        folder: of the state.
        history: what was seen and warned of.
        detections: outbox of detections and alerts; None without a broker.
        alerts: outboxes of alerts alone: webhook, command.
    """

    folder: Path
    history: History
    detections: Outbox | None = None
    alerts: Sequence[Outbox] = field(default_factory=tuple)

    @property
    def outboxes(self) -> list[Outbox]:
        """All that there are."""
        return [*([self.detections] if self.detections is not None else []), *self.alerts]


class Agent:
    """Runs in one thread; sources, broker, page and updates have threads of their own.

    Args:
        device: its name.
        frames: reader of the source, not started.
        model: the one that runs now.
        plots: gives the plots for a model's classes; called again where a new model has others.
        stores: of the state.
        keep_thumbnails: whether small pictures go into the history.
        hooks: who else wants to know.
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
        hooks: Hooks | None = None,
    ) -> None:
        self._device, self._frames, self._model, self._stores = device, frames, model, stores
        self._create_plots, self._keep_thumbnails, self._hooks = plots, keep_thumbnails, hooks or Hooks()
        self.plots = plots(model.decider.manifest.classes)
        self.model_changed = threading.Event()
        self._started_s, self._started = time.time(), time.monotonic()
        self._verdicts = Counter(stores.history.verdict_counts())
        self._decided = 0
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._next_state = 0.0
        self._trouble: str | None = None
        self._finished = self.stopped = False
        self._alerts_refused, self._warn_again_at = False, 0.0
        self._handed: dict[str, set[int]] = {}
        self.state = self._state()

    def run(self, stop: threading.Event) -> None:
        """Works until `stop`, or until a source that ends has ended.

        Raises:
            AgriDistillError: not even the first model works.
        """
        notify("READY=1")
        with self._frames:
            while not stop.is_set():
                self.beat()
                try:
                    frame = self._frames.take(_TAKE_S)
                except PhotoError as error:
                    logger.warning("a photo is left out: %s", error)
                    continue
                except SourceEndedError as error:
                    logger.info("%s", error)
                    self._finished = True
                    break
                if frame is not None:
                    self._take(frame, stop)
                else:
                    self._hooks.idle()
                if self.model_changed.is_set():
                    self.model_changed.clear()
                    self._follow_model()
                self._warn()
        notify("STOPPING=1")
        self.beat(now=True)

    def _take(self, frame: Frame, stop: threading.Event) -> None:
        began = time.perf_counter()
        detection = self._model.decide(frame)
        if not self._commit(detection, frame, stop):
            return
        self._latencies.append(1000 * (time.perf_counter() - began))
        self._verdicts[detection.verdict] += 1
        self._decided += 1
        if frame.identity:
            self._frames.done(frame.identity)
        self._hooks.detection(detection)
        self.plots.see(detection)
        if self._decided % _FRAMES_BETWEEN_CLEARINGS == 0:
            return_freed_memory()

    def _commit(self, detection: Detection, frame: Frame, stop: threading.Event) -> bool:
        """Outbox first, then the history; while the disk refuses, the frame is held and tried again."""
        message = Message(detection_payload(detection), "detection", detection.plot, detection.event_id)
        small = thumbnail(frame) if self._keep_thumbnails else None
        outbox = self._stores.detections
        pause = _RETRY_FIRST_S
        while True:
            try:
                if outbox is not None:
                    outbox.add([message])
                    outbox = None
                self._stores.history.add(detection, thumbnail=small, identity=frame.identity)
            except OutboxError as error:
                if self._trouble is None:
                    logger.error("detections cannot be committed (%s): the agent waits for the disk", error)
                self._trouble = f"detections cannot be committed: {error}"
                if stop.wait(pause):
                    return False
                pause = min(2 * pause, _RETRY_LONGEST_S)
                self.beat()
                continue
            if self._trouble is not None:
                logger.warning("detections can be committed again")
                self._trouble = None
            return True

    def _warn(self) -> None:
        # First the history: an alert that goes out must be known by its id after a kill.
        if time.monotonic() < self._warn_again_at or not self._keep_alerts():
            return
        has_news = False
        for message in self.plots.messages():
            kept = Message(alert_payload(message), "alert", message.alert.plot, message.event_id)
            # One that was handed over may be delivered and gone by the next try: it must not go out twice.
            handed = self._handed.setdefault(message.event_id, set())
            try:
                for number, outbox in enumerate(self._stores.outboxes):
                    if number not in handed:
                        outbox.add([kept])
                        handed.add(number)
            except OutboxError as error:
                if not self._alerts_refused:
                    logger.error("an alert cannot be committed (%s): it is tried again", error)
                self._alerts_refused, self._warn_again_at = True, time.monotonic() + _RETRY_LONGEST_S
                return
            self._alerts_refused = False
            self.plots.told(message)
            del self._handed[message.event_id]
            logger.warning("alert %s: %s", message.change, message.alert.text)
            self._hooks.alert(message)
            has_news = True
        self._keep_alerts()
        if has_news:
            self.beat(now=True)  # the broker reads the state

    def _keep_alerts(self) -> bool:
        try:
            self.plots.keep()
            return True
        except OutboxError as error:
            if not self._alerts_refused:
                logger.error("an alert's change is not on the disk yet (%s): it is tried again", error)
            self._alerts_refused, self._warn_again_at = True, time.monotonic() + _RETRY_FIRST_S
            return False

    def _follow_model(self) -> None:
        self._model.refresh()
        classes = self._model.decider.manifest.classes
        if classes != self.plots.classes:
            self.plots = self._create_plots(classes)

    def beat(self, *, now: bool = False) -> None:
        """Reports to systemd and in the state file that the agent is alive."""
        clock = time.monotonic()
        if clock >= self._next_state or now:
            self._next_state = clock + _STATE_EVERY_S
            notify("WATCHDOG=1")
            self.state = self._state()
            try:
                write_state(self._stores.folder, self.state)
            except EdgeError as error:
                logger.info("%s", error)

    def _state(self) -> AgentState:
        latencies = np.array(self._latencies) if self._latencies else None
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
            open_alerts=len(self.plots.open_alerts),
            model=self._model.info,
            broker=self._hooks.broker(),
            outbox=_outbox_state(self._stores.detections),
            outputs={box.path.stem: found for box in self._stores.alerts if (found := _outbox_state(box)) is not None},
            latency_ms={}
            if latencies is None
            else {name: round(float(np.quantile(latencies, q)), 2) for name, q in (("p50", 0.5), ("p99", 0.99))},
            memory_bytes=resident_bytes(),
            processor_celsius=processor_celsius(),
            disk_free_bytes=disk_free_bytes(self._stores.folder),
            trouble=self._trouble,
            finished=self._finished,
            stopped=self.stopped,
            cannot_warn=self.plots.cannot_warn,
            alerts=tuple(open_alerts_json(self.plots.open_alerts)),
        )


def _outbox_state(outbox: Outbox | None) -> dict[str, object] | None:
    if outbox is None:
        return None
    try:
        counts = outbox.counts()
    except OutboxError:
        return None
    return {
        "waiting": sum(counts.waiting.values()),
        "waiting_bytes": counts.waiting_bytes,
        "oldest_s": round(counts.oldest_s, 1),
        "delivered": counts.delivered,
        "dropped": dict(counts.dropped),
    }

"""What goes on beside the agent in a thread of its own: looking for models."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field

from agridistill.edge.agent import Agent
from agridistill.edge.settings import UpdateOptions
from agridistill.edge.updates.settings import UpdateResult
from agridistill.edge.updates.updater import Updater

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

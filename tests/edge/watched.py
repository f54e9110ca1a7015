"""An agent in a thread, and what it told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image
from tests.edge.conftest import running

from agridistill.edge import building
from agridistill.edge.agent import Listeners
from agridistill.edge.alerts.plots import AlertMessage
from agridistill.edge.building import watch
from agridistill.edge.events import Detection
from agridistill.edge.settings import WatchSettings
from agridistill.edge.state import AgentState
from agridistill.runtime.verdict import QualitySettings

ANY = QualitySettings(darkest=0, brightest=1, blurriest=0, least_leaf=0)
GREEN, RED = (10, 200, 10), (200, 10, 10)


def put(folder: Path, name: str, colour: tuple[int, int, int] = GREEN) -> Path:
    """A photo that appears whole."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    Image.fromarray(np.full((20, 20, 3), colour, np.uint8)).save(part, "JPEG")
    part.rename(target)
    return target


@dataclass
class Heard:
    """What an agent told, and how it ended."""

    detections: list[Detection] = field(default_factory=list)
    alerts: list[AlertMessage] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    ends: list[AgentState | BaseException] = field(default_factory=list)

    def listeners(self) -> Listeners:
        return Listeners(self.detections.append, self.alerts.append, self.pages.append)


def settings_for(photos: Path, model: Path) -> WatchSettings:
    photos.mkdir(parents=True, exist_ok=True)
    # Tests name the rules that they want: no colour is healthy by its name.
    return WatchSettings(source=str(photos), model=model, device="pi", quality=ANY, default_rules=False)


@contextmanager
def watching(settings: WatchSettings, state: Path) -> Iterator[Heard]:
    heard = Heard()

    def run(stop: threading.Event) -> None:
        try:
            heard.ends.append(watch(settings, state, stop, heard.listeners()))
        except BaseException as error:
            heard.ends.append(error)

    try:
        with running(run):
            yield heard
    finally:
        if heard.ends and isinstance(heard.ends[0], BaseException):
            raise heard.ends[0]


def once(settings: WatchSettings, state: Path, *, idle_s: float = 0.3) -> Heard:
    heard = Heard()
    # Where the photos of a test are complete, nothing has to settle.
    with mock.patch.object(building, "_IDLE_S", idle_s):
        heard.ends.append(watch(settings, state, threading.Event(), heard.listeners(), once=True))
    return heard

"""What was postponed is tried again, soon at first; what came over MQTT, too."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import pytest
from tests.edge.conftest import wait_for

from agridistill.edge import backoff
from agridistill.edge.updates import updater
from agridistill.edge.updates.updater import Updater, UpdateResult, UpdateWorker

POSTPONED = UpdateResult("postponed", 1, "away")


class Checks:
    """Stands in for the updater and the agent: gives results in turn, the last one for ever."""

    def __init__(self, *results: UpdateResult) -> None:
        self.results = list(results)
        self.asked: list[tuple[float, str | bytes]] = []
        self.model_changed = threading.Event()

    def check(self, source: str | bytes, stop: threading.Event) -> UpdateResult:
        self.asked.append((time.monotonic(), source))
        return self.results.pop(0) if len(self.results) > 1 else self.results[0]

    @property
    def sources(self) -> list[str | bytes]:
        return [source for _, source in self.asked]

    @property
    def pauses(self) -> list[float]:
        times = [at for at, _ in self.asked]
        return [after - before for before, after in itertools.pairwise(times)]

    def worker(self, source: str = "") -> UpdateWorker:
        return UpdateWorker(source, 6 * 3600, cast(Updater, self), self.model_changed.set)


@contextmanager
def running(worker: UpdateWorker) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1)
        assert not thread.is_alive(), "it must stop at once, also while something waits for its next try"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    monkeypatch.setattr(updater, "_POLL_S", 0.002)
    monkeypatch.setattr(backoff.random, "uniform", lambda low, high: high)

    def pauses(first_s: float, longest_s: float) -> None:
        monkeypatch.setattr(updater, "_FIRST_RETRY_S", first_s)
        monkeypatch.setattr(updater, "_LONGEST_RETRY_S", longest_s)

    pauses(0.02, 3600)
    return pauses


def test_a_postponed_offer_is_tried_again_until_it_is_installed() -> None:
    checks = Checks(POSTPONED, POSTPONED, UpdateResult("installed", 1), UpdateResult("current", 1))
    worker = checks.worker()
    with running(worker):
        worker.offer(b"release")
        wait_for(checks.model_changed.is_set)
        time.sleep(0.1)
    assert checks.sources == [b"release"] * 3
    assert worker.last is not None
    assert worker.last.outcome == "installed"


def test_a_refused_offer_is_not_tried_again() -> None:
    checks = Checks(UpdateResult("refused", 1, "no"))
    worker = checks.worker()
    with running(worker):
        worker.offer(b"release")
        wait_for(lambda: checks.asked)
        time.sleep(0.1)
    assert checks.sources == [b"release"]


def test_pauses_double_up_to_a_limit(short: Callable[[float, float], None]) -> None:
    short(0.02, 0.08)
    checks = Checks(POSTPONED)
    with running(checks.worker("served/")):
        wait_for(lambda: len(checks.asked) >= 6)
    for pause, expected in zip(checks.pauses, (0.02, 0.04, 0.08, 0.08, 0.08), strict=False):
        assert expected <= pause < expected + 0.5


def test_no_pause_is_longer_than_the_regular_one(short: Callable[[float, float], None]) -> None:
    short(60, 3600)
    look = updater._Check("served/", 36)
    for _ in range(2000):
        look.postpone(patient=False)
        assert look.due_at - time.monotonic() <= 36


def test_a_look_that_failed_for_long_reasons_waits_for_long(short: Callable[[float, float], None]) -> None:
    look = updater._Check("served/", 3600)
    look.postpone(patient=True)
    assert 3500 < look.due_at - time.monotonic() <= 3600


def test_a_source_that_answers_again_is_looked_at_at_its_regular_pace() -> None:
    checks = Checks(POSTPONED, POSTPONED, UpdateResult("current", 1))
    with running(checks.worker("served/")):
        wait_for(lambda: len(checks.asked) == 3)
        time.sleep(0.15)
    assert len(checks.asked) == 3


def test_a_newer_offer_takes_the_place_of_a_postponed_one(short: Callable[[float, float], None]) -> None:
    short(0.05, 3600)
    checks = Checks(POSTPONED)
    worker = checks.worker()
    with running(worker):
        worker.offer(b"old")
        wait_for(lambda: checks.asked)
        worker.offer(b"new")
        wait_for(lambda: checks.sources.count(b"new") >= 3)
    old = checks.sources.count(b"old")
    assert set(checks.sources[old:]) == {b"new"}, "the old one must not come back"


def test_a_postponed_offer_does_not_keep_the_source_from_its_turn(short: Callable[[float, float], None]) -> None:
    short(3600, 3600)
    checks = Checks(POSTPONED)
    worker = checks.worker("served/")
    worker.offer(b"release")
    with running(worker):
        wait_for(lambda: len(checks.asked) == 2)
    assert checks.sources == [b"release", "served/"]

"""At most one frame waits, a source that was away is come back to, and no reader dies unheard."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from tests.edge.conftest import wait_for

from agridistill.edge.events import Frame
from agridistill.edge.sources import LatestFrame, SourceEndedError, SourceLostError, SourceRefusedError
from agridistill.errors import PhotoError

LOST = SourceLostError("frames", "nothing", "wait")
ENDED = SourceEndedError("a frame", "the end", "name another")
BAD = PhotoError("a photo", "a cut one", "replace it")


def frame(number: int) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), str(number), "", 0.0)


class Script:
    """Gives what it is told to; an error is raised, also by `open` where it stands in `at_opening`."""

    def __init__(self, *steps: Frame | Exception, live: bool = False) -> None:
        self.name, self.live = "the script", live
        self.steps: Iterator[Frame | Exception] = iter(steps)
        self.at_opening: list[Exception | None] = []
        self.opened_at: list[float] = []
        self.is_open = False
        self.read_count = 0

    def open(self) -> None:
        self.opened_at.append(time.monotonic())
        error = self.at_opening.pop(0) if self.at_opening else None
        if error is not None:
            raise error
        self.is_open = True

    def read(self, wait_s: float) -> Frame | None:
        assert self.is_open
        step = next(self.steps, None)
        if step is None:
            time.sleep(0.005)
            return None
        if isinstance(step, Exception):
            raise step
        self.read_count += 1
        return step

    def done(self, frame_identity: str) -> None: ...

    def close(self) -> None:
        self.is_open = False


def taken(latest: LatestFrame) -> str:
    found = latest.take(10)
    assert found is not None
    return found.name


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_live_source_gives_the_newest_frame_and_counts_the_others() -> None:
    source = Script(*map(frame, range(100)), live=True)
    with LatestFrame(source) as latest:
        wait_for(lambda: source.read_count == 100 and latest.skipped == 99)
        assert taken(latest) == "99"
        assert latest.take(0.01) is None
        assert latest.skipped == 99


def test_a_source_that_waits_loses_nothing_and_is_not_read_ahead() -> None:
    source = Script(*map(frame, range(20)))
    with LatestFrame(source) as latest:
        wait_for(lambda: source.read_count == 2)  # one waits, one is in the reader's hand
        time.sleep(0.05)
        assert source.read_count == 2
        assert [taken(latest) for _ in range(20)] == [str(number) for number in range(20)]
        assert latest.skipped == 0


def test_a_bad_photo_comes_in_its_place_and_is_counted() -> None:
    with LatestFrame(Script(frame(0), BAD, frame(1))) as latest:
        assert taken(latest) == "0"
        with pytest.raises(PhotoError, match="a cut one"):
            latest.take(10)
        assert taken(latest) == "1"
        assert latest.unreadable == 1


def test_a_bad_live_frame_does_not_take_the_place_of_a_good_one() -> None:
    with LatestFrame(Script(frame(0), BAD, live=True)) as latest:
        wait_for(lambda: latest.unreadable == 1)
        assert taken(latest) == "0"
        assert latest.skipped == 0


def test_a_refusal_is_no_absence_and_is_not_tried_again_soon(caplog: pytest.LogCaptureFixture) -> None:
    refused = SourceRefusedError("a right password", "status 401", "correct it")
    source = Script(frame(0), live=True)
    source.at_opening = [LOST, refused, refused]
    with LatestFrame(source, first_pause_s=0.001, longest_pause_s=0.2) as latest:
        wait_for(lambda: latest.trouble is not None)
        assert latest.trouble == "status 401"
        assert latest.lost_for_s is not None
        assert taken(latest) == "0"
        assert latest.trouble is None
    first, second, third = told(caplog)
    assert "is away" in first
    assert "refuses" in second
    assert "status 401" in second
    assert "away" not in second
    assert "is back" in third
    pauses = np.diff(source.opened_at)
    assert (pauses[-2:] >= 0.1).all()


def test_the_end_is_told_behind_the_last_frame_and_again() -> None:
    source = Script(frame(0), frame(1), ENDED)
    with LatestFrame(source) as latest:
        assert [taken(latest), taken(latest)] == ["0", "1"]
        for _ in range(2):
            with pytest.raises(SourceEndedError):
                latest.take(10)
        assert not source.is_open


def test_a_loss_is_told_once_tried_again_with_growing_pauses_and_its_end_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Script(frame(0), LOST, frame(1), LOST, frame(2))
    source.at_opening = [None, *[LOST] * 5]
    with LatestFrame(source, first_pause_s=0.04, longest_pause_s=0.16) as latest:
        assert taken(latest) == "0"
        wait_for(lambda: latest.lost_for_s is not None)
        assert taken(latest) == "1"
        assert taken(latest) == "2"
        wait_for(lambda: latest.lost_for_s is None)
    lines = told(caplog)
    assert ["is away" in line for line in lines] == [True, False] * 2
    assert ["is back" in line for line in lines] == [False, True] * 2
    pauses = np.diff(source.opened_at)
    for pause, least in zip(pauses, (0.02, 0.04, 0.08, 0.08, 0.08, 0.08), strict=False):
        assert least <= pause
    # Behind a time when it was there the pauses begin anew.
    assert len(pauses) == 7
    assert pauses[6] >= 0.02


def test_a_source_that_opens_but_gives_nothing_is_not_back(caplog: pytest.LogCaptureFixture) -> None:
    with LatestFrame(Script(*[LOST] * 6, frame(1)), first_pause_s=0.01, longest_pause_s=0.01) as latest:
        assert taken(latest) == "1"
    assert len(told(caplog)) == 2


def test_a_source_that_is_not_there_yet_is_waited_for() -> None:
    source = Script(frame(0))
    source.at_opening = [LOST]
    with LatestFrame(source, first_pause_s=0.01) as latest:
        assert taken(latest) == "0"


@pytest.mark.parametrize("place", ["open", "read"])
def test_an_unexpected_failure_reaches_the_agent(place: str) -> None:
    source = Script(*([ZeroDivisionError()] if place == "read" else []))
    source.at_opening = [ZeroDivisionError()] if place == "open" else []
    with LatestFrame(source) as latest, pytest.raises(ZeroDivisionError):
        latest.take(10)


class Blocked(Script):
    def __init__(self) -> None:
        super().__init__(live=True)
        self.entered, self.free = threading.Event(), threading.Event()

    def read(self, wait_s: float) -> Frame | None:
        self.entered.set()
        self.free.wait(30)
        return None


@pytest.mark.parametrize("state", ["waiting for a place", "waiting for the source", "in a driver that blocks"])
def test_stop_returns_within_a_second(state: str) -> None:
    source = Script(frame(0), frame(1))
    if state == "waiting for the source":
        source.at_opening = [LOST]
    elif state == "in a driver that blocks":
        source = Blocked()
    latest = LatestFrame(source, first_pause_s=60)
    latest.start()
    if isinstance(source, Blocked):
        assert source.entered.wait(10)
    else:
        wait_for(lambda: source.read_count == 2 or latest.lost_for_s is not None)
    begin = time.monotonic()
    latest.stop()
    latest.stop()
    assert time.monotonic() - begin < 2  # two calls
    if isinstance(source, Blocked):
        source.free.set()
    wait_for(lambda: not source.is_open)
    latest.take(0)  # what waited may still be taken
    assert latest.take(60) is None


def test_stop_before_the_start_is_harmless() -> None:
    LatestFrame(Script()).stop()

"""What ends the golden check from outside is nothing against the model, but what it does itself is."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.edge.conftest import wait_for

from agridistill.edge.updates import prepare
from agridistill.edge.updates.updater import MAX_KILLED_CHECKS, UpdateResult

from .conftest import Device, Publisher

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals")
MakeDevice = Callable[..., Device]


@pytest.fixture
def check_with(
    device: Device, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., UpdateResult]:
    """Looks for an update whose golden process runs the given lines instead."""
    publisher.publish(1)

    def check(lines: str, on: Device = device, stop: threading.Event | None = None) -> UpdateResult:
        program = tmp_path / "python"
        program.write_text(f"#!{sys.executable}\nimport os, pathlib, signal, time\n{lines}\n")
        program.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setattr(prepare.sys, "executable", str(program))
            return on.updater.check(on.source, stop)

    return check


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_check_that_is_asked_to_end_is_postponed_however_often(
    number: signal.Signals, device: Device, check_with: Callable[..., UpdateResult]
) -> None:
    for _ in range(MAX_KILLED_CHECKS + 1):
        result = check_with(f"signal.signal({number}, signal.SIG_DFL)\nos.kill(os.getpid(), {number})")
        assert (result.outcome, result.version) == ("postponed", 1)
        assert f"signal {int(number)}" in result.reason
    assert device.check().outcome == "installed"


def test_a_check_that_is_killed_is_postponed_three_times_also_over_restarts(
    device_for: MakeDevice, publisher: Publisher, check_with: Callable[..., UpdateResult]
) -> None:
    dies = "os.kill(os.getpid(), signal.SIGKILL)"
    outcomes = [check_with(dies, device_for(publisher)).outcome for _ in range(4)]
    assert outcomes == ["postponed", "postponed", "postponed", "refused"]
    device = device_for(publisher)
    assert "killed 4 times" in device.check().reason
    assert not list(device.slots.folder.glob("v1*"))
    publisher.publish(2)
    assert check_with(dies, device).outcome == "postponed", "each version has its own tries"
    assert device.check().outcome == "installed"


def test_a_check_ends_when_the_agent_stops_and_is_done_at_the_next(
    device: Device, check_with: Callable[..., UpdateResult], tmp_path: Path
) -> None:
    stop, results, pid = threading.Event(), [], tmp_path / "pid"
    lines = f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid()) + '.')\ntime.sleep(60)"
    thread = threading.Thread(target=lambda: results.append(check_with(lines, stop=stop)))
    thread.start()
    try:
        wait_for(lambda: pid.exists() and pid.read_text().endswith("."), what="the golden process")
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
    assert results[0].outcome == "postponed"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text().rstrip(".")), 0)
    assert device.slots.pointer().refused == {}
    assert device.check().outcome == "installed"


def test_a_golden_photo_that_this_device_cannot_read_is_nothing_against_the_model(
    device: Device, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_text("a format that only the publisher reads")
    with monkeypatch.context() as patch:
        patch.setattr("agridistill.edge.updates.publishing._golden", lambda *given: ([photo], ["green"], 1.0))
        publisher.publish(1)
    result = device.check()
    assert result.outcome == "postponed"
    assert "golden photos that this device can read; got '" in result.reason
    assert "golden-001.jpg" in result.reason
    assert device.slots.pointer().refused == {}


def test_a_signal_to_the_agents_terminal_does_not_reach_the_check(
    check_with: Callable[..., UpdateResult], tmp_path: Path
) -> None:
    session = tmp_path / "session"
    check_with(f"pathlib.Path({str(session)!r}).write_text(f'{{os.getsid(0)}} {{os.getpgrp()}}')")
    ids = {int(word) for word in session.read_text().split()}
    assert not ids & {os.getsid(0), os.getpgrp()}

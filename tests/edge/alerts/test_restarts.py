"""What is known of an alert after a restart, also on a device whose clock was wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from agridistill.edge.alerts import plots as plots_module
from agridistill.edge.alerts.plots import AlertMessage, Plots
from agridistill.edge.alerts.rules import Rule
from agridistill.edge.events import Detection, Verdict
from agridistill.edge.store.history import History

CLASSES = ("blight", "healthy")
RULE = Rule("blight", ("blight",), share=0.5, least_leaves=2, repeat_hours=0)
QUIET = replace(RULE, quiet="00:00-23:59")
NOON_S = datetime(2026, 7, 1, 12, 0).timestamp()  # noqa: DTZ001 - local time is meant
HOUR_S, DAY_S, YEAR_S = 3600.0, 86_400.0, 3e7


class Device:
    """Its history, its two clocks, and the plots that begin anew with each start."""

    def __init__(self, history: History) -> None:
        self.history, self.clock_s, self.wrong_s = history, 1000.0, 0.0
        self._number = 0

    def time(self) -> float:
        return NOON_S + self.clock_s + self.wrong_s

    def monotonic(self) -> float:
        return self.clock_s

    def start(self, rule: Rule = RULE) -> list[AlertMessage]:
        self.plots = Plots(self.history, [rule], CLASSES, view_s=HOUR_S)
        return self.tell()

    def see(self, *shares: float, verdict: Verdict = "answer") -> list[AlertMessage]:
        for share in shares:
            self._number, self.clock_s = self._number + 1, self.clock_s + 1
            name, both = f"{self._number:032x}", {"blight": share, "healthy": 1 - share}
            seen = Detection(name, self.time(), "pi", "photos", "a.jpg", "north", "ab", verdict, probabilities=both)
            self.history.add(seen)
            self.plots.see(seen)
        return self.tell()

    def tell(self) -> list[AlertMessage]:
        messages = self.plots.alerts.messages()
        for message in messages:
            self.plots.alerts.sent(message)
        self.plots.store()
        return messages


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    with History(tmp_path / "history.sqlite") as history:
        made = Device(history)
        monkeypatch.setattr(plots_module, "time", made)
        made.start()
        yield made


def changes(messages: list[AlertMessage]) -> list[str]:
    return [message.change for message in messages]


class TestForgetting:
    def test_leaves_before_the_restart_keep_an_alert_open(self, device: Device) -> None:
        rule = replace(RULE, forget_days=1)
        device.start(rule)
        for _ in range(60):  # so steadily that the alert has nothing to say for more than a day
            device.clock_s += HOUR_S / 2
            device.see(0.9)
        # The lens is dirty by night: only what the model saw counts, and it is no longer within the window.
        device.clock_s += 2 * HOUR_S
        device.see(*[0.9] * 20, verdict="unusable")
        assert device.start(rule) == []
        device.clock_s += 21.9 * HOUR_S
        assert device.tell() == []
        device.clock_s += 0.2 * HOUR_S
        assert changes(device.tell()) == ["resolved"]

    def test_restarts_without_leaves_do_not_keep_one_open(self, device: Device) -> None:
        rule = replace(RULE, repeat_hours=24)
        device.start(rule)
        device.see(0.9, 0.9)
        told = []
        for _ in range(8):
            device.clock_s += DAY_S
            told += changes(device.start(rule))
        assert told == ["repeated"] * 7 + ["resolved"]


class TestClock:
    def test_an_end_that_is_told_after_the_clock_was_set_back_is_told_once(self, device: Device) -> None:
        device.see(0.9, 0.9)
        device.start(QUIET)
        assert device.see(*[0.0] * 20) == []
        device.wrong_s = -600
        assert changes(device.start()) == ["resolved"]
        assert device.start() == []

    def test_one_that_opens_after_that_stays_the_open_one(self, device: Device) -> None:
        device.see(0.9, 0.9)
        device.start(QUIET)
        device.see(*[0.0] * 20)
        device.wrong_s = -600
        device.start()
        (opened,) = device.see(*[0.95] * 60)
        for _ in range(2):
            assert device.start() == []
            assert [alert.alert_id for alert in device.plots.alerts.open] == [opened.alert.alert_id]
        assert len(device.history.alerts(state="open")) == 1

    def test_an_end_is_told_also_where_the_clock_was_ahead_at_the_beginning(self, device: Device) -> None:
        device.wrong_s = YEAR_S
        device.see(0.9, 0.9)
        device.wrong_s = 0.0
        device.start(QUIET)
        assert device.see(*[0.0] * 20) == []
        assert changes(device.start()) == ["resolved"]
        assert device.start() == []

    def test_an_end_that_was_told_but_not_kept_is_told_with_the_same_event_id(self, device: Device) -> None:
        device.wrong_s = YEAR_S
        device.see(0.9, 0.9)
        device.wrong_s = 0.0
        device.start(QUIET)
        device.see(*[0.0] * 20)
        device.start(QUIET)
        device.plots = Plots(device.history, [RULE], CLASSES, view_s=HOUR_S)
        (lost,) = device.plots.alerts.messages()
        device.wrong_s = -600
        (found,) = device.start()
        assert (found.change, found.event_id) == (lost.change, lost.event_id)


def test_a_level_that_was_changed_reaches_an_open_alert(device: Device) -> None:
    device.see(0.9, 0.9)
    critical = replace(RULE, level="critical")
    assert device.start(critical) == []
    assert [alert.level for alert in device.plots.alerts.open] == ["critical"]
    assert [alert.level for alert in device.history.alerts()] == ["critical"]
    (ended,) = device.see(*[0.0] * 20)
    assert (ended.change, ended.alert.level) == ("resolved", "critical")

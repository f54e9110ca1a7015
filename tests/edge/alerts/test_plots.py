"""The plots go on after a restart as if nothing had been."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agridistill.edge.alerts.plots import Plots
from agridistill.edge.alerts.rules import PlotHealth, Rule
from agridistill.edge.events import Detection
from agridistill.edge.store.history import History

CLASSES = ("blight", "healthy")
RULE = Rule("blight", ("blight",), share=0.5, least_leaves=4)


def detection(number: int, blight: float, **changes: object) -> Detection:
    fields: dict[str, object] = {
        "event_id": f"{number:032x}",
        "at_s": time.time(),
        "device": "pi",
        "source": "photos",
        "photo": f"{number}.jpg",
        "plot": "north",
        "model": "ab" * 6,
        "verdict": "answer",
        "label": "blight",
        "probability": blight,
        "probabilities": {"blight": blight, "healthy": 1 - blight},
    }
    return Detection(**(fields | changes))  # type: ignore[arg-type]


def plots(history: History, *rules: Rule) -> Plots:
    return Plots(history, rules or (RULE,), CLASSES, view_s=3600)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


def health(made: Plots, plot: str) -> PlotHealth:
    """Of a plot, also where its last leaf was seen longer ago than the window."""
    return made._health[plot]


def see(made: Plots, history: History, *seen: Detection) -> list[str]:
    told = []
    for item in seen:
        history.add(item)
        made.see(item)
        for message in made.alerts.messages():
            made.alerts.sent(message)
            made.store()
            told.append(message.change)
    return told


def test_leaves_say_something_together_and_open_an_alert_that_is_kept(path: Path) -> None:
    with History(path) as history:
        made = plots(history)
        assert see(made, history, *[detection(number, 0.9) for number in range(4)]) == ["opened"]
        assert [(report.label, report.leaves) for report in made.health] == [("blight", 4)]
        assert [alert.state for alert in history.alerts()] == ["open"]


DAY_S = 86_400.0


def late(number: int, blight: float, days: float, **changes: object) -> Detection:
    return detection(number, blight, taken_s=time.time() - days * DAY_S, **changes)


def test_photos_of_several_days_that_come_at_once_are_not_one_hour(path: Path) -> None:
    with History(path) as history:
        made = plots(history)
        assert see(made, history, *[late(number, 0.9, 6 - number) for number in range(6)]) == []
        assert health(made, "north").leaves == 1
        assert health(made, "north").seen_s == pytest.approx(time.time() - DAY_S, abs=5)


def test_a_plot_of_old_photos_has_the_same_age_after_a_restart(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrival_s = time.time()
    with History(path) as history:
        made = plots(history)
        see(made, history, late(1, 0.9, 20), late(2, 0.9, 10), late(3, 0.9, 12), late(4, 0.9, 40, plot="archive"))
        before = [(report.plot, report.seen_s) for report in made.health]
    assert before == [("north", pytest.approx(arrival_s - 10 * DAY_S, abs=5))]
    monkeypatch.setattr(time, "time", lambda: arrival_s + DAY_S)
    with History(path) as history:
        assert [(report.plot, report.seen_s) for report in plots(history).health] == [
            ("north", pytest.approx(arrival_s - 10 * DAY_S, abs=5))
        ]


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 4, 0, 3, 1)])
def test_photos_of_one_hour_of_last_week_warn_when_they_come_in_any_order(path: Path, order: tuple[int, ...]) -> None:
    def mixed() -> Iterator[Detection]:
        for number in order:
            yield late(number, 0.9, 7 + number / 100)
            # Another plot is watched meanwhile, by photos that come at once and by older ones.
            yield detection(100 + number, 0.1, plot="south")
            yield late(200 + number, 0.1, 30, plot=f"field {number}")

    with History(path) as history:
        made = plots(history)
        assert see(made, history, *mixed()) == ["opened"]
        assert health(made, "north").leaves == 5
        assert [alert.plot for alert in made.alerts.open] == ["north"]
    with History(path) as history:
        made = plots(history)
        assert health(made, "north").leaves == 5
        assert made.alerts.messages() == []
        assert see(made, history, *[late(300 + number, 0.01, 6.9) for number in range(40)])[-1] == "resolved"


def test_a_photo_of_now_ends_the_window_now(path: Path) -> None:
    with History(path) as history:
        made = plots(history)
        see(made, history, *[late(number, 0.9, 2) for number in range(3)], detection(9, 0.9))
        assert health(made, "north").leaves == 1
        assert made.alerts.open == []


def test_verdicts_without_calibrated_probabilities_do_not_count(path: Path) -> None:
    with History(path) as history:
        made = plots(history)
        strange = [detection(number, 0.9, verdict="unfamiliar") for number in range(5)]
        unusable = [detection(9, 0.9, verdict="unusable", label=None, probability=None, probabilities={})]
        other_model = [detection(10 + number, 0.9, probabilities={"rust": 1.0}) for number in range(5)]
        assert see(made, history, *strange, *unusable, *other_model) == []
        assert made.health == []


def test_after_a_restart_leaves_still_count_and_an_alert_is_not_told_anew(path: Path) -> None:
    with History(path) as history:
        see(plots(history), history, *[detection(number, 0.9) for number in range(3)])
    with History(path) as history:
        made = plots(history)
        assert health(made, "north").leaves == 3
        assert see(made, history, detection(3, 0.9)) == ["opened"]
    with History(path) as history:
        again = plots(history)
        assert again.alerts.messages() == []
        assert [alert.rule for alert in again.alerts.open] == ["blight"]


def test_an_alert_that_was_not_told_before_a_kill_is_told_after_it_with_the_same_event_id(path: Path) -> None:
    with History(path) as history:
        made = plots(history)
        for number in range(4):
            history.add(detection(number, 0.9))
            made.see(detection(number, 0.9))
        made.store()
        (lost,) = made.alerts.messages()
    with History(path) as history:
        (found,) = plots(history).alerts.messages()
    assert (found.change, found.event_id) == (lost.change, lost.event_id)


def test_leaves_from_before_the_window_do_not_come_back(path: Path) -> None:
    with History(path) as history:
        for number in range(5):
            history.add(detection(number, 0.9, at_s=time.time() - 4000))
        assert [one.leaves for one in plots(history).health] == [0]


def test_a_clock_that_was_set_back_loses_no_leaves(path: Path) -> None:
    with History(path) as history:
        for number in range(5):
            history.add(detection(number, 0.9, at_s=time.time() + 10**7))
        assert health(plots(history), "north").leaves == 5


def test_a_plot_knows_how_many_of_its_leaves_are_ill_and_of_what(path: Path) -> None:
    with History(path) as history:
        made = plots(history)
        for number, blight in enumerate((0.9, 0.9, 0.9, 0.1)):
            made.see(detection(number, blight))
        made.see(detection(9, 0.0, plot="south"))
        north, south = made.health
    assert (north.plot, north.leaves, north.ill_leaves, north.label) == ("north", 4, 3, "blight")
    assert north.ill_share == pytest.approx(0.7)
    assert north.trend is None
    assert abs(north.seen_s - time.time()) < 60
    assert (south.plot, south.ill_leaves) == ("south", 0)


def test_a_plot_is_named_after_what_its_alert_counts(path: Path) -> None:
    classes, rule = ("blight", "rust", "healthy"), Rule("ill", ("blight", "rust"), share=0.4, least_leaves=4)
    with History(path) as history:
        made = Plots(history, (rule,), classes, view_s=3600)
        for number in range(5):
            shares = {"blight": 0.28, "rust": 0.22, "healthy": 0.5}
            made.see(detection(number, 0.0, probabilities=shares))
        (alert,) = made.alerts.open
        (report,) = made.health
    assert (report.label, report.leaves, report.to_json()["condition"]) == (alert.label, 5, "blight")
    assert report.ill_share == pytest.approx(alert.share)


def test_a_plot_without_recent_leaves_has_no_label_also_after_a_restart(path: Path) -> None:
    with History(path) as history:
        for plot, days in (("north", 20), ("lost", 40)):
            history.add(detection(days, 0.9, plot=plot, at_s=time.time() - 86_400 * days))
    with History(path) as history:
        (report,) = plots(history).health
    assert (report.plot, report.leaves, report.label) == ("north", 0, None)
    assert report.to_json()["condition"] == "No recent leaves"


def test_a_plot_loses_its_label_when_its_last_leaf_is_older_than_the_window(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with History(path) as history:
        made = plots(history)
        made.see(detection(1, 0.9))
        assert [report.to_json()["condition"] for report in made.health] == ["blight"]
        later = time.time() + 3700
        monkeypatch.setattr(time, "time", lambda: later)
        assert [report.to_json()["condition"] for report in made.health] == ["No recent leaves"]


@pytest.mark.parametrize(("before", "now", "trend"), [(0.1, 0.9, "up"), (0.9, 0.1, "down"), (0.5, 0.55, "steady")])
def test_the_trend_is_against_the_window_before(path: Path, before: float, now: float, trend: str) -> None:
    with History(path) as history:
        for number in range(5):
            history.add(detection(number, before, at_s=time.time() - 5400))
        made = Plots(history, (RULE,), CLASSES, view_s=3600)
        for number in range(5, 10):
            made.see(detection(number, now))
        (found,) = made.health
    assert (found.leaves, found.leaves_before) == (5, 5)
    assert found.ill_share_before == pytest.approx(before)
    assert found.trend == trend


def test_a_trend_needs_five_leaves_in_both_windows() -> None:
    assert PlotHealth("north", 0.0, 3600.0, 5, 0.9, "blight", 4, 0.1).trend is None
    assert PlotHealth("north", 0.0, 3600.0, 4, 0.9, "blight", 5, 0.1).trend is None
    assert PlotHealth("north", 0.0, 3600.0, 5, 0.9, "blight", 5, 0.1).trend == "up"

"""An alert opens once, is updated, ends, and is told in between as often as it should be."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest

from agridistill.edge.alerts.plots import AlertKeeper, AlertMessage
from agridistill.edge.alerts.rules import LeafPool, Rule
from agridistill.edge.events import Alert

CLASSES = ("Late_blight", "healthy")
NOON_S = datetime(2026, 7, 1, 12, 0).timestamp()  # noqa: DTZ001 - local time is meant
RULE = Rule("blight", ("Late_blight",), share=0.5, least_leaves=3, window_minutes=10, repeat_hours=2)
DAY_S = 86_400.0


class Field:
    """A keeper with its clock and its pool."""

    def __init__(self, *rules: Rule, known: tuple[tuple[Alert, float], ...] = ()) -> None:
        self.now_s, self.clock_s = NOON_S, 0.0
        self.pool = LeafPool(CLASSES, [rule.window_s for rule in rules or (RULE,)])
        self.keeper = AlertKeeper(
            rules or (RULE,), CLASSES, self.pool, known, clocks=lambda: (self.clock_s, self.now_s)
        )

    def see(self, *shares: float, plot: str = "north", every_s: float = 1.0) -> list[AlertMessage]:
        for share in shares:
            self.wait(every_s)
            self.pool.add(plot, np.array([share, 1 - share]), self.clock_s)
            self.keeper.look(plot)
        return self.tell()

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.clock_s += seconds

    def tell(self) -> list[AlertMessage]:
        messages = self.keeper.messages()
        for message in messages:
            self.keeper.sent(message)
        return messages


def changes(messages: list[AlertMessage]) -> list[str]:
    return [message.change for message in messages]


def test_one_leaf_is_a_leaf() -> None:
    field = Field(replace(RULE, least_leaves=1))
    (opened,) = field.see(0.9)
    assert opened.alert.text == "blight, north: 90 % of 1 leaf, mostly Late blight"


def test_an_alert_opens_once_is_updated_and_ends_as_the_same_one() -> None:
    field = Field()
    assert changes(field.see(0.9, 0.9)) == []
    (opened,) = field.see(0.9)
    assert opened.change == "opened"
    assert opened.alert.text == "blight, north: 90 % of 3 leaves, mostly Late blight"
    assert opened.alert.since_s == field.now_s
    assert field.see(0.9, 0.9, 0.9) == []
    updated = field.see(*[0.5] * 4)
    assert changes(updated) == ["updated"]
    field.wait(601)
    ended = field.see(0.1, 0.1, 0.1)
    assert changes(ended) == ["resolved"]
    assert {message.alert.alert_id for message in (opened, *updated, *ended)} == {opened.alert.alert_id}
    assert ended[0].alert.since_s == opened.alert.since_s
    assert ended[0].alert.resolved_s == field.now_s
    assert field.keeper.open == []
    field.wait(601)
    assert field.see(0.9, 0.9, 0.9)[0].alert.alert_id != opened.alert.alert_id


def test_each_plot_has_an_alert_of_its_own() -> None:
    field = Field()
    field.see(*[0.9] * 3, plot="north")
    assert changes(field.see(*[0.9] * 3, plot="south")) == ["opened"]
    assert sorted(alert.plot for alert in field.keeper.open) == ["north", "south"]


def test_an_open_alert_is_told_again_after_its_time() -> None:
    field = Field()
    field.see(*[0.9] * 3)
    field.wait(2 * 3600 - 1)
    assert field.tell() == []
    field.wait(1)
    first = field.tell()
    assert changes(first) == ["repeated"]
    field.wait(2 * 3600)
    second = field.tell()
    assert changes(second) == ["repeated"]
    assert first[0].event_id != second[0].event_id


def test_a_message_that_is_not_out_yet_is_given_again_with_the_same_event_id() -> None:
    field = Field()
    for _ in range(3):
        field.wait(1)
        field.pool.add("north", np.array([0.9, 0.1]), field.clock_s)
        field.keeper.look("north")
    first = field.keeper.messages()
    field.now_s += 5
    again = field.keeper.messages()
    assert [item.event_id for item in first] == [item.event_id for item in again]
    assert len(first) == 1


def test_no_leaves_end_no_alert_until_it_is_forgotten() -> None:
    field = Field()
    field.see(*[0.9] * 3)
    field.wait(6.9 * DAY_S)
    assert "resolved" not in changes(field.tell())
    field.wait(0.2 * DAY_S)
    (ended,) = field.tell()
    assert ended.change == "resolved"
    assert "no leaves for 7 days" in ended.alert.text


def test_an_alert_with_fresh_leaves_is_never_forgotten() -> None:
    field = Field(replace(RULE, repeat_hours=0))
    field.see(*[0.9] * 3)
    for _ in range(20):
        field.wait(DAY_S)
        assert field.see(*[0.9] * 3) == []
    assert len(field.keeper.open) == 1


class TestQuietHours:
    RULE = replace(RULE, quiet="22:00-06:00", repeat_hours=0)

    def night(self) -> Field:
        field = Field(self.RULE)
        field.now_s = NOON_S + 11 * 3600
        return field

    def test_what_opens_in_them_is_told_after(self) -> None:
        field = self.night()
        assert field.see(*[0.9] * 3) == []
        assert len(field.keeper.open) == 1
        field.now_s = NOON_S + 18 * 3600
        assert changes(field.tell()) == ["opened"]

    def test_what_opens_and_ends_in_them_is_told_after_as_resolved(self) -> None:
        field = self.night()
        field.see(*[0.9] * 3)
        field.wait(601)
        field.see(*[0.0] * 3)
        assert field.tell() == []
        field.now_s = NOON_S + 18 * 3600
        assert changes(field.tell()) == ["resolved"]
        assert field.tell() == []

    def test_what_was_told_before_and_ends_in_them_is_told_after(self) -> None:
        field = Field(self.RULE)
        field.see(*[0.9] * 3)
        field.now_s, field.clock_s = NOON_S + 11 * 3600, 11 * 3600
        assert field.see(*[0.0] * 3) == []
        field.now_s = NOON_S + 18 * 3600
        assert changes(field.tell()) == ["resolved"]


class TestRestart:
    def test_an_open_alert_goes_on_and_is_not_told_anew(self) -> None:
        before = Field()
        (opened,) = before.see(*[0.9] * 3)
        known = list(before.keeper.changed.values())
        after = Field(known=((known[-1]),))
        assert after.see(*[0.9] * 3) == []
        assert [alert.alert_id for alert in after.keeper.open] == [opened.alert.alert_id]

    def test_one_that_people_were_not_told_of_is_told_now(self) -> None:
        alert = Alert("a" * 32, "blight", "north", "open", NOON_S, NOON_S, None, "Late_blight", 0.9, 5, "text")
        assert changes(Field(known=((alert, 0.0),)).tell()) == ["opened"]
        ended = replace(alert, state="resolved", resolved_s=NOON_S)
        assert changes(Field(known=((ended, NOON_S - 100),)).tell()) == ["resolved"]

    @pytest.mark.parametrize("change", [{"rule": "mold"}, {"plot": "elsewhere"}], ids=["rule", "plot"])
    def test_an_alert_of_a_rule_that_is_gone_or_concerns_other_plots_ends(self, change: dict[str, str]) -> None:
        alert = Alert("a" * 32, "blight", "north", "open", NOON_S, NOON_S, None, "Late_blight", 0.9, 5, "text")
        alert = replace(alert, **change)  # type: ignore[arg-type]
        (ended,) = Field(replace(RULE, plots=("north",)), known=((alert, NOON_S),)).tell()
        assert ended.change == "resolved"
        assert "the rule is gone" in ended.alert.text


def test_a_clock_that_is_set_back_ends_nothing_and_repeats_nothing() -> None:
    field = Field()
    field.see(*[0.9] * 3)
    field.now_s -= 400 * DAY_S
    assert field.see(*[0.9] * 3) == []
    assert len(field.keeper.open) == 1


def test_a_clock_that_is_set_forward_ends_nothing_and_repeats_nothing() -> None:
    field = Field()
    field.now_s = 100.0  # a device without a clock, before the network tells it
    field.see(*[0.9] * 3)
    field.now_s = NOON_S
    assert field.tell() == []
    assert len(field.keeper.open) == 1


def test_of_several_classes_the_worst_is_named() -> None:
    pool = LeafPool(("early", "late", "healthy"), [3600])
    keeper = AlertKeeper([Rule("any", ("early", "late"), least_leaves=1)], ("early", "late", "healthy"), pool)
    pool.add("", np.array([0.2, 0.5, 0.3]), 1.0)
    keeper.look("", 1.0)
    assert keeper.open[0].label == "late"
    assert keeper.open[0].share == pytest.approx(0.7)


def test_an_alert_keeps_its_class_when_its_leaves_are_hardly_ill_any_more() -> None:
    classes = ("early", "late", "healthy")
    rule = Rule("any", ("early", "late"), least_leaves=2, window_minutes=10)
    pool = LeafPool(classes, [rule.window_s])
    keeper = AlertKeeper([rule], classes, pool)

    def see(clock_s: float, *probabilities: float) -> Alert:
        pool.add("", np.array(probabilities), clock_s)
        keeper.look("", clock_s)
        return keeper.open[0] if keeper.open else next(iter(keeper.changed.values()))[0]

    pool.add("", np.array([0.1, 0.8, 0.1]), 1.0)
    assert see(2.0, 0.1, 0.8, 0.1).label == "late"
    assert see(3.0, 0.99, 0.0, 0.01).label == "late"
    # A single leaf of a new window: too few to end the alert.
    faint = see(1000.0, 0.03, 0.01, 0.96)
    assert (faint.label, faint.leaves, faint.state) == ("late", 1, "open")

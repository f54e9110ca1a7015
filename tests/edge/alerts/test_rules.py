"""Rules hold for enough leaves of their window; without rules the default one warns of every ill class."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime

import numpy as np
import pytest

from agridistill.edge.alerts.rules import Rule, default_rules, find, ill_classes, is_healthy, why_nothing_warns
from agridistill.errors import ConfigError

CLASSES = ("Tomato___Early_blight", "Tomato___Late_blight", "Tomato___healthy")
BLIGHT = Rule("blight", ("*blight",), share=0.4, least_leaves=4, window_minutes=10)


def leaves(*ages_and_shares: tuple[float, float], now_s: float = 1000.0) -> tuple[np.ndarray, np.ndarray]:
    ages, shares = zip(*ages_and_shares, strict=True)
    return now_s - np.array(ages), np.array(shares)


def test_a_share_of_enough_leaves_holds() -> None:
    at_s, shares = leaves(*[(10.0, 0.5)] * 4)
    assert find(BLIGHT, at_s, shares, 1000.0).holds
    assert not find(BLIGHT, at_s[:3], shares[:3], 1000.0).holds
    assert not find(BLIGHT, at_s, shares * 0.79, 1000.0).holds


def test_leaves_outside_the_window_do_not_count() -> None:
    at_s, shares = leaves(*[(601.0, 1.0)] * 9, *[(599.0, 0.1)] * 4)
    found = find(BLIGHT, at_s, shares, 1000.0)
    assert (found.leaves, found.share) == (4, pytest.approx(0.1))
    assert not found.holds


def test_between_its_limits_an_alert_neither_opens_nor_ends() -> None:
    for share, holds, over in ((0.45, True, False), (0.3, False, False), (0.15, False, True)):
        found = find(BLIGHT, *leaves(*[(1.0, share)] * 5), 1000.0)
        assert (found.holds, found.over) == (holds, over)


def test_too_few_leaves_end_nothing() -> None:
    assert not find(BLIGHT, *leaves((1.0, 0.0)), 1000.0).over
    assert not find(BLIGHT, np.empty(0), np.empty(0), 1000.0).over


def test_a_rise_needs_leaves_in_both_halves() -> None:
    rising = Rule("rising", ("*blight",), share=0.5, rise=0.2, least_leaves=3, window_minutes=10)
    early, late = [(500.0, 0.1)] * 3, [(100.0, 0.35)] * 3
    found = find(rising, *leaves(*early, *late), 1000.0)
    assert found.holds
    assert found.rise == pytest.approx(0.25)
    assert not find(rising, *leaves(*early[:2], *late), 1000.0).holds
    # The earlier half is empty: nobody knows how it was, and 40 % are ill.
    unknown = find(rising, *leaves(*[(100.0, 0.4)] * 9), 1000.0)
    assert (unknown.rise, unknown.holds, unknown.over) == (None, False, False)
    assert find(rising, *leaves(*[(100.0, 0.1)] * 9), 1000.0).over
    falling = find(rising, *leaves(*[(500.0, 0.35)] * 3, *[(100.0, 0.1)] * 3), 1000.0)
    assert (falling.holds, falling.over) == (False, True)


def test_what_stands_for_several_leaves_counts_as_so_many() -> None:
    rising = Rule("rising", ("*blight",), share=0.5, rise=0.2, least_leaves=3, window_minutes=10)
    at_s, shares = leaves((500.0, 0.1), (400.0, 0.4), (100.0, 0.3), (50.0, 0.8))
    counts = np.array([4.0, 2.0, 1.0, 2.0])
    single = find(rising, np.repeat(at_s, counts.astype(int)), np.repeat(shares, counts.astype(int)), 1000.0)
    found = find(rising, at_s, shares, 1000.0, counts)
    assert (found.leaves, found.holds, found.over) == (single.leaves, single.holds, single.over) == (9, True, False)
    assert (found.share, found.rise) == pytest.approx((single.share, single.rise))


def test_patterns_name_classes_and_plots() -> None:
    assert BLIGHT.indices(CLASSES) == [0, 1]
    assert Rule("one", ("Tomato___Late_blight",)).indices(CLASSES) == [1]
    with pytest.raises(ConfigError, match=r"rule 'blight'; got '\*rust'"):
        Rule("blight", ("*rust",)).indices(CLASSES)
    north = Rule("n", ("*",), plots=("north*", "x"))
    assert [north.concerns(plot) for plot in ("north", "north 2", "x", "south", "")] == [True, True, True, False, False]
    assert BLIGHT.concerns("")


@pytest.fixture(params=["UTC", "Africa/Kampala", "America/New_York"])
def zone(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = request.param
    time.tzset()
    yield
    os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
    time.tzset()


@pytest.mark.usefixtures("zone")
def test_quiet_hours_are_local_and_may_pass_midnight() -> None:
    def at(hour: int, minute: int) -> float:
        return datetime(2026, 7, 1, hour, minute).timestamp()  # noqa: DTZ001 - local time is meant

    night, noon = Rule("n", ("*",), quiet="22:00-06:00"), Rule("d", ("*",), quiet="12:00-13:30")
    times = ((21, 59), (22, 0), (3, 0), (5, 59), (6, 0))
    assert [night.is_quiet(at(*given)) for given in times] == [False, True, True, True, False]
    assert [noon.is_quiet(at(*given)) for given in ((11, 59), (12, 0), (13, 29), (13, 30))] == [
        False,
        True,
        True,
        False,
    ]
    assert not BLIGHT.is_quiet(at(3, 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": " "}, "name"),
        ({"classes": ()}, "classes"),
        ({"plots": ()}, "plots"),
        ({"share": 0}, "share"),
        ({"share": float("nan")}, "share"),
        ({"rise": 2}, "rise"),
        ({"least_leaves": 0}, "leaves"),
        ({"window_minutes": 0}, "window"),
        ({"resolve_share": 0.9}, "resolve_share"),
        ({"repeat_hours": -1}, "repeat_hours of 0 or more.*got repeat_hours = -1"),
        ({"quiet": "25:00-06:00"}, "quiet hours such as"),
        ({"quiet": "night"}, "quiet hours such as"),
        ({"quiet": "22:00-22:00"}, "end at another time than they begin.*got quiet = '22:00-22:00'"),
    ],
)
def test_a_wrong_rule_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rule(**({"name": "blight", "classes": ("*",)} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "healthy",
        "Tomato___healthy",
        "Healthy leaf",
        "HEALTHY",
        "HealthyLeaf",
        "bean-healthy",
        "Rice___normal",
        "Normal",
    ],
)
def test_healthy_classes_are_known_by_their_names(name: str) -> None:
    assert is_healthy(name)


@pytest.mark.parametrize(
    "name", ["unhealthy", "Unhealthy leaf", "not_healthy", "non-healthy", "Late_blight", "abnormal", "healthy___rust"]
)
def test_other_classes_are_ill(name: str) -> None:
    assert not is_healthy(name)


def test_settings_name_further_healthy_classes_by_name_or_pattern() -> None:
    assert ill_classes(("sano", "ground_1", "rust"), ("sano", "ground*")) == ["rust"]


def test_a_healthy_class_that_the_model_lacks_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'healthy'; got 'sana'.*'sano'"):
        ill_classes(("sano", "rust"), ("sana",))


def test_the_default_rule_adds_up_all_ill_classes_also_those_with_characters_of_patterns() -> None:
    classes = ("healthy", "spot [early]", "rust*", "rusty healthy")
    (rule,) = default_rules(ill_classes(classes), 90)
    assert rule.indices(classes) == [1, 2]
    assert (rule.share, rule.least_leaves, rule.window_minutes, rule.level) == (0.3, 5, 90, "warning")


def test_a_model_of_healthy_classes_alone_has_no_default_rule_and_the_reason_names_what_to_do() -> None:
    assert default_rules([], 60) == ()
    assert "all classes of the model count as healthy" in str(why_nothing_warns([], []))
    assert "default_rules is false" in str(why_nothing_warns([], ["rust"]))
    assert why_nothing_warns([Rule("rust", ("rust",))], ["rust"]) is None

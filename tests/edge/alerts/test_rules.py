"""Rules hold for enough leaves of their window; without rules the default one warns of every ill class."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime

import numpy as np
import pytest

from agridistill.edge.alerts.plots import AlertKeeper
from agridistill.edge.alerts.rules import (
    LeafPool,
    Rule,
    default_rules,
    ill_classes,
    is_healthy,
    why_nothing_warns,
)
from agridistill.edge.events import Alert
from agridistill.edge.settings import watch_settings
from agridistill.errors import ConfigError

CLASSES = ("Tomato___Early_blight", "Tomato___Late_blight", "Tomato___healthy")
BLIGHT = Rule("blight", ("*blight",), share=0.4, least_leaves=4, window_minutes=10)


def opens(rule: Rule, ages_and_shares: list[tuple[float, float]]) -> bool:
    """Whether leaves of these ages, with these probabilities of early blight, open an alert."""
    return bool(after(AlertKeeper([rule], CLASSES, LeafPool(CLASSES, [rule.window_s])), ages_and_shares))


def after(keeper: AlertKeeper, ages_and_shares: list[tuple[float, float]], now_s: float = 1000.0) -> list[Alert]:
    for age_s, share in sorted(ages_and_shares, reverse=True):
        keeper._pool.add("north", np.array([share, 0.0, 1 - share]), now_s - age_s)
    keeper.look("north", now_s)
    return keeper.open


def test_a_share_of_enough_leaves_holds() -> None:
    assert opens(BLIGHT, [(10.0, 0.5)] * 4)
    assert not opens(BLIGHT, [(10.0, 0.5)] * 3)
    assert not opens(BLIGHT, [(10.0, 0.395)] * 4)


def test_leaves_outside_the_window_do_not_count() -> None:
    assert not opens(BLIGHT, [(601.0, 1.0)] * 9 + [(599.0, 0.1)] * 4)


def test_between_its_limits_an_alert_neither_opens_nor_ends_and_too_few_leaves_end_nothing() -> None:
    keeper = AlertKeeper([BLIGHT], CLASSES, LeafPool(CLASSES, [BLIGHT.window_s]))
    assert after(keeper, [(1.0, 0.3)] * 5, 1000.0) == []
    assert len(after(keeper, [(1.0, 0.45)] * 5, 2000.0)) == 1
    assert len(after(keeper, [(1.0, 0.3)] * 5, 3000.0)) == 1
    assert len(after(keeper, [(1.0, 0.0)] * 3, 4000.0)) == 1
    assert after(keeper, [(1.0, 0.15)] * 5, 5000.0) == []


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
        ({"classes": []}, "classes"),
        ({"plots": []}, "plots"),
        ({"share": 0}, "share"),
        ({"share": float("nan")}, "finite"),
        ({"least_leaves": 0}, "leaves"),
        ({"window_minutes": 0}, "window"),
        ({"resolve_share": 0.9}, "resolve_share"),
        ({"repeat_hours": -1}, "repeat_hours.*got -1"),
        ({"quiet": "25:00-06:00"}, "quiet hours such as"),
        ({"quiet": "night"}, "quiet hours such as"),
        ({"quiet": "22:00-22:00"}, "quiet hours such as.*got quiet = '22:00-22:00'; correct it in the rule 'blight'"),
    ],
)
def test_a_wrong_rule_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        watch_settings({"rules": [{"name": "blight", "classes": ["*"]} | changes]}, where="here")


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

"""The rule that warns where the settings hold none."""

from __future__ import annotations

import pytest

from agridistill.edge.alerts.rules import Rule, default_rules, ill_classes, is_healthy, why_nothing_warns
from agridistill.errors import ConfigError


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

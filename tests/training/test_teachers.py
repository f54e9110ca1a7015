from __future__ import annotations

import pytest

from agridistill.training.settings import ObjectiveSettings
from agridistill.training.terms import temperature_of, weights_of


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("ce", (1.0, 0.0, 0.0, 0.0)),
        ("kd", (0.5, 0.4, 0.0, 0.0)),
        ("dkd", (0.5, 0.4, 0.0, 0.0)),
        ("at", (0.5, 0.0, 3.0, 0.0)),
        ("fitnet", (0.5, 0.4, 0.0, 2.0)),
        ("hybrid", (0.5, 0.4, 3.0, 0.0)),
        ("hybrid-hint", (0.5, 0.4, 3.0, 2.0)),
    ],
)
def test_one_recipe_serves_all_methods(method: str, expected: tuple[float, ...]) -> None:
    found = weights_of(ObjectiveSettings(method=method, w_ce=0.5, w_kd=0.4, w_att=3.0, w_hint=2.0))
    assert found == dict(zip(("w_ce", "w_kd", "w_att", "w_hint"), expected, strict=True))


def test_a_method_has_weights_and_a_temperature_of_its_own() -> None:
    assert list(weights_of(ObjectiveSettings(method="hybrid")).values()) == [0.1, 0.9, 5.0, 0.0]
    assert list(weights_of(ObjectiveSettings(method="hybrid", w_att=0.0)).values()) == [0.1, 0.9, 0.0, 0.0]
    assert temperature_of(ObjectiveSettings(method="kd-std")) == 2.0
    assert temperature_of(ObjectiveSettings(method="kd-std", temperature=3.0)) == 3.0

from __future__ import annotations

import pytest

from agridistill.training.settings import ObjectiveSettings
from agridistill.training.teachers import weights_of


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("ce", {"w_ce": 1.0, "w_kd": 0.0, "w_att": 0.0}),
        ("kd", {"w_ce": 0.5, "w_kd": 0.4, "w_att": 0.0}),
        ("at", {"w_ce": 0.5, "w_kd": 0.0, "w_att": 3.0}),
        ("hybrid", {"w_ce": 0.5, "w_kd": 0.4, "w_att": 3.0}),
    ],
)
def test_one_recipe_serves_all_methods(method: str, expected: dict[str, float]) -> None:
    assert weights_of(ObjectiveSettings(method=method, w_ce=0.5, w_kd=0.4, w_att=3.0)) == expected


def test_a_method_has_weights_of_its_own() -> None:
    assert weights_of(ObjectiveSettings(method="hybrid")) == {"w_ce": 0.1, "w_kd": 0.9, "w_att": 5.0}
    assert weights_of(ObjectiveSettings(method="hybrid", w_att=0.0)) == {"w_ce": 0.1, "w_kd": 0.9, "w_att": 0.0}

"""The table of methods: what each compares, with which weights, and how a new one is added."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

from agridistill.errors import ConfigError
from agridistill.losses import METHODS, Method, Term, dist_loss, dkd_loss, get_method, kd_loss, standardised_kd_loss
from agridistill.losses import methods as table
from agridistill.losses.objective import DistillationObjective
from agridistill.training.run import distill
from agridistill.training.settings import DataSettings, DistillConfig, FitSettings, ObjectiveSettings


def test_the_table_is_that_of_the_design() -> None:
    rows = {name: (*method.weights({}).values(), method.temperature) for name, method in METHODS.items()}
    assert rows == {
        "ce": (1.0, 0.0, 0.0, 0.0, 4.0),
        "kd": (0.1, 0.9, 0.0, 0.0, 4.0),
        "kd-std": (0.1, 9.0, 0.0, 0.0, 2.0),
        "dkd": (1.0, 1.0, 0.0, 0.0, 4.0),
        "dist": (1.0, 2.0, 0.0, 0.0, 4.0),
        "at": (1.0, 0.0, 5.0, 0.0, 4.0),
        "fitnet": (0.1, 0.9, 0.0, 1.0, 4.0),
        "hybrid": (0.1, 0.9, 5.0, 0.0, 4.0),
        "hybrid-hint": (0.1, 0.9, 5.0, 1.0, 4.0),
    }


def test_a_row_names_the_outputs_of_the_teacher_that_it_needs() -> None:
    assert {name: method.needs for name, method in METHODS.items()} == {
        "ce": set(),
        "kd": {"logits"},
        "kd-std": {"logits"},
        "dkd": {"logits"},
        "dist": {"logits"},
        "at": {"maps"},
        "fitnet": {"logits", "features"},
        "hybrid": {"logits", "maps"},
        "hybrid-hint": {"logits", "maps", "features"},
    }


def test_the_logit_loss_of_a_method_is_the_objective_s_term() -> None:
    torch.manual_seed(0)
    student, teacher, target = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0, 1, 2, 4])
    expected = {
        "kd": kd_loss(student, teacher, 4.0),
        "kd-std": standardised_kd_loss(student, teacher, 2.0),
        "dkd": dkd_loss(student, teacher, target, 4.0),
        "dist": dist_loss(student, teacher, 4.0),
    }
    for name, value in expected.items():
        weights = get_method(name).weights({})
        terms = DistillationObjective(get_method(name))(student, {}, target, teacher_logits=teacher)
        torch.testing.assert_close(terms["kd"], value)
        torch.testing.assert_close(terms["total"], weights["w_ce"] * terms["ce"] + weights["w_kd"] * terms["kd"])


def test_the_nearest_name_of_a_mistyped_method_is_suggested() -> None:
    with pytest.raises(ConfigError, match="a distillation method; got 'hybird'; did you mean 'hybrid'"):
        get_method("hybird")


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
    found = ObjectiveSettings(method=method, w_ce=0.5, w_kd=0.4, w_att=3.0, w_hint=2.0).weights()
    assert found == dict(zip(("w_ce", "w_kd", "w_att", "w_hint"), expected, strict=True))


def test_weights_of_zero_and_a_temperature_replace_the_method_s_own() -> None:
    assert list(ObjectiveSettings(method="hybrid", w_att=0.0).weights().values()) == [0.1, 0.9, 0.0, 0.0]
    assert DistillationObjective(get_method("kd-std")).temperature == 2.0
    assert DistillationObjective(get_method("kd-std"), temperature=3.0).temperature == 3.0


def _squared_error(student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    return (student_logits - teacher_logits).square().mean()


def _map_error(student_map: Tensor, teacher_map: Tensor, distance: str) -> Tensor:
    return (student_map - teacher_map).abs().mean()


def _feature_error(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    return (student_features - teacher_features).abs().mean()


@pytest.mark.parametrize(
    ("row", "term"),
    [
        (Method("new", "squared error of the logits", 0.5, logits=Term(2.0, _squared_error)), "kd"),
        (Method("new", "absolute error of the maps", 0.5, maps=Term(2.0, _map_error)), "attention"),
        (Method("new", "absolute error of the features", 0.5, features=Term(2.0, _feature_error)), "hint"),
    ],
    ids=["logits", "maps", "features"],
)
def test_a_new_loss_is_a_function_and_a_row(
    row: Method, term: str, leaves: Path, teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "METHODS", {**METHODS, row.name: row})
    fit = FitSettings(
        model="mobilenetv3_small_050", epochs=1, batch_size=32, pretrained=False, workers=0, precision="fp32"
    )
    objective = ObjectiveSettings(method="new", hint_share=0.9)
    config = DistillConfig(data=DataSettings(image_size=64), distill=fit, objective=objective)
    distill(leaves, teacher_run, tmp_path / "run", config, cache_dir=tmp_path / "cache")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        (epoch,) = csv.DictReader(file)
    assert float(epoch[f"train/{term}"]) > 0

"""Hints: the features' distance against a slow reference, and the two stages of a training with them."""

import numpy as np
import pytest
import torch

from agridistill.errors import ConfigError, ModelError
from agridistill.losses.maps import HintRegressor, hint_loss
from agridistill.losses.methods import METHODS
from agridistill.losses.objective import DistillationObjective, StagePair


@pytest.fixture
def batch():
    """A student's and a teacher's answers to the same two photos; the student's map is twice as fine."""
    torch.manual_seed(0)
    return {
        "student_logits": torch.randn(2, 3, requires_grad=True),
        "student_features": {16: torch.randn(2, 4, 6, 6, requires_grad=True)},
        "target": torch.tensor([0, 2]),
        "teacher_logits": torch.randn(2, 3),
        "teacher_maps": {16: torch.rand(2, 3, 3)},
        "teacher_features": {16: torch.randn(2, 5, 3, 3, requires_grad=True)},
    }


def objective(**settings):
    defaults = {"w_att": 0.0, "hint_share": 0.25, "pairs": [StagePair(16, 16)]}
    return DistillationObjective(
        METHODS["hybrid-hint"], **defaults | {"student_channels": {16: 4}, "teacher_channels": {16: 5}} | settings
    )


def test_the_regressor_and_the_distance_equal_numpy_s():
    regressor = HintRegressor(4, 5)
    student, teacher = torch.randn(2, 4, 3, 3), torch.randn(2, 5, 3, 3)
    weight, bias = (value.detach().numpy() for value in regressor.parameters())
    mapped = np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], student.numpy()) + bias[:, None, None]
    np.testing.assert_allclose(regressor(student).detach(), mapped, rtol=1e-4, atol=1e-5)
    expected = 0.5 * np.mean((mapped - teacher.numpy()) ** 2)
    assert hint_loss(regressor(student), teacher).item() == pytest.approx(expected, rel=1e-5)


def test_half_precision_features_are_compared_in_float32():
    huge = torch.full((1, 1, 1, 1), 6e4, dtype=torch.float16)
    assert hint_loss(huge, -huge).item() == pytest.approx(0.5 * 1.2e5**2, rel=1e-2)


def test_the_first_stage_learns_from_hints_alone_and_the_second_without_them(batch):
    parts = objective()
    first, second = parts(**batch, progress=0.24), parts(**batch, progress=0.25)
    torch.testing.assert_close(first["total"], first["hint"])
    torch.testing.assert_close(second["total"], 0.1 * second["ce"] + 0.9 * second["kd"])
    assert set(first) == {"ce", "kd", "hint", "total"}
    assert set(second) == {"ce", "kd", "total"}


def test_attention_follows_the_features_in_the_second_stage(batch):
    parts = objective(w_att=5.0, warmup=0.0, decay="none")
    first, second = parts(**batch, progress=0.0), parts(**batch, progress=0.25)
    torch.testing.assert_close(first["total"], first["hint"])
    expected = 0.1 * second["ce"] + 0.9 * second["kd"] + 5.0 * second["attention"]
    torch.testing.assert_close(second["total"], expected)


def test_the_attention_warms_up_after_the_features(batch):
    parts = objective(w_ce=0.0, w_kd=0.0, w_att=5.0, warmup=0.5)
    for progress, share in ((0.25, 0.0), (0.4375, 0.5), (0.625, 1.0), (0.8125, 0.5), (1.0, 0.0)):
        terms = parts(**batch, progress=progress)
        torch.testing.assert_close(terms["total"], 5.0 * share * terms["attention"])


def test_the_teacher_s_features_are_asked_for_in_the_first_stage_only(batch):
    parts = objective()
    del batch["teacher_features"]
    assert parts.in_first_stage(0.24)
    with pytest.raises(ModelError, match="teacher's features at stride 16"):
        parts(**batch, progress=0.24)
    assert not parts.in_first_stage(0.25)
    parts(**batch, progress=0.25)
    assert not objective(w_hint=0.0).in_first_stage(0.0)


@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_every_parameter_has_a_gradient_in_both_stages_and_the_teacher_never(batch, progress):
    parts = objective(w_att=5.0, alignment="learned")
    parts(**batch, progress=progress)["total"].backward()
    assert all(parameter.grad is not None for parameter in parts.parameters())
    regressor_learns = any(parameter.grad.abs().sum() > 0 for parameter in parts.regressors.parameters())
    logits_learn = batch["student_logits"].grad.abs().sum() > 0
    assert [regressor_learns, logits_learn] == ([True, False] if progress == 0 else [False, True])
    assert batch["teacher_features"][16].grad is None


def test_the_finer_map_comes_to_the_coarser_grid(batch):
    parts = objective()
    mapped = parts.regressors["attention_s16_t16"](batch["student_features"][16])
    area = mapped.unflatten(-1, (3, 2)).unflatten(-3, (3, 2)).mean(dim=(-1, -3))
    expected = 0.5 * (area - batch["teacher_features"][16]).square().mean()
    torch.testing.assert_close(parts(**batch)["hint"], expected)


def test_what_does_not_fit_is_refused(batch):
    with pytest.raises(ConfigError, match="hint_share between 0 and 1"):
        objective(hint_share=1.0)
    with pytest.raises(ConfigError, match="at least one pair of stages"):
        objective(pairs=[])
    with pytest.raises(ConfigError, match="student_channels at stride 16"):
        objective(student_channels={32: 4})
    with pytest.raises(ConfigError, match="teacher_channels at stride 16"):
        objective(teacher_channels={})
    with pytest.raises(ModelError, match="teacher's features at stride 16"):
        objective()(**batch | {"teacher_features": {}})
    with pytest.raises(ModelError, match=r"teacher's features in the student's shape \(2, 5, 3, 3\)"):
        objective()(**batch | {"teacher_features": {16: torch.randn(1, 5, 3, 3)}})

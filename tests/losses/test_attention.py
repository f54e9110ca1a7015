"""Distances of maps, common grids and channel alignment against slow references, by symmetry and at their limits."""

import math

import numpy as np
import pytest
import torch

from agridistill.errors import ConfigError, ModelError
from agridistill.losses.maps import (
    ChannelProjection,
    attention_distance,
    channel_mean_square,
    match_resolution,
)
from agridistill.models.taps import feature_attention

DISTANCES = ["l2", "kl", "cosine"]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0.05, 1.0, size=shape)


def reference_distance(student, teacher, distance):
    """The textbook formulas on one pair of maps, position by position."""
    s, t = [float(value) for value in student.ravel()], [float(value) for value in teacher.ravel()]
    s_length, t_length = math.sqrt(sum(v * v for v in s)), math.sqrt(sum(v * v for v in t))
    if distance == "l2":
        return sum((a / s_length - b / t_length) ** 2 for a, b in zip(s, t, strict=True))
    if distance == "cosine":
        return 1 - sum(a * b for a, b in zip(s, t, strict=True)) / (s_length * t_length)
    return sum(b / sum(t) * math.log((b / sum(t)) / (a / sum(s))) for a, b in zip(s, t, strict=True))


@pytest.mark.parametrize("distance", DISTANCES)
class TestEveryDistance:
    @pytest.mark.parametrize("shape", [(3, 4, 5), (3, 2, 4, 5)])
    def test_equals_a_slow_reference(self, distance, shape):
        student, teacher = draw(*shape), draw(*shape, seed=1)
        pairs = zip(student.reshape(-1, 4, 5), teacher.reshape(-1, 4, 5), strict=True)
        expected = np.mean([reference_distance(s, t, distance) for s, t in pairs])
        loss = attention_distance(torch.from_numpy(student), torch.from_numpy(teacher), distance)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-4)

    def test_is_zero_for_equal_maps_and_has_no_gradient_there(self, distance):
        teacher = torch.from_numpy(draw(2, 4, 5))
        student = teacher.clone().requires_grad_()
        loss = attention_distance(student, teacher, distance)
        loss.backward()
        assert loss.item() == 0.0
        assert student.grad.abs().max() < 1e-6

    @pytest.mark.parametrize("scale", [1e-15, 1e-4, 1e4, 1e30])
    def test_does_not_depend_on_the_scale_of_a_map(self, distance, scale):
        student, teacher = torch.from_numpy(draw(2, 4, 5)), torch.from_numpy(draw(2, 4, 5, seed=1))
        expected = attention_distance(student, teacher, distance)
        torch.testing.assert_close(attention_distance(student * scale, teacher, distance), expected)
        torch.testing.assert_close(attention_distance(student, teacher * scale, distance), expected)

    def test_does_not_depend_on_the_order_of_positions(self, distance):
        student, teacher = torch.from_numpy(draw(2, 4, 5)), torch.from_numpy(draw(2, 4, 5, seed=1))
        torch.testing.assert_close(
            attention_distance(student.flip(1, 2), teacher.flip(1, 2), distance),
            attention_distance(student, teacher, distance),
        )

    def test_does_not_grow_with_the_resolution_of_smooth_maps(self, distance):
        def bumps(side, centre):
            axis = (torch.arange(side) + 0.5) / side
            row = torch.exp(-((axis - centre) ** 2) / 0.08)
            return (row[:, None] * row[None, :]).unsqueeze(0)

        values = [attention_distance(bumps(side, 0.4), bumps(side, 0.6), distance).item() for side in (7, 14, 28, 56)]
        assert values == pytest.approx([values[-1]] * 4, rel=0.05)

    @pytest.mark.parametrize("kind", ["random", "with empty places", "negative"])
    def test_has_the_gradient_of_finite_differences(self, distance, kind):
        student, teacher = torch.from_numpy(draw(2, 3, 3)), torch.from_numpy(draw(2, 3, 3, seed=1))
        if kind == "with empty places":
            teacher[:, 0] = 0.0
        if kind == "negative":
            student[:, 0] *= -1
        if distance == "kl" and kind == "negative":
            teacher[:, 0] = 0.0  # where the student is negative KL is flat, but steep beside it
        student.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda maps: attention_distance(maps, teacher, distance).double(), student, eps=5e-3, atol=5e-3, rtol=2e-2
        )

    @pytest.mark.parametrize("empty", ["student", "teacher", "both"])
    def test_is_finite_for_empty_maps(self, distance, empty):
        student = torch.zeros(2, 3, 3) if empty != "teacher" else torch.rand(2, 3, 3)
        teacher = torch.zeros(2, 3, 3) if empty != "student" else torch.rand(2, 3, 3)
        student.requires_grad_()
        loss = attention_distance(student, teacher, distance)
        loss.backward()
        assert loss.isfinite()
        assert student.grad.isfinite().all()
        assert student.grad.abs().max() < 1e3
        if empty == "both":
            assert loss.item() == 0.0

    @pytest.mark.parametrize(
        ("dtype", "low", "high"),
        [(torch.float16, 6e-8, 6e4), (torch.bfloat16, 1e-38, 3e38), (torch.bfloat16, 0.0, 1.0)],
    )
    def test_is_finite_at_the_ends_of_half_precision(self, distance, dtype, low, high):
        student = torch.tensor([[[low, high], [high, low]]], dtype=dtype, requires_grad=True)
        teacher = torch.tensor([[[high, low], [low, low]]], dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = attention_distance(student, teacher, distance)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert loss > 0
        assert student.grad.isfinite().all()

    def test_refuses_maps_that_would_broadcast(self, distance):
        with pytest.raises(ModelError, match=r"student \(1, 3, 3\) and teacher \(2, 3, 3\).*match_resolution"):
            attention_distance(torch.ones(1, 3, 3), torch.ones(2, 3, 3), distance)


def test_l2_is_twice_the_cosine_distance():
    student, teacher = torch.from_numpy(draw(2, 4, 5)), torch.from_numpy(draw(2, 4, 5, seed=1))
    torch.testing.assert_close(
        attention_distance(student, teacher, "l2"), 2 * attention_distance(student, teacher, "cosine")
    )


def test_maps_that_look_at_different_places_are_as_far_apart_as_can_be():
    left, right = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    assert attention_distance(left, right, "l2").item() == pytest.approx(2.0)
    assert attention_distance(left, right, "cosine").item() == pytest.approx(1.0)
    # The teacher's place keeps half of a millionth of the student's map.
    assert attention_distance(left, right, "kl").item() == pytest.approx(math.log(2e6), rel=1e-3)


def test_kl_looks_from_the_teacher_to_the_student():
    wide, narrow = torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[1.0, 0.01]]])
    assert attention_distance(wide, narrow, "kl") < attention_distance(narrow, wide, "kl")


def test_an_empty_map_is_uniform_for_kl_and_far_from_all_for_l2():
    empty, some = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert attention_distance(empty, torch.ones(1, 2, 2), "kl").item() == pytest.approx(0.0, abs=1e-6)
    assert attention_distance(empty, some, "l2").item() == pytest.approx(1.0)
    assert attention_distance(empty, some, "cosine").item() == pytest.approx(0.5)


def test_a_mistyped_distance_is_refused():
    with pytest.raises(ConfigError, match="a known distance; got 'L2'; did you mean 'l2'"):
        attention_distance(torch.ones(1, 2, 2), torch.ones(1, 2, 2), "L2")


def reference_axis(values, size):
    """One axis to a smaller size: the mean of the covered cells."""
    length = len(values)
    edges = [(math.floor(i * length / size), math.ceil((i + 1) * length / size)) for i in range(size)]
    return [np.mean(values[start:stop], axis=0) for start, stop in edges]


def reference_resize(attention, size):
    rows = np.array(reference_axis(attention, size[0]))
    return np.array(reference_axis(rows.T, size[1])).T


class TestMatchResolution:
    @pytest.mark.parametrize(
        ("one", "other", "common"),
        [((8, 3), (4, 6), (4, 3)), ((7, 7), (3, 3), (3, 3)), ((14, 7), (7, 14), (7, 7)), ((5, 5), (1, 1), (1, 1))],
    )
    def test_equals_a_slow_reference(self, one, other, common):
        rng = np.random.default_rng(0)
        student, teacher = rng.uniform(size=(2, *one)), rng.uniform(size=(2, *other))
        matched = match_resolution(torch.from_numpy(student), torch.from_numpy(teacher))
        for result, source in zip(matched, (student, teacher), strict=True):
            assert result.dtype == torch.float32
            assert result.shape == (2, *common)
            np.testing.assert_allclose(result, [reference_resize(one, common) for one in source], rtol=1e-5)

    def test_heads_are_treated_alike(self):
        student, teacher = torch.rand(2, 3, 8, 8), torch.rand(2, 4, 4)
        matched, _ = match_resolution(student, teacher)
        for head in range(3):
            assert torch.equal(matched[:, head], match_resolution(student[:, head], teacher)[0])

    def test_maps_of_one_size_come_back_as_they_are(self):
        student, teacher = torch.rand(2, 7, 7), torch.rand(2, 7, 7)
        matched = match_resolution(student, teacher)
        assert torch.equal(matched[0], student)
        assert torch.equal(matched[1], teacher)

    def test_a_shrunk_map_keeps_its_mean(self):
        student = torch.rand(2, 12, 8)
        matched, _ = match_resolution(student, torch.rand(2, 4, 4))
        torch.testing.assert_close(matched.mean(dim=(1, 2)), student.mean(dim=(1, 2)))

    def test_stays_in_float32_under_autocast(self):
        student = torch.rand(1, 4, 4).to(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            matched, _ = match_resolution(student, torch.rand(1, 2, 2))
        assert matched.dtype == torch.float32
        np.testing.assert_allclose(matched[0], reference_resize(student[0].float().numpy(), (2, 2)), rtol=1e-5)

    def test_refuses_features_with_a_batch_alone(self):
        with pytest.raises(ModelError, match=r"attention maps \(B, H, W\) or \(B, M, H, W\); got student \(4, 4\)"):
            match_resolution(torch.rand(4, 4), torch.rand(1, 4, 4))


class TestChannelProjection:
    def test_starts_as_the_channel_mean_of_the_squares(self):
        features = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(0))
        for maps in (1, 3):
            projected = ChannelProjection(6, maps)(features)
            assert projected.shape == (2, maps, 4, 5)
            for head in range(maps):
                torch.testing.assert_close(projected[:, head], feature_attention(features))

    def test_weighs_the_squares_of_each_channel(self):
        projection = ChannelProjection(2, 1)
        with torch.no_grad():
            projection.scaled_weight.copy_(torch.tensor([[4.0, -2.0]]))
        features = torch.tensor([[[[3.0]], [[5.0]]]])
        assert projection(features).item() == pytest.approx(4 / 2 * 9 - 2 / 2 * 25)

    def test_is_learned(self):
        projection = ChannelProjection(6, 2)
        projection(torch.randn(2, 6, 4, 5))[:, 0].sum().backward()
        assert (projection.scaled_weight.grad[0] > 0).all()
        assert (projection.scaled_weight.grad[1] == 0).all()

    def test_one_step_of_adam_does_not_overturn_it(self):
        projection = ChannelProjection(960, 1)
        features = torch.randn(2, 960, 4, 4, generator=torch.Generator().manual_seed(0))
        before = projection(features).detach()
        optimizer = torch.optim.AdamW(projection.parameters(), lr=2e-3)
        projection(features).sum().backward()
        optimizer.step()
        torch.testing.assert_close(projection(features), before, rtol=0.01, atol=0)

    def test_squares_of_half_precision_features_do_not_overflow(self):
        features = torch.full((1, 4, 2, 2), 300.0, dtype=torch.float16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            projected = ChannelProjection(4)(features)
        assert projected.dtype == torch.float32
        torch.testing.assert_close(projected, torch.full((1, 1, 2, 2), 90000.0))


def test_the_fixed_way_is_the_attention_of_the_feature_map():
    features = torch.randn(2, 6, 4, 5).to(torch.bfloat16)
    assert torch.equal(channel_mean_square(features), feature_attention(features))

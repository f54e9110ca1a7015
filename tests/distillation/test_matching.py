"""Resolution and channels of two models' attention are brought together without bending it."""

import math

import numpy as np
import pytest
import torch

from agridistill.distillation.matching import ChannelProjection, channel_mean_square, match_resolution
from agridistill.errors import ModelError
from agridistill.models import feature_attention


def reference_axis(values, size):
    """One axis to a new size: the mean of the covered cells down, linear between cell centres up."""
    length = len(values)
    if size <= length:
        edges = [(math.floor(i * length / size), math.ceil((i + 1) * length / size)) for i in range(size)]
        return [np.mean(values[start:stop], axis=0) for start, stop in edges]
    result = []
    for i in range(size):
        place = min(max((i + 0.5) * length / size - 0.5, 0.0), length - 1.0)
        low = math.floor(place)
        high = min(low + 1, length - 1)
        result.append(values[low] * (high - place if high > low else 1.0) + values[high] * (place - low))
    return result


def reference_resize(attention, size):
    rows = np.array(reference_axis(attention, size[0]))
    return np.array(reference_axis(rows.T, size[1])).T


class TestMatchResolution:
    @pytest.mark.parametrize(
        ("grid", "size"), [("smaller", (4, 3)), ("student", (8, 3)), ("teacher", (4, 6)), (5, (5, 5)), (1, (1, 1))]
    )
    def test_equals_a_slow_reference_on_every_grid(self, grid, size):
        rng = np.random.default_rng(0)
        student, teacher = rng.uniform(size=(2, 8, 3)), rng.uniform(size=(2, 4, 6))
        matched = match_resolution(torch.from_numpy(student), torch.from_numpy(teacher), grid)
        for result, source in zip(matched, (student, teacher), strict=True):
            assert result.dtype == torch.float32
            assert result.shape == (2, *size)
            np.testing.assert_allclose(result, [reference_resize(one, size) for one in source], rtol=1e-5)

    @pytest.mark.parametrize(("source", "size"), [(7, 3), (3, 7), (14, 7), (7, 14), (7, 7)])
    def test_uneven_ratios_equal_the_reference(self, source, size):
        student = np.random.default_rng(0).uniform(size=(1, source, source))
        result, _ = match_resolution(torch.from_numpy(student), torch.ones(1, 2, 2), size)
        np.testing.assert_allclose(result[0], reference_resize(student[0], (size, size)), rtol=1e-5)

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

    @pytest.mark.parametrize("size", [2, 8])
    def test_stays_in_float32_under_autocast(self, size):
        student = torch.rand(1, 4, 4).to(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            matched, _ = match_resolution(student, torch.rand(1, 2, 2), size)
        assert matched.dtype == torch.float32
        np.testing.assert_allclose(matched[0], reference_resize(student[0].float().numpy(), (size, size)), rtol=1e-5)

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

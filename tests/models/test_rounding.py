"""Rounding to 8 bits, against the definition in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agridistill.models.rounding import (
    HIGH,
    LOW,
    ActivationRounding,
    RoundedConv2d,
    best_range,
    dequantize_per_channel,
    dequantize_per_tensor,
    quantize_per_channel,
    quantize_per_tensor,
    round_weights,
    weight_scales,
)


def _rounded(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Jacob et al. 2018, equation 1, written out."""
    scale = (high - low) / 255
    zero = round(-128 - low / scale)
    levels = np.clip(np.rint(values / scale) + zero, -128, 127)
    return (levels - zero) * scale


def test_activations_are_rounded_as_the_paper_defines_it() -> None:
    values = torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    rounding = ActivationRounding()
    rounding.observe()
    assert rounding(values) is values
    rounding.calibrate()
    low = float((-128 - rounding.zero_point) * rounding.scale)
    high = float((127 - rounding.zero_point) * rounding.scale)
    expected = _rounded(values.numpy().astype(np.float64), low, high)
    np.testing.assert_allclose(rounding(values).numpy(), expected, atol=1e-5)


def test_zero_is_a_level() -> None:
    rounding = ActivationRounding()
    rounding.observe()
    rounding(torch.linspace(0.7, 5.3, 1000)[None])
    rounding.calibrate()
    assert rounding(torch.zeros(1)).item() == 0.0


def test_the_best_range_is_about_as_good_as_any() -> None:
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(20_000, generator=generator)
    samples[0] = 20.0  # an outlier that the whole range would be wasted on
    low, high = best_range(samples[None], float(samples.min()), float(samples.max()))

    def error(low: float, high: float) -> float:
        return float(np.mean((_rounded(samples.numpy(), low, high) - samples.numpy()) ** 2))

    found = error(low, high)
    every = [error(-a, b) for a in np.linspace(1, 6, 30) for b in np.linspace(1, 20, 40)]
    assert found <= 1.1 * min(every)


def test_one_strange_photo_does_not_choose_the_range_for_all() -> None:
    samples = torch.randn(64, 1000, generator=torch.Generator().manual_seed(2))
    samples[0] *= 100
    low, high = best_range(samples, float(samples.min()), float(samples.max()))
    assert high - low < 0.1 * float(samples.max() - samples.min())


def test_every_column_of_a_photo_is_seen() -> None:
    values = torch.rand(4, 64, 64, 64, generator=torch.Generator().manual_seed(3))
    # What is seen of each 16th column, or of every column but these, would ask for another range.
    values[..., ::16] *= 0.01
    rounding = ActivationRounding()
    rounding.observe()
    rounding(values)
    rounding.calibrate()
    assert float(rounding.scale) == pytest.approx(1 / 255, rel=0.05)


def test_a_channel_without_weight_keeps_a_scale_that_its_bias_fits_into() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.0, 0.0], [1e-9, 0.0]])
    scales = weight_scales(weight)
    assert float(scales.min()) >= 1e-5 * float(scales.max())
    bias = 3.0
    input_scale = 0.02
    assert abs(bias / (input_scale * float(scales.min()))) < 2**31


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-30, 0.0], [3.0, 4.0], [-2.0, -1.0]])
def test_a_range_holds_zero_even_where_the_values_do_not(values: list[float]) -> None:
    samples = torch.tensor(values)
    low, high = best_range(samples[None], min(0.0, min(values)), max(0.0, max(values)))
    assert low <= 0 <= high
    assert high > low


def test_calibrating_without_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no tensor was recorded"):
        ActivationRounding().calibrate()


def test_each_channel_of_a_weight_has_its_own_scale() -> None:
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(2)) * torch.logspace(-1, 2, 6).view(
        -1, 1, 1, 1
    )
    levels = round_weights(weight) / weight_scales(weight).view(-1, 1, 1, 1)
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert levels.abs().amax(dim=(1, 2, 3)).round().tolist() == [63.0] * 6
    error = (round_weights(weight) - weight).abs().amax(dim=(1, 2, 3))
    assert torch.all(error <= 0.5001 * weight_scales(weight))


def test_gradients_pass_the_rounding() -> None:
    torch.manual_seed(0)
    conv = RoundedConv2d(3, 4, 3)
    rounding = ActivationRounding()
    rounding.observe()
    rounding(torch.rand(2, 3, 8, 8))
    rounding.calibrate()
    rounding(conv(torch.rand(2, 3, 8, 8))).sum().backward()
    assert conv.weight.grad is not None
    assert float(conv.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("zero_point", [-128, -7, 0])
def test_the_operators_of_files_round_as_training_does(zero_point: int) -> None:
    values = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(4))
    how = (0.02, zero_point, LOW, HIGH, torch.int8)
    levels = torch.ops.agridistill.quantize_per_tensor(values, *how)
    assert levels.dtype == torch.int8
    expected = torch.fake_quantize_per_tensor_affine(values, 0.02, zero_point, LOW, HIGH)
    torch.testing.assert_close(torch.ops.agridistill.dequantize_per_tensor(levels, *how), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_operators_of_files_round_each_channel_as_training_does(axis: int) -> None:
    weight = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(5))
    scales, zero_points = torch.tensor([0.01, 0.02, 0.03, 0.04]), torch.zeros(4, dtype=torch.int64)
    how = (scales, zero_points, axis, -63, 63, torch.int8)
    levels = torch.ops.agridistill.quantize_per_channel(weight, *how)
    expected = torch.fake_quantize_per_channel_affine(weight, scales, zero_points.int(), axis, -63, 63)
    torch.testing.assert_close(torch.ops.agridistill.dequantize_per_channel(levels, *how), expected)


def test_the_operators_of_files_are_known_to_torch_export() -> None:
    values, one, each = torch.randn(2, 3), (0.1, 0, LOW, HIGH, torch.int8), torch.full((2,), 0.1)
    channels = (each, torch.zeros(2, dtype=torch.int64), 0, -63, 63, torch.int8)
    levels = values.to(torch.int8)
    for operator, arguments in {
        quantize_per_tensor: (values, *one),
        dequantize_per_tensor: (levels, *one),
        quantize_per_channel: (values, *channels),
        dequantize_per_channel: (levels, *channels),
    }.items():
        torch.library.opcheck(operator, arguments)

"""Losses on attention maps and feature maps of student and teacher, and modules that bring both to the same shape."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from agridistill.errors import ConfigError, ModelError, nearest

Distance = Literal["l2", "kl", "cosine"]

# A map whose largest value is below this counts as zero and is not rescaled.
_DEAD = 1e-20
# Share of the uniform distribution in each map, so that KL stays finite where the student's map is 0.
_KL_FLOOR = 1e-6


def attention_distance(student_map: Tensor, teacher_map: Tensor, distance: Distance = "l2") -> Tensor:
    """Computes the distance between attention maps of equal shape, in float32, independent of the maps' scale.

    - "l2": squared L2 distance of the L2-normalised maps, summed over positions; in [0, 2] for maps >= 0.
    - "cosine": 1 - cosine similarity, computed as half of "l2" to avoid cancellation.
    - "kl": KL(teacher || student) of the maps normalised to sum 1, each mixed with 1e-6 of the uniform distribution.
      Negative values, which a learned projection may give, count as 0.

    No distance grows with the number of positions. A map of zeros has the distance 1 ("l2") or 0.5 ("cosine") to any
    other map, and counts as uniform in "kl"; value and gradient stay finite.

    Args:
        student_map: `(B, H, W)`, or `(B, M, H, W)` for M maps of each photo.
        teacher_map: a tensor of the same shape.
        distance: "l2", "kl" or "cosine".

    Returns:
        A float32 scalar >= 0: the mean over the batch and the M maps; 0 if the maps differ only in scale.

    Raises:
        ModelError: the shapes differ, or are neither `(B, H, W)` nor `(B, M, H, W)`.
        ConfigError: `distance` is unknown.

    Source: Zagoruyko and Komodakis 2017, arXiv 1612.03928, equation 2, squared and without its factor.

    Example:
        >>> left, right = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 3.0]]])
        >>> attention_distance(left, right), attention_distance(left, 7 * left)
        (tensor(2.), tensor(0.))
    """
    if student_map.shape != teacher_map.shape or student_map.dim() not in (3, 4):
        expected = "two attention maps of equal shape, (B, H, W) or (B, M, H, W)"
        got = f"student {tuple(student_map.shape)} and teacher {tuple(teacher_map.shape)}"
        raise ModelError(expected, got, "bring them to a common grid with match_resolution first")
    if distance not in get_args(Distance):
        raise ConfigError("a known distance", f"'{distance}'", nearest(distance, get_args(Distance)))
    student, teacher = unit_peak(student_map).flatten(-2), unit_peak(teacher_map).flatten(-2)
    if distance == "kl":
        student_log, teacher_log = _log_probabilities(student), _log_probabilities(teacher)
        divergence: Tensor = (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1).mean()
        return divergence
    squared: Tensor = (_unit_length(student) - _unit_length(teacher)).square().sum(dim=-1).mean()
    return squared if distance == "l2" else squared.div(2)


def unit_peak(attention: Tensor) -> Tensor:
    """Scales each map of `(..., H, W)` to a largest magnitude of 1 in float32, so that its squares cannot overflow.

    The gradient treats the scale as a constant. A distance that ignores scale still gets its exact gradient. A map
    whose values are all below 1e-20 is not changed.
    """
    values = attention.float()
    peak = values.detach().abs().amax(dim=(-2, -1), keepdim=True)
    return values / torch.where(peak > _DEAD, peak, torch.ones_like(peak))


def _unit_length(flat: Tensor) -> Tensor:
    # With a peak of 1 the length is at least 1: the bound affects only maps of zeros.
    length: Tensor = torch.linalg.vector_norm(flat, dim=-1, keepdim=True)
    return flat / length.clamp_min(0.5)


def _log_probabilities(flat: Tensor) -> Tensor:
    mass = flat.clamp_min(0)
    total = mass.sum(dim=-1, keepdim=True)
    uniform = torch.full_like(mass, 1 / mass.shape[-1])
    probabilities = torch.where(total > _KL_FLOOR, mass / total.clamp_min(_KL_FLOOR), uniform)
    return torch.lerp(probabilities, uniform, _KL_FLOOR).log()


def match_resolution(student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Tensor]:
    """Shrinks maps of student and teacher to the smaller of their heights and of their widths by area interpolation.

    Both are `(B, H, W)` or `(B, M, H, W)`, where M may also be channels; the results are float32.

    Raises:
        ModelError: a map has another number of dimensions.

    Example:
        >>> student, teacher = match_resolution(torch.ones(2, 7, 14), torch.ones(2, 14, 7))
        >>> student.shape, teacher.shape
        (torch.Size([2, 7, 7]), torch.Size([2, 7, 7]))
    """
    for name, attention in (("student", student_map), ("teacher", teacher_map)):
        if attention.dim() not in (3, 4):
            shape = tuple(attention.shape)
            raise ModelError(
                "attention maps (B, H, W) or (B, M, H, W)", f"{name} {shape}", "pass maps of one of these shapes"
            )
    height, width = (min(student_map.shape[axis], teacher_map.shape[axis]) for axis in (-2, -1))
    student, teacher = (F.adaptive_avg_pool2d(each.float(), (height, width)) for each in (student_map, teacher_map))
    return student, teacher


def channel_mean_square(features: Tensor) -> Tensor:
    """Computes attention maps as the channel mean of squared features: `(B, C, H, W)` to `(B, H, W)` in float32.

    This is the "fixed" alignment of a `DistillationObjective`.
    """
    return features.float().square().mean(dim=1)


class ChannelProjection(nn.Module):
    """Computes M attention maps from the student's squared features by a learned 1x1 convolution without bias.

    This is the "learned" alignment of a `DistillationObjective`. Each weight starts at 1/C, so that the maps start as
    the channel mean. The module is used only in training, and is not exported.

    Args:
        channels: number C of channels of the student's features.
        maps: number M of the teacher's maps for each photo: 1, or the number of its heads.

    Shape: `(B, C, H, W)`, any floating type, to `(B, M, H, W)` in float32.
    """

    def __init__(self, channels: int, maps: int = 1) -> None:
        super().__init__()
        # Stored as C times the weight: Adam moves every parameter by about the learning rate, which is more than 1/C.
        self.scaled_weight = nn.Parameter(torch.ones(maps, channels))

    def forward(self, features: Tensor) -> Tensor:
        """Projects features `(B, C, H, W)` to maps `(B, M, H, W)` float32."""
        weight = self.scaled_weight.float() / self.scaled_weight.shape[1]
        with torch.autocast(device_type=features.device.type, enabled=False):
            return F.conv2d(features.float().square(), weight[:, :, None, None])


def hint_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Computes half the mean squared difference of two feature maps `(B, C, H, W)`, a float32 scalar.

    The student's features come from the `HintRegressor`.

    Raises:
        ModelError: the shapes differ.

    Source: Romero et al. 2015, arXiv 1412.6550, equation 3, divided by the number of values C H W.
    """
    if student_features.shape != teacher_features.shape:
        raise ModelError(
            f"teacher's features in the student's shape {tuple(student_features.shape)}",
            f"{tuple(teacher_features.shape)}",
            "give both models the same photos and use a HintRegressor and match_resolution before",
        )
    return 0.5 * (student_features.float() - teacher_features.float()).square().mean()


class HintRegressor(nn.Module):
    """A 1x1 convolution that maps the student's features to the teacher's number of channels, for `hint_loss`.

    The module is used only in training, and is not exported.

    Shape: `(B, C_student, H, W)`, any floating type, to `(B, C_teacher, H, W)` in float32.

    Source: Romero et al. 2015, arXiv 1412.6550, section 2.2, the regressor r of equation 3.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features `(B, C_student, H, W)` to `(B, C_teacher, H, W)` float32."""
        with torch.autocast(device_type=features.device.type, enabled=False):
            mapped: Tensor = self.convolution(features.float())
        return mapped

"""How far the student's spatial attention is from the teacher's, and how both get one grid and one number of maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from agridistill.errors import ConfigError, ModelError, nearest

Distance = Literal["l2", "kl", "cosine"]
NamedGrid = Literal["smaller", "student", "teacher"]
Grid = NamedGrid | int

# A map whose largest value lies below this is dead: its scale is not changed.
_DEAD = 1e-20
# Share of the uniform distribution in each map, so that KL stays finite where the student's map is 0.
_KL_FLOOR = 1e-6


def attention_distance(student_map: Tensor, teacher_map: Tensor, distance: Distance = "l2") -> Tensor:
    """Distance of attention maps on one grid, in float32, independent of their scale.

    - "l2": squared L2 distance of the L2-normalised maps, summed over positions; in [0, 2] for maps >= 0.
    - "cosine": 1 - cosine similarity, computed as half of "l2", without cancellation.
    - "kl": KL(teacher || student) of the maps normalised to sum 1, each mixed with 1e-6 of the uniform distribution.
      Negative values, which a learned projection may give, count as 0.

    None of them grows with the number of positions. An all-zero map stays zero in "l2" and "cosine" (a distance of 1
    and 0.5 to any other map) and is uniform in "kl"; value and gradient stay finite.

    Args:
        student_map: `(B, H, W)`, or `(B, M, H, W)` for M maps a photo.
        teacher_map: of the same shape.
        distance: which of the three.

    Returns:
        A float32 scalar >= 0: the mean over the batch and the M maps; 0 where the maps agree up to scale.

    Raises:
        ModelError: the shapes differ, or are not those above.
        ConfigError: unknown distance.

    Source: Zagoruyko and Komodakis 2017, arXiv 1612.03928, equation 2, squared and without its factor.

    Example:
        >>> left, right = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 3.0]]])
        >>> attention_distance(left, right), attention_distance(left, 7 * left)
        (tensor(2.), tensor(0.))
    """
    if student_map.shape != teacher_map.shape or student_map.dim() not in (3, 4):
        raise ModelError(
            "two attention maps of one shape, (B, H, W) or (B, M, H, W)",
            f"student {tuple(student_map.shape)} and teacher {tuple(teacher_map.shape)}",
            "bring them to a common grid with match_resolution first",
        )
    if distance not in get_args(Distance):
        raise ConfigError("a known distance", f"'{distance}'", nearest(distance, get_args(Distance)))
    student, teacher = unit_peak(student_map).flatten(-2), unit_peak(teacher_map).flatten(-2)
    if distance == "kl":
        student_log, teacher_log = _log_probabilities(student), _log_probabilities(teacher)
        divergence: Tensor = (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1).mean()
        return divergence
    squared: Tensor = (_unit_length(student) - _unit_length(teacher)).square().sum(dim=-1).mean()
    return squared if distance == "l2" else squared.div(2)


class AttentionLoss(nn.Module):
    """`attention_distance` of maps of any two resolutions, as a module; arguments as in the functions."""

    def __init__(self, distance: Distance = "l2", grid: Grid = "smaller") -> None:
        super().__init__()
        self.distance, self.grid = distance, grid

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """`(B, H, W)` and `(B, h, w)`, or `(B, M, H, W)` and `(B, M, h, w)`, to a scalar."""
        return attention_distance(*match_resolution(student_map, teacher_map, self.grid), distance=self.distance)


def unit_peak(attention: Tensor) -> Tensor:
    """Maps `(..., H, W)` in float32, scaled to a largest magnitude of 1, so that no square or sum over- or underflows.

    The distances do not depend on scale, so the factor is a constant for the gradient, and the gradient is exact. A map
    without any value above 1e-20 is not changed.
    """
    values = attention.float()
    peak = values.detach().abs().amax(dim=(-2, -1), keepdim=True)
    return values / torch.where(peak > _DEAD, peak, torch.ones_like(peak))


def _unit_length(flat: Tensor) -> Tensor:
    # With a peak of 1 the length is at least 1: the bound applies to dead maps alone.
    length: Tensor = torch.linalg.vector_norm(flat, dim=-1, keepdim=True)
    return flat / length.clamp_min(0.5)


def _log_probabilities(flat: Tensor) -> Tensor:
    mass = flat.clamp_min(0)
    total = mass.sum(dim=-1, keepdim=True)
    uniform = torch.full_like(mass, 1 / mass.shape[-1])
    probabilities = torch.where(total > _KL_FLOOR, mass / total.clamp_min(_KL_FLOOR), uniform)
    return torch.lerp(probabilities, uniform, _KL_FLOOR).log()


def match_resolution(student_map: Tensor, teacher_map: Tensor, grid: Grid = "smaller") -> tuple[Tensor, Tensor]:
    """Both maps on a common grid that is chosen from their sizes at run time, each axis by itself.

    An axis shrinks by area interpolation and grows by bilinear interpolation.

    Args:
        student_map: `(B, H, W)` or `(B, M, H, W)`.
        teacher_map: `(B, h, w)` or `(B, m, h, w)`.
        grid: "smaller" takes the smaller height and the smaller width; "student" or "teacher" that map's grid; a
            number N the grid N x N.

    Returns:
        Both maps in float32 with equal height and width.

    Raises:
        ModelError: a map is neither `(B, H, W)` nor `(B, M, H, W)`.

    Example:
        >>> student, teacher = match_resolution(torch.ones(2, 7, 14), torch.ones(2, 14, 7))
        >>> student.shape, teacher.shape
        (torch.Size([2, 7, 7]), torch.Size([2, 7, 7]))
    """
    for name, attention in (("student", student_map), ("teacher", teacher_map)):
        if attention.dim() not in (3, 4):
            shape = tuple(attention.shape)
            raise ModelError("attention maps (B, H, W) or (B, M, H, W)", f"{name} {shape}", "pass maps, not features")
    student, teacher = student_map.shape[-2:], teacher_map.shape[-2:]
    sizes: dict[Grid, Sequence[int]] = {
        "smaller": (min(student[0], teacher[0]), min(student[1], teacher[1])),
        "student": student,
        "teacher": teacher,
    }
    size = (grid, grid) if isinstance(grid, int) else sizes[grid]
    return _resize(student_map, size), _resize(teacher_map, size)


def _resize(attention: Tensor, size: Sequence[int]) -> Tensor:
    resized = attention.float()
    if resized.shape[-2:] == size:
        return resized
    if attention.dim() == 3:
        resized = resized.unsqueeze(1)
    # Shrinking and growing act on different axes, so a map that is wider but lower than the grid gets each once.
    resized = F.adaptive_avg_pool2d(resized, (min(resized.shape[-2], size[0]), min(resized.shape[-1], size[1])))
    if resized.shape[-2:] != size:
        resized = F.interpolate(resized, size=size, mode="bilinear", align_corners=False)
    return resized.squeeze(1) if attention.dim() == 3 else resized


def channel_mean_square(features: Tensor) -> Tensor:
    """The fixed alignment: the channel mean of squared features, `(B, C, H, W)` to `(B, H, W)` in float32."""
    return features.float().square().mean(dim=1)


class ChannelProjection(nn.Module):
    """The learned alignment: a 1x1 projection, without bias, of the student's squared features to M maps.

    It starts as the channel mean (each weight 1/C), so training begins at the fixed alignment. It is used in training
    only and dropped at export.

    Args:
        channels: C of the student's features.
        maps: M, the teacher's maps for each photo: 1, or the number of its heads.

    Shape: `(B, C, H, W)`, any floating type, to `(B, M, H, W)` in float32.
    """

    def __init__(self, channels: int, maps: int = 1) -> None:
        super().__init__()
        # Stored as C times the weight: Adam moves every parameter by about the learning rate, which is more than 1/C.
        self.scaled_weight = nn.Parameter(torch.ones(maps, channels))

    def forward(self, features: Tensor) -> Tensor:
        """Projects `(B, C, H, W)` to `(B, M, H, W)`."""
        weight = self.scaled_weight.float() / self.scaled_weight.shape[1]
        with torch.autocast(device_type=features.device.type, enabled=False):
            return F.conv2d(features.float().square(), weight[:, :, None, None])

"""How far the student's spatial attention is from the teacher's."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from agridistill.errors import ConfigError, ModelError, nearest

Distance = Literal["l2", "kl", "cosine"]

# A map whose largest value lies below this is dead: it says nothing about places, and its scale is left alone.
_DEAD = 1e-20
# Share of the uniform distribution in each map's: a place where the student sees nothing costs much, not infinity.
_KL_FLOOR = 1e-6


def attention_distance(student_map: Tensor, teacher_map: Tensor, distance: Distance = "l2") -> Tensor:
    """Distance of attention maps on one grid, in float32: where they look, whatever their scale.

    - "l2": squared L2 distance of the L2-normalised maps, summed over positions; in [0, 2] for maps >= 0.
    - "cosine": 1 - cosine similarity, computed as half of "l2": the same number without the cancellation.
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
        ConfigError: there is no such distance.

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


def unit_peak(attention: Tensor) -> Tensor:
    """Maps in float32 with a largest magnitude of 1, so that no square or sum over- or underflows.

    The distances do not depend on scale, so the factor is a constant for the gradient, and the gradient is exact.

    Args:
        attention: `(..., H, W)`.

    Returns:
        Of the same shape; a map without any value above 1e-20 stays as it is.
    """
    values = attention.float()
    peak = values.detach().abs().amax(dim=(-2, -1), keepdim=True)
    return values / torch.where(peak > _DEAD, peak, torch.ones_like(peak))


def _unit_length(flat: Tensor) -> Tensor:
    # With a peak of 1 the length is at least 1: the bound acts on dead maps alone.
    length: Tensor = torch.linalg.vector_norm(flat, dim=-1, keepdim=True)
    return flat / length.clamp_min(0.5)


def _log_probabilities(flat: Tensor) -> Tensor:
    mass = flat.clamp_min(0)
    total = mass.sum(dim=-1, keepdim=True)
    uniform = torch.full_like(mass, 1 / mass.shape[-1])
    probabilities = torch.where(total > _KL_FLOOR, mass / total.clamp_min(_KL_FLOOR), uniform)
    return torch.lerp(probabilities, uniform, _KL_FLOOR).log()

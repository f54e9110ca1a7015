"""Losses on class scores: against the labels, and against the teacher's scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

# What a method compares of two models' logits: their probabilities, those of their z-scores, the target class and the
# others apart, or their correlations.
LogitDistance = Literal["kl", "standardised", "decoupled", "correlation"]

# Below it a deviation is one of rounding: equal scores say nothing, and are not blown up.
_LEAST_DEVIATION = 1e-7


def cross_entropy_loss(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy with the labels, in float32, mean over the batch.

    Args:
        logits: `(B, K)`, any floating type.
        target: class indices `(B,)` in [0, K).
        label_smoothing: share in [0, 1) of the target that is spread evenly over all classes.

    Returns:
        A float32 scalar >= 0.
    """
    return F.cross_entropy(logits.float(), target, label_smoothing=label_smoothing)


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """`T^2 * KL(teacher || student)` of the class probabilities at temperature T, in float32, mean over the batch.

    The factor T^2 keeps the size of the gradients when T changes. For large T the loss tends to half the squared
    distance of the centred logits, divided by the number of classes.

    Args:
        student_logits: `(B, K)`, any floating type.
        teacher_logits: `(B, K)`.
        temperature: T > 0; the larger, the softer the probabilities.

    Returns:
        A float32 scalar >= 0, which is 0 where both give the same probabilities.

    Source: Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2 and 2.1.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def standardised_kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """`kd_loss` of the logits' z-scores: the student need not match the size of the teacher's logits, only their order.

    Each photo's logits lose their mean and are divided by their deviation over the K classes (its variance divided by
    K, not K - 1). Logits that are all equal stay 0, with a gradient of 0.

    Args:
        student_logits: `(B, K)`, any floating type.
        teacher_logits: `(B, K)`.
        temperature: T > 0 of the z-scores, the paper's base temperature; it lets them reach `sqrt(K - 1) / T`.

    Returns:
        A float32 scalar >= 0, which no shift and no positive factor of either model's logits changes.

    Source: Sun et al. 2024, arXiv 2403.01427, algorithms 1 and 2.
    """
    return kd_loss(_z_scores(student_logits), _z_scores(teacher_logits), temperature)


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    temperature: float,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """`T^2 * (alpha * TCKD + beta * NCKD)`: the target class against all others, and the others among themselves.

    `kd_loss` is the same sum with alpha = 1 and, for each photo, beta = 1 - the teacher's probability of the target:
    where the teacher is sure, what it says of the other classes is lost there, and kept here. Both divergences are
    taken from logarithms and without the usual mask of -1000, so that a sure model gives no infinity, and two classes
    (which leave no others to compare) give NCKD = 0.

    Args:
        student_logits: `(B, K)`, any floating type, K >= 2.
        teacher_logits: `(B, K)`.
        target: class indices `(B,)` in [0, K).
        temperature: T > 0.
        alpha: weight of the target class's part.
        beta: weight of the other classes' part.

    Returns:
        A float32 scalar >= 0, mean over the batch.

    Source: Zhao et al. 2022, arXiv 2203.08679, equation 7; their settings for CIFAR-100.
    """
    student, teacher = student_logits.float() / temperature, teacher_logits.float() / temperature
    others = torch.ones_like(student, dtype=torch.bool).scatter_(1, target[:, None], value=False)
    parts = []
    for logits in (student, teacher):
        of_others = logits[others].view(len(logits), -1)
        both = torch.stack([logits.gather(1, target[:, None]).squeeze(1), of_others.logsumexp(dim=1)], dim=1)
        parts.append((F.log_softmax(both, dim=1), F.log_softmax(of_others, dim=1)))
    (student_target, student_others), (teacher_target, teacher_others) = parts
    tckd = F.kl_div(student_target, teacher_target, reduction="batchmean", log_target=True)
    nckd = F.kl_div(student_others, teacher_others, reduction="batchmean", log_target=True)
    return (alpha * tckd + beta * nckd) * temperature**2


def dist_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """`T^2 * (inter + intra)`: one minus Pearson's correlation of the class probabilities, by photo and by class.

    "inter" correlates the K probabilities of each photo, "intra" the B probabilities of each class: what counts is the
    order of the classes for a photo, and of the photos for a class, not the probabilities themselves. A row or column
    without deviation (a batch of one photo) correlates with nothing: it counts 1, with a gradient of 0.

    Args:
        student_logits: `(B, K)`, any floating type.
        teacher_logits: `(B, K)`.
        temperature: T > 0 of the probabilities.

    Returns:
        A float32 scalar in [0, 4 T^2].

    Source: Huang et al. 2022, arXiv 2205.10536, sections 3.2 (d_p, L_inter) and 3.3 (L_intra); T^2 as in their code.
    """
    student = F.softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.softmax(teacher_logits.float() / temperature, dim=-1)
    inter = 1 - _correlation(student, teacher).mean()
    intra = 1 - _correlation(student.T, teacher.T).mean()
    return (inter + intra) * temperature**2


def logit_distance(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float, distance: LogitDistance
) -> Tensor:
    """The loss that a method takes of the two models' logits; see there for shapes."""
    if distance == "standardised":
        return standardised_kd_loss(student_logits, teacher_logits, temperature)
    if distance == "decoupled":
        return dkd_loss(student_logits, teacher_logits, target, temperature)
    if distance == "correlation":
        return dist_loss(student_logits, teacher_logits, temperature)
    return kd_loss(student_logits, teacher_logits, temperature)


def _z_scores(logits: Tensor) -> Tensor:
    return _scaled(logits.float(), lambda centred: centred.square().mean(dim=-1, keepdim=True))


def _correlation(left: Tensor, right: Tensor) -> Tensor:
    """Pearson's, of each row of `(N, M)` with its counterpart."""
    first, second = (
        _scaled(rows, lambda centred: centred.square().sum(dim=-1, keepdim=True)) for rows in (left, right)
    )
    return (first * second).sum(dim=-1)


def _scaled(values: Tensor, square: Callable[[Tensor], Tensor]) -> Tensor:
    """Rows without their mean, divided by the root of `square` of them; rows that do not vary become 0."""
    centred = values - values.mean(dim=-1, keepdim=True)
    size = square(centred)
    varies = size > _LEAST_DEVIATION**2
    # Chosen before the root: its gradient at 0 is infinite, and a mask after it would make that NaN.
    return torch.where(varies, centred, 0.0) * torch.where(varies, size, 1.0).rsqrt()

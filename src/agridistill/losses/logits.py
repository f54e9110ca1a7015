"""Losses on logits: compared with the labels, and with the teacher's logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

# Deviations below this are rounding errors of equal values, which must not be scaled up.
_MIN_DEVIATION = 1e-7
# The target of a photo without a label, as in `data.folder`.
_UNLABELLED = -1


def cross_entropy_loss(
    logits: Tensor, target: Tensor, label_smoothing: float = 0.0, *, labelled_share: float = 1.0
) -> Tensor:
    """Computes the cross entropy with the labels as the mean over the photos with labels, a float32 scalar.

    It divides by the number of labels that a batch of this size has on average, not by its own: then each label has
    the same weight in every batch and process, and a batch without labels gives 0 with a gradient of 0.

    Args:
        logits: `(B, K)`, any floating type.
        target: class indices `(B,)` in [0, K), or -1 for a photo without a label; or class probabilities `(B, K)`.
        label_smoothing: share in [0, 1) of the target that is spread evenly over all classes.
        labelled_share: share of photos with labels among the photos of an epoch, above 0; with 1, all have one.
    """
    if labelled_share == 1:
        return F.cross_entropy(logits.float(), target, label_smoothing=label_smoothing)
    total = F.cross_entropy(
        logits.float(), target, label_smoothing=label_smoothing, ignore_index=_UNLABELLED, reduction="sum"
    )
    return total / (labelled_share * len(target))


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Computes `T^2 * KL(teacher || student)` of the class probabilities at temperature T, as the mean over the batch.

    Because of the factor T^2, the gradients keep their size when T changes. For large T the loss tends to half the
    squared distance of the centred logits, divided by the number of classes.

    Args:
        student_logits: `(B, K)`, any floating type.
        teacher_logits: `(B, K)`.
        temperature: T > 0; a larger one gives softer probabilities.

    Returns:
        A float32 scalar.

    Source: Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2 and 2.1.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def standardised_kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Computes `kd_loss` of standardised logits, so that the student need not match the size of the teacher's logits.

    Each photo's K logits are replaced by their z-scores, with the population standard deviation. After division by the
    temperature T, a z-score is at most `sqrt(K - 1) / T`. If all K logits are equal, they become 0 with a gradient of
    0. The arguments are those of `kd_loss`.

    Source: Sun et al. 2024, arXiv 2403.01427, algorithms 1 and 2.
    """
    student, teacher = (_centre_and_scale(logits.float(), torch.mean) for logits in (student_logits, teacher_logits))
    return kd_loss(student, teacher, temperature)


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    temperature: float,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Computes decoupled distillation, `T^2 * (alpha * TCKD + beta * NCKD)`, as the mean over the batch.

    TCKD is the KL divergence of two probabilities: of the target class, and of all other classes. NCKD is the KL
    divergence among the other classes; with two classes it is 0. `kd_loss` is the same sum with alpha = 1 and beta =
    1 - (the teacher's probability of the target class), so `kd_loss` loses NCKD if the teacher is confident. Both terms
    are finite for confident models, because they are computed from logarithms.

    Args:
        student_logits: `(B, K)`, any floating type, K >= 2.
        teacher_logits: `(B, K)`.
        target: class indices `(B,)` in [0, K).
        temperature: T > 0.
        alpha: weight of TCKD.
        beta: weight of NCKD.

    Returns:
        A float32 scalar.

    Source: Zhao et al. 2022, arXiv 2203.08679, equation 7; the defaults are their settings for CIFAR-100.
    """
    student, teacher = student_logits.float() / temperature, teacher_logits.float() / temperature
    others = torch.ones_like(student, dtype=torch.bool).scatter_(1, target[:, None], value=False)
    parts = []
    for logits in (student, teacher):
        of_others = logits[others].view(len(logits), -1)
        both = torch.stack([logits.gather(1, target[:, None]).squeeze(1), of_others.logsumexp(dim=1)], dim=1)
        parts.append((F.log_softmax(both, dim=1), F.log_softmax(of_others, dim=1)))
    tckd, nckd = (
        F.kl_div(student_part, teacher_part, reduction="batchmean", log_target=True)
        for student_part, teacher_part in zip(*parts, strict=True)
    )
    return (alpha * tckd + beta * nckd) * temperature**2


def dist_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Computes `T^2 * (inter + intra)` from correlations between student's and teacher's class probabilities.

    "inter" is 1 minus Pearson's correlation over the K probabilities of a photo, as the mean over photos. "intra" is 1
    minus the correlation over the B probabilities of a class, as the mean over classes. If the values to correlate are
    all equal (as in a batch of one photo), this part is 1 with a gradient of 0. The result is a float32 scalar in
    [0, 4 T^2]. The arguments are those of `kd_loss`.

    Source: Huang et al. 2022, arXiv 2205.10536, sections 3.2 (d_p, L_inter) and 3.3 (L_intra); T^2 as in their code.
    """
    student = F.softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.softmax(teacher_logits.float() / temperature, dim=-1)
    inter, intra = 1 - _correlation(student, teacher).mean(), 1 - _correlation(student.T, teacher.T).mean()
    return (inter + intra) * temperature**2


class KDLoss(nn.Module):
    """`kd_loss` as a torch module with a fixed temperature T > 0."""

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Computes the loss, a float32 scalar, from student's and teacher's logits, both `(B, K)`."""
        return kd_loss(student_logits, teacher_logits, self.temperature)


def _correlation(left: Tensor, right: Tensor) -> Tensor:
    """Computes Pearson's correlation `(N,)` of each row of `left` with the same row of `right`, both `(N, M)`."""
    return (_centre_and_scale(left, torch.sum) * _centre_and_scale(right, torch.sum)).sum(dim=-1)


def _centre_and_scale(values: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """Subtracts the row's mean, divides by the root of `reduce` of the squares; a row of equal values becomes 0."""
    centred = values - values.mean(dim=-1, keepdim=True)
    size = reduce(centred.square(), dim=-1, keepdim=True)
    varies = size > _MIN_DEVIATION**2
    # Mask before the square root: its gradient at 0 is infinite, and a mask after it would turn that into NaN.
    return torch.where(varies, centred, 0.0) * torch.where(varies, size, 1.0).rsqrt()

"""Losses on class scores: against the labels, and against the teacher's scores."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor


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

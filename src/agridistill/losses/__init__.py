"""Distillation losses on tensors, the objective that sums them, and the table of methods. Needs only torch.

Example:
    >>> import torch
    >>> from agridistill.losses import kd_loss
    >>> kd_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 2.0]]), temperature=4.0)
    tensor(0.)
"""

from agridistill.losses.logits import KDLoss, cross_entropy_loss, dist_loss, dkd_loss, kd_loss, standardised_kd_loss
from agridistill.losses.maps import (
    ChannelProjection,
    HintRegressor,
    attention_distance,
    channel_mean_square,
    hint_loss,
    match_resolution,
    unit_peak,
)
from agridistill.losses.methods import METHODS, Method, Term, get_method
from agridistill.losses.objective import DistillationObjective, StagePair, attention_schedule

__all__ = [
    "METHODS",
    "ChannelProjection",
    "DistillationObjective",
    "HintRegressor",
    "KDLoss",
    "Method",
    "StagePair",
    "Term",
    "attention_distance",
    "attention_schedule",
    "channel_mean_square",
    "cross_entropy_loss",
    "dist_loss",
    "dkd_loss",
    "get_method",
    "hint_loss",
    "kd_loss",
    "match_resolution",
    "standardised_kd_loss",
    "unit_peak",
]

"""Measures the distance between student's and teacher's features: hints (Romero et al. 2015, arXiv 1412.6550)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agridistill.errors import ModelError


def hint_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Computes half the mean squared difference of two feature maps, a float32 scalar.

    Args:
        student_features: `(B, C, H, W)`, after the `HintRegressor`.
        teacher_features: a tensor of the same shape.

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

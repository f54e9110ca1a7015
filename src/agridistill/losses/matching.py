"""Bringing the student's and the teacher's attention together: the grid in space, and the channels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from agridistill.errors import ModelError

NamedGrid = Literal["smaller", "student", "teacher"]
Grid = NamedGrid | int


def match_resolution(student_map: Tensor, teacher_map: Tensor, grid: Grid = "smaller") -> tuple[Tensor, Tensor]:
    """Both maps on a common grid that is chosen from their sizes at run time, each axis by itself.

    An axis shrinks by area interpolation (the mean of what it covers) and grows by bilinear interpolation.

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
    (s_height, s_width), (t_height, t_width) = student_map.shape[-2:], teacher_map.shape[-2:]
    if grid == "smaller":
        size = (min(s_height, t_height), min(s_width, t_width))
    elif grid == "student":
        size = (s_height, s_width)
    elif grid == "teacher":
        size = (t_height, t_width)
    else:
        size = (grid, grid)
    return _resize(student_map, size), _resize(teacher_map, size)


def _resize(attention: Tensor, size: tuple[int, int]) -> Tensor:
    resized = attention.float()
    if resized.shape[-2:] == size:
        return resized
    if resized.dim() == 3:
        resized = resized.unsqueeze(1)
    # Shrinking and growing act on different axes, so a map that is wider but lower than the grid gets each once.
    resized = F.adaptive_avg_pool2d(resized, (min(resized.shape[-2], size[0]), min(resized.shape[-1], size[1])))
    if resized.shape[-2:] != size:
        resized = F.interpolate(resized, size=size, mode="bilinear", align_corners=False)
    return resized.squeeze(1) if attention.dim() == 3 else resized


def channel_mean_square(features: Tensor) -> Tensor:
    """The fixed way from the student's features to one map: the channel mean of their squares.

    Args:
        features: `(B, C, H, W)`, any floating type.

    Returns:
        `(B, H, W)`, float32.
    """
    return features.float().square().mean(dim=1)


class ChannelProjection(nn.Module):
    """The learned way: a 1x1 projection, without bias, of the student's squared activations to M maps.

    It starts as the channel mean (each weight 1/C), so training begins where the fixed way stands. It serves training
    only and is dropped at export.

    Args:
        channels: C of the student's features.
        maps: M, the teacher's maps for each photo: 1, or the number of its heads.

    Shape:
        `(B, C, H, W)`, any floating type, to `(B, M, H, W)` in float32.
    """

    def __init__(self, channels: int, maps: int = 1) -> None:
        super().__init__()
        # Held as C times the weight: Adam moves every parameter by about the learning rate, which is more than 1/C.
        self.scaled_weight = nn.Parameter(torch.ones(maps, channels))

    def forward(self, features: Tensor) -> Tensor:
        """Projects `(B, C, H, W)` to `(B, M, H, W)`."""
        weight = self.scaled_weight.float() / self.scaled_weight.shape[1]
        with torch.autocast(device_type=features.device.type, enabled=False):
            return F.conv2d(features.float().square(), weight[:, :, None, None])

"""`preprocess.normalise`, on a batch of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from agridistill.manifest import Preprocessing


def normalise_batch(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The arithmetic of `preprocess.normalise` on a batch.

    Args:
        pixels: `(B, 3, H, W)` uint8 or float, on the scale 0 to 255.

    Returns:
        `(B, 3, H, W)` float32 in the same memory format.
    """
    mean = torch.tensor(preprocessing.mean, device=pixels.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=pixels.device).view(1, 3, 1, 1) * 255
    return (pixels.float() - mean) / std

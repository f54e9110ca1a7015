"""Compresses a teacher's feature maps, so that a view of a photo takes some kilobytes in the cache.

The channels are projected onto the first principal components of the features of some training photos, and rounded to
int8. Of a Swin-T with 384 channels on a grid of 8 x 8, 56 components fit: 3.6 kB a view instead of 98 kB.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agridistill.errors import RunError
from agridistill.storage import replacing

FEATURE_BYTES = 3600
"""Largest number of bytes of one view's features in all stages together, enough for 56 channels on a grid of 8 x 8.

A stage keeps at least one channel, so a grid of more positions takes more.
"""
FIT_PHOTOS = 512
"""Number of training photos whose features determine the principal components."""
_LARGEST = 127


class Codes(NamedTuple):
    """Compressed features of B photos at one stride."""

    values: Tensor  # `(B, C, H, W)` int8
    scale: Tensor  # `(B,)` float32: a value of 1 stands for this number


class Projection(NamedTuple):
    """The principal components of a teacher's features at one stride."""

    mean: Tensor  # `(channels,)`
    components: Tensor  # `(C, channels)`, orthogonal rows of length sqrt(C / channels)

    def encode(self, features: Tensor) -> Codes:
        """Compresses features `(B, channels, H, W)` to codes `(B, C, H, W)`."""
        mean, components = self.mean.to(features.device), self.components.to(features.device)
        projected = torch.einsum("bchw,kc->bkhw", features.float() - mean[:, None, None], components)
        scale = projected.abs().amax(dim=(1, 2, 3)).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
        return Codes((projected / scale[:, None, None, None]).round().to(torch.int8), scale)


def decode(codes: Codes) -> Tensor:
    """Returns the projected features `(B, C, H, W)` float32 of compressed ones.

    The hint loss is half the mean squared difference from the student's features. Apart from the rounding, its value
    with projected features is at most its value with the original ones, because the projection only leaves out
    components. The rows of the projection have the length at which the mean over C equals the mean over all channels.
    """
    return codes.values.float() * codes.scale[:, None, None, None]


def kept_channels(shape: Sequence[int], stages: int) -> int:
    """Returns the number of components, at least 1, that are kept of features `(channels, H, W)` at one of `stages`."""
    channels, height, width = shape
    return max(1, min(channels, FEATURE_BYTES // (stages * height * width)))


def fit_projections(batches: Iterable[Mapping[int, Tensor]], kept: Mapping[int, int]) -> dict[int, Projection]:
    """Computes the principal components of features `(B, channels, H, W)` by stride over all photos and positions.

    `kept` is the number of components by stride. Raises a RunError if there is no batch, because no photo can be read.
    """
    sums: dict[int, Tensor] = {}
    products: dict[int, Tensor] = {}
    counts = dict.fromkeys(kept, 0)
    for batch in batches:
        for stride, features in batch.items():
            rows = features.permute(0, 2, 3, 1).flatten(0, 2).double().cpu()
            sums[stride] = sums.get(stride, 0) + rows.sum(0)
            products[stride] = products.get(stride, 0) + rows.T @ rows
            counts[stride] += len(rows)
    if not sums:
        remedy = "check the disk or network drive of the photos, then continue with --resume"
        raise RunError("readable training photos", "none", remedy)
    found = {}
    for stride, count in kept.items():
        mean = sums[stride] / counts[stride]
        covariance = products[stride] / counts[stride] - torch.outer(mean, mean)
        vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :count].T  # by falling eigenvalues
        found[stride] = Projection(mean.float(), (vectors * math.sqrt(count / len(mean))).float())
    return found


def write_projections(path: Path, projections: Mapping[int, Projection]) -> None:
    """Writes projections to a file, which is complete or absent."""
    arrays = {
        f"{name}_s{stride}": values.numpy()
        for stride, projection in projections.items()
        for name, values in projection._asdict().items()
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_projections(path: Path, strides: Iterable[int]) -> dict[int, Projection]:
    """Reads projections from a file of `write_projections`; a missing or damaged one is a RunError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {
                stride: Projection(*(torch.from_numpy(arrays[f"{name}_s{stride}"]) for name in Projection._fields))
                for stride in strides
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        expected = f"the projection of the teacher's features in '{path}'"
        got = f"none that can be read ({type(error).__name__})"
        raise RunError(expected, got, "delete the folder of this cache; the cache is then built again") from None

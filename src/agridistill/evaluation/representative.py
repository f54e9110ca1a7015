"""Photos that stand for all: what int8 ranges are fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agridistill.data.folder import Sample
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.models import normalise_batch
from agridistill.runtime.reading import read_batches

# More change the ranges of a MobileNetV3 by less than one level.
REPRESENTATIVE_PHOTOS = 256
_BATCH = 32


def representative_batches(root: Path, samples: Sequence[Sample], preprocessing: Preprocessing) -> Iterator[Tensor]:
    """Photos evenly over the samples, as a network sees them; unreadable ones are left out.

    Args:
        root: the folder that the samples' paths start from.
        samples: training photos.
        preprocessing: of the network's input.

    Yields:
        `(B, 3, S, S)` float32, normalised.
    """
    step = max(1, len(samples) // REPRESENTATIVE_PHOTOS)
    paths = [root / sample.path for sample in samples[::step]]
    for batch in read_batches(paths, preprocessing, batch_size=_BATCH):
        readable = [pixels for _, pixels in batch if not isinstance(pixels, PhotoError)]
        if readable:
            yield normalise_batch(torch.from_numpy(np.stack(readable)).permute(0, 3, 1, 2), preprocessing)

"""What a run's photos look like, for the model to know strange ones by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agridistill.data.folder import Sample
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.runtime.reading import read_batches
from agridistill.runtime.verdict import Familiarity, figures, fit_familiarity

# 54 figures and their correlations are known well from as many.
_MOST_PHOTOS = 2000
_BATCH = 32


def familiarity_of(
    root: Path,
    train: Sequence[Sample],
    val: Sequence[Sample],
    preprocessing: Preprocessing,
    progress: ProgressCallback = silent,
) -> Familiarity | None:
    """Figures of the training photos, with a limit from the validation photos; None where there are too few."""
    begin(progress, "measuring how photos look")
    learnt, held_out = (_figures(root, samples, preprocessing, progress) for samples in (train, val))
    return fit_familiarity(learnt, held_out) if len(learnt) > 1 and held_out else None


def _figures(
    root: Path, samples: Sequence[Sample], preprocessing: Preprocessing, progress: ProgressCallback
) -> list[NDArray[np.float64]]:
    step = -(-len(samples) // _MOST_PHOTOS) or 1
    paths = [root / sample.path for sample in samples[::step]]
    found: list[NDArray[np.float64]] = []
    done = 0
    for batch in read_batches(paths, preprocessing, batch_size=_BATCH):
        found += [figures(pixels) for _, pixels in batch if not isinstance(pixels, PhotoError)]
        done += len(batch)
        progress(done, len(paths))
    return found

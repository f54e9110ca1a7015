"""What a run's photos look like, for the artefact to know strange ones by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agridistill.errors import PhotoError
from agridistill.evaluation.held_out import ChosenPhotos
from agridistill.manifest import Preprocessing
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.runtime.familiarity import Familiarity, figures, fit_familiarity
from agridistill.runtime.reading import read_batches

# 54 figures and their correlations are known well from as many.
_MOST_PHOTOS = 2000
_BATCH = 32


def familiarity_of(
    train: ChosenPhotos, val: ChosenPhotos, preprocessing: Preprocessing, progress: ProgressCallback = silent
) -> Familiarity | None:
    """Figures of the training photos, with a limit from the validation photos; None where there are too few."""
    begin(progress, "measuring how photos look")
    learnt, held_out = (_figures(photos, preprocessing, progress) for photos in (train, val))
    return fit_familiarity(learnt, held_out) if len(learnt) > 1 and held_out else None


def _figures(
    photos: ChosenPhotos, preprocessing: Preprocessing, progress: ProgressCallback
) -> list[NDArray[np.float64]]:
    step = -(-len(photos.samples) // _MOST_PHOTOS) or 1
    paths = [photos.root / sample.path for sample in photos.samples[::step]]
    found: list[NDArray[np.float64]] = []
    done = 0
    for batch in read_batches(paths, preprocessing, batch_size=_BATCH):
        found += [figures(pixels) for _, pixels in batch if not isinstance(pixels, PhotoError)]
        done += len(batch)
        progress(done, len(paths))
    return found

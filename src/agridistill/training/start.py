"""What a run finds out before it starts: how its weights want their photos, and what keeping views will save."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from agridistill.data.cache import SPARE_BYTES, KeptViews
from agridistill.data.folder import Sample
from agridistill.data.likeness import LearntPhotos, read_learnt
from agridistill.data.views import view_seed
from agridistill.errors import ModelError
from agridistill.manifest import IMAGENET_MEAN, IMAGENET_STD, read_manifest, sha256_of
from agridistill.models.factory import pretrained_normalisation
from agridistill.models.weights import packaged
from agridistill.training.run_folder import RunFolder, run_of
from agridistill.training.settings import FitSettings

logger = logging.getLogger(__name__)

_Channels = tuple[float, float, float]


def starting_normalisation(fit: FitSettings, folder: RunFolder, *, resume: bool) -> tuple[_Channels, _Channels]:
    """Mean and standard deviation of the RGB channels, 0 to 1, that the weights which a run starts from learnt with.

    Args:
        fit: which names the model and its weights.
        folder: of the run.
        resume: takes them from the folder: a resume needs neither hub nor file.

    Raises:
        AgriDistillError: unknown model, or damaged files of the run that the weights are from.
    """
    weights = Path(fit.weights) if fit.weights and not resume else None
    if weights is not None and weights.is_dir():
        learnt = read_manifest(RunFolder(weights).manifest).preprocessing
        return learnt.mean, learnt.std
    run = folder if resume else run_of(weights) if weights else None
    if run is not None:
        stored = run.read_environment().get("normalisation", {"mean": IMAGENET_MEAN, "std": IMAGENET_STD})
        return tuple(stored["mean"]), tuple(stored["std"])
    package = packaged(fit.model)
    if weights is not None and package is not None and sha256_of(weights) == package.sha256:
        return package.mean, package.std
    if fit.pretrained and weights is None:
        return pretrained_normalisation(fit.model)
    return IMAGENET_MEAN, IMAGENET_STD


def earlier_photos(teacher: Path | None, weights: Path | None) -> list[LearntPhotos]:
    """The photos that the teacher and the run which the weights are from have learnt from, where their files are there.

    Args:
        teacher: a run folder.
        weights: a run folder, its weights, or any other file.
    """
    found = []
    for run in (RunFolder(teacher) if teacher else None, run_of(weights) if weights else None):
        if run is not None and run.manifest.exists():
            photos = read_learnt(run.learnt, read_manifest(run.manifest))
            found += [photos] if photos else []
    return found


def require_weights(weights: Path) -> None:
    """Checks that the weights which a run starts from are there, without reading them.

    Raises:
        AgriDistillError: nothing there, a folder that is no finished run, or damaged weights of one.
    """
    if weights.is_dir():
        read_manifest(RunFolder(weights).manifest).verified_weights(weights)
        return
    if not weights.is_file():
        raise ModelError("a weights file or a finished run", f"'{weights}', which is neither", "check --weights")
    try:
        weights.open("rb").close()
    except OSError as error:
        raise ModelError(
            "a weights file that can be read", f"'{weights}' ({error.strerror})", "check --weights"
        ) from None


def tell_what_keeping_saves(
    kept: KeptViews, photos: Sequence[Sample], seed: int, views: int, epochs: int, *, cached: bool
) -> None:
    """Says where keeping views saves less than somebody hopes who asks for it.

    Args:
        kept: where they are kept.
        photos: that are learnt from.
        seed: of the views.
        views: of each photo.
        epochs: of the run.
        cached: whether a teacher's cache sees every view as well.
    """
    if not cached and views >= epochs:
        logger.warning(
            "every epoch shows new views (views = %d, epochs = %d): only another run of the same views gains by "
            "keeping them; --set views=N below the epochs",
            views,
            epochs,
        )
    seen = len(photos) * (views if cached else min(views, epochs))
    room = kept.room_bytes()
    if seen * kept.view_bytes <= room:
        return
    # Looked up only where it matters: there may be many.
    held = kept.count((photo.path, view_seed(seed, view, photo.path)) for photo in photos for view in range(views))
    missing, fitting = seen - held, room // kept.view_bytes
    if missing > fitting:
        logger.warning(
            "room for %d of the %d views to keep in '%s', beside %.0f GB left free; the others are drawn each time",
            fitting,
            missing,
            kept.folder,
            SPARE_BYTES / 1e9,
        )

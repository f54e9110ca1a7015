"""`train()` and `distill()`: from a data folder to a finished run folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from agridistill.data.folder import require_outside
from agridistill.data.labels import FOLDERS, Layout
from agridistill.data.prepare import PreparedData, prepare_data
from agridistill.distillation.methods import get_method
from agridistill.errors import ModelError, RunError
from agridistill.manifest import read_manifest
from agridistill.models.factory import require_known_model
from agridistill.processes import is_first_process, require_launched
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import require_writable
from agridistill.training.earlier import earlier_runs, parted_beside
from agridistill.training.result import RunResult, stored_result
from agridistill.training.run_folder import RunFolder
from agridistill.training.session import Session
from agridistill.training.settings import DataSettings, DistillConfig, FitSettings, ObjectiveSettings, TrainConfig
from agridistill.training.start import require_weights
from agridistill.training.terms import listens

logger = logging.getLogger(__name__)


def train(
    data: Path,
    out: Path,
    config: TrainConfig | None = None,
    *,
    split_file: Path | None = None,
    layout: Layout | None = None,
    resume: bool = False,
    progress: ProgressCallback = silent,
) -> RunResult:
    """Trains any timm model on labels alone: teachers and standalone baselines.

    Args:
        data: a folder of class folders, or of train/val/test folders of them.
        out: the run folder; new, empty, or with `resume` an unfinished run.
        config: settings; the defaults where None.
        split_file: a split made by `data split`; without one a leaf-disjoint split is made and stored in the run.
        layout: how the labels are found; None takes class folders, on a resume the layout that the run started with.
        resume: continues after a kill with the result of an uninterrupted run; of a finished run it gives the result.
        progress: told how far the reading of the photos is.

    Raises:
        AgriDistillError: data, settings, model or run folder cannot be used.
    """
    folder = RunFolder(out)
    _require_own_split(split_file, resume=resume)
    if resume and folder.evaluation.exists():
        return _finished(folder, data, config, None, layout, progress)
    config = config or TrainConfig()
    fit = config.train
    _require_startable(folder, fit, resume=resume)
    _require_outside_runs(out, None, fit, resume=resume)
    require_known_model(fit.model)
    prepared = _prepare(data, layout, config.data, folder, split_file, earlier_runs(None, fit), resume, progress)
    return Session(folder, prepared, config, fit, ObjectiveSettings(method="ce"), None, None, resume).run()


def distill(
    data: Path,
    teacher: Path | None,
    out: Path,
    config: DistillConfig | None = None,
    *,
    split_file: Path | None = None,
    layout: Layout | None = None,
    resume: bool = False,
    cache: bool = True,
    cache_dir: Path | None = None,
    progress: ProgressCallback = silent,
) -> RunResult:
    """Trains a student under a teacher.

    Args:
        data: a folder of class folders, or of train/val/test folders of them.
        teacher: a finished run; None only for the method `ce`, the equal baseline without a teacher.
        out: the run folder; new, empty, or with `resume` an unfinished run.
        config: settings; the defaults where None.
        split_file: a split made by `data split`; without one the teacher's own split is used on the teacher's data,
            so that no test photo of the student was a training photo of the teacher.
        layout: how the labels are found; None takes class folders, on a resume the layout that the run started with.
        resume: continues after a kill with the result of an uninterrupted run; of a finished run it gives the result.
        cache: asks the teacher once about each view and keeps its logits and attention; otherwise it runs in every
            step. Features (`w_hint`) come from the live teacher in their stage either way.
        cache_dir: folder of the teacher's caches; `cache` in the teacher's run folder where None.
        progress: told how far the reading of the photos is.

    Raises:
        AgriDistillError: data, settings, teacher, model or run folder cannot be used.
    """
    folder = RunFolder(out)
    _require_own_split(split_file, resume=resume)
    if resume and folder.evaluation.exists():
        return _finished(folder, data, config, teacher, layout, progress)
    config = config or DistillConfig()
    method = get_method(config.objective.method)
    fit = config.distill
    _require_startable(folder, fit, resume=resume)
    _require_outside_runs(out, teacher, fit, resume=resume)
    require_known_model(fit.model)
    if method.uses_teacher and teacher is None:
        raise ModelError(f"a teacher for the method '{method.name}'", "none", "pass --teacher RUN, or --method ce")
    if teacher is not None:
        # Says now, before the photos are read, whether the teacher can be used.
        read_manifest(RunFolder(teacher).manifest).verified_weights(teacher)
    if cache and cache_dir is not None:
        require_writable(cache_dir, "--cache-dir", folder=True)
    prepared = _prepare(data, layout, config.data, folder, split_file, earlier_runs(teacher, fit), resume, progress)
    if teacher is None or not listens(config.objective):
        # A teacher that no term listens to is not asked.
        return Session(folder, prepared, config, fit, config.objective, None, None, resume).run()
    caches = (cache_dir or RunFolder(teacher).caches) if cache else None
    return Session(folder, prepared, config, fit, config.objective, teacher, caches, resume).run()


def _finished(
    folder: RunFolder,
    data: Path,
    config: TrainConfig | DistillConfig | None,
    teacher: Path | None,
    layout: Layout | None,
    progress: ProgressCallback,
) -> RunResult:
    """What a finished run has stored; the photos are read only where they are not at the run's own place.

    Raises:
        RunError: other settings, photos or another teacher than the run's, or a damaged file of the run.
    """
    if config is not None:
        folder.require_same_recipe(config)
    environment = folder.read_environment()
    if teacher is not None and environment.get("teacher_sha256") is not None:
        folder.require_same_teacher(read_manifest(RunFolder(teacher).manifest).weights_sha256)
    own = folder.read_layout()
    if environment.get("data") != str(data.resolve()) or (layout or own).to_json() != own.to_json():
        prepared = prepare_data(data, layout=layout or own, split_file=folder.splits, progress=progress)
        _require_own_data(folder, data, prepared)
    return stored_result(folder)


def _require_own_data(folder: RunFolder, data: Path, prepared: PreparedData) -> None:
    if folder.read_environment().get("data_fingerprint") != prepared.fingerprint:
        raise RunError("the data that the run started with", f"other photos in '{data}'", "start a new run")


def _require_startable(folder: RunFolder, fit: FitSettings, *, resume: bool) -> None:
    """What can be known before the photos are read, which may take minutes."""
    require_launched(fit.processes)
    if is_first_process(fit.processes):
        folder.require_startable(resume=resume)
        require_writable(folder.path, folder=True)
    if fit.weights and not resume:
        require_weights(Path(fit.weights))


def _require_outside_runs(out: Path, teacher: Path | None, fit: FitSettings, *, resume: bool) -> None:
    """A run within the run that it learns from is lost with it, and no one finds it there."""
    weights = Path(fit.weights) if fit.weights else None
    for name, run in (("teacher's", teacher), ("--weights", weights)):
        if not resume and run is not None and run.is_dir() and out.resolve().is_relative_to(run.resolve()):
            raise RunError(f"--out outside the {name} run folder", f"'{out}' in '{run}'", "choose another --out")


def _require_own_split(split_file: Path | None, *, resume: bool) -> None:
    if resume and split_file is not None:
        raise RunError("the run's own split on a resume", f"--splits {split_file}", "leave --splits away")


def _prepare(
    data: Path,
    layout: Layout | None,
    settings: DataSettings,
    folder: RunFolder,
    split_file: Path | None,
    earlier: Mapping[str, RunFolder],
    resume: bool,
    progress: ProgressCallback,
) -> PreparedData:
    if not resume:
        require_outside(folder.path, data)
    prepared = prepare_data(
        data,
        layout=layout or (folder.read_layout() if resume else FOLDERS),
        split_file=folder.splits if resume else split_file,
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        split_seed=settings.split_seed,
        progress=progress,
    )
    for path, reason in prepared.skipped:
        logger.warning("left out: %s (%s)", path, reason)
    # What a run has begun with is not refused on its way.
    prepared.report(conflicts=1 if resume else settings.conflicts, option="--set conflicts=SHARE")
    if resume:
        _require_own_data(folder, data, prepared)
        # Its split names the photos that it learns from; those that it leaves aside stand in none of its parts.
        return prepared
    return parted_beside(earlier, prepared, settings)

"""`train()` and `distill()`: from a data folder to a finished run folder; `agridistill.train` has the details."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from agridistill.data.folder import require_outside
from agridistill.data.labels import FOLDERS, Layout
from agridistill.data.prepare import PreparedData, prepare_data
from agridistill.errors import ConfigError, ModelError, RunError
from agridistill.losses import get_method
from agridistill.manifest import read_manifest
from agridistill.models import require_known_model
from agridistill.progress import ProgressCallback, is_first_process, silent
from agridistill.storage import require_writable
from agridistill.training.fit import carry_out
from agridistill.training.inherited_split import inherit_split, parent_runs
from agridistill.training.parts import RunPlan
from agridistill.training.result import RunResult, stored_result
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import DistillConfig, TrainConfig

logger = logging.getLogger(__name__)

Config = TrainConfig | DistillConfig


@dataclass(frozen=True)
class _Request:
    """The arguments that `train` and `distill` have in common."""

    folder: RunFolder
    data: Path
    teacher: Path | None
    split_file: Path | None
    layout: Layout | None
    resume: bool
    progress: ProgressCallback


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
        data: a folder of photos.
        out: the run folder; new, empty, or with `resume` an unfinished run.
        config: settings; the defaults where None.
        split_file: a split made by `data split`; without one a leaf-disjoint split is made.
        layout: how the labels are found; None takes class folders, on a resume the layout of the run.
        resume: continues after a kill with the result of an uninterrupted run; returns the result of a finished run.
        progress: of the reading of the photos.

    Raises:
        AgriDistillError: data, settings, model or run folder cannot be used.
    """
    request = _Request(RunFolder(out), data, None, split_file, layout, resume, progress)
    if resume and (finished := _finished(request, config)):
        return finished
    config = config or TrainConfig()
    _require_startable(request, config)
    return carry_out(RunPlan(request.folder, _prepare(request, config), config, resume=resume))


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
    """Trains a student under a teacher. Arguments and errors as in `train`, and:

    Args:
        data: a folder of photos.
        teacher: a finished run; None only for the method `ce`, the equal baseline without a teacher.
        out: the run folder.
        config: settings.
        split_file: without one the teacher's split is used on the teacher's data, so that no test photo of the student
            was a training photo of the teacher.
        layout: how the labels are found.
        resume: continues a run.
        cache: computes the teacher's logits and attention once for each view; otherwise it runs in every step. Features
            (`w_hint`) come from the live teacher in their stage either way.
        cache_dir: folder of the teacher's caches; `cache` in the teacher's run folder where None.
        progress: of the reading of the photos.
    """
    request = _Request(RunFolder(out), data, teacher, split_file, layout, resume, progress)
    if resume and (finished := _finished(request, config)):
        return finished
    config = config or DistillConfig()
    method = get_method(config.objective.method)
    _require_startable(request, config)
    if method.needs and teacher is None:
        raise ModelError(f"a teacher for the method '{method.name}'", "none", "pass --teacher RUN, or --method ce")
    if teacher is not None:
        # Before the photos are read, which may take minutes.
        read_manifest(RunFolder(teacher).manifest).verified_weights(teacher)
    if cache and cache_dir is not None:
        require_writable(cache_dir, "--cache-dir", folder=True)
    prepared = _prepare(request, config)
    # Without any weight on a term that needs it, the teacher is not loaded.
    run = RunFolder(teacher) if teacher is not None and config.objective.needs_teacher else None
    caches = (cache_dir or run.caches) if cache and run is not None else None
    return carry_out(RunPlan(request.folder, prepared, config, run, caches, resume))


def _finished(request: _Request, config: Config | None) -> RunResult | None:
    """The stored result, where the run is finished; photos are read only where `data` is not the run's own folder."""
    folder, data, teacher = request.folder, request.data, request.teacher
    if request.split_file is not None:
        raise RunError("the run's own split on a resume", f"--splits {request.split_file}", "leave --splits away")
    if not folder.evaluation.exists():
        return None
    if config is not None:
        folder.require_same_recipe(config)
    environment = folder.read_environment()
    if teacher is not None and environment.get("teacher_sha256") is not None:
        folder.require_same_teacher(read_manifest(RunFolder(teacher).manifest).weights_sha256)
    own = folder.read_layout()
    layout = request.layout or own
    if environment.get("data") != str(data.resolve()) or layout.to_json() != own.to_json():
        prepared = prepare_data(data, layout=layout, split_file=folder.splits, progress=request.progress)
        folder.require_same_data(data, prepared.fingerprint)
    return stored_result(folder)


def _require_startable(request: _Request, config: Config) -> None:
    """Checks what can be known before the photos are read, which may take minutes."""
    folder, resume, fit = request.folder, request.resume, config.fit
    _require_launched(fit.processes)
    if is_first_process(fit.processes):
        folder.require_startable(resume=resume)
        require_writable(folder.path, folder=True)
    weights = Path(fit.weights) if fit.weights and not resume else None
    if weights is not None and weights.is_dir():
        read_manifest(RunFolder(weights).manifest).verified_weights(weights)
    elif weights is not None:
        if not weights.is_file():
            raise ModelError("a weights file or a finished run", f"'{weights}', which is neither", "check --weights")
        try:
            weights.open("rb").close()
        except OSError as error:
            got = f"'{weights}' ({error.strerror})"
            raise ModelError("a weights file that can be read", got, "check --weights") from None
    # Deleting the parent run would delete a run in its folder.
    for name, run in (("teacher's", request.teacher), ("--weights", weights)):
        if not resume and run and run.is_dir() and folder.path.resolve().is_relative_to(run.resolve()):
            got = f"'{folder.path}' in '{run}'"
            raise RunError(f"--out outside the {name} run folder", got, "choose another --out")
    require_known_model(fit.model)


def _prepare(request: _Request, config: Config) -> PreparedData:
    folder, resume, settings = request.folder, request.resume, config.data
    if not resume:
        require_outside(folder.path, request.data)
    prepared = prepare_data(
        request.data,
        layout=request.layout or (folder.read_layout() if resume else FOLDERS),
        split_file=folder.splits if resume else request.split_file,
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        split_seed=settings.split_seed,
        progress=request.progress,
    )
    for path, reason in prepared.skipped:
        logger.warning("left out: %s (%s)", path, reason)
    # A resume accepts the conflicts that the run accepted at its start.
    prepared.report(conflicts=1 if resume else settings.conflicts, option="--set conflicts=SHARE")
    if resume:
        folder.require_same_data(request.data, prepared.fingerprint)
        return prepared
    return inherit_split(parent_runs(request.teacher, config.fit), prepared, settings)


def _require_launched(processes: int) -> None:
    """Checks that torchrun started as many processes as the run expects; otherwise each would train on its own."""
    launched = os.environ.get("WORLD_SIZE", str(processes)) if "TORCHELASTIC_RUN_ID" in os.environ else str(processes)
    if launched != str(processes):
        raise ConfigError(
            f"--devices times --nodes of {launched}, the processes that torchrun started",
            str(processes),
            "pass the same numbers to both",
        )

"""`train()` and `distill()`: from a data folder to a finished run folder."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from agridistill.data.prepare import PreparedData, check_parts, prepare_data
from agridistill.data.samples import SPLIT_NAMES, Sample, suffixes
from agridistill.data.splits import Split, labelled_share, read_split
from agridistill.distillation.methods import get_method
from agridistill.errors import DataError, ModelError, RunError
from agridistill.manifest import read_manifest
from agridistill.models.factory import require_known_model
from agridistill.processes import is_first_process, require_launched
from agridistill.progress import ProgressCallback, silent
from agridistill.training.result import RunResult
from agridistill.training.run_folder import RunFolder, run_of
from agridistill.training.session import Session
from agridistill.training.settings import DataSettings, DistillConfig, FitSettings, ObjectiveSettings, TrainConfig
from agridistill.training.terms import listens

logger = logging.getLogger(__name__)


def train(
    data: Path,
    out: Path,
    config: TrainConfig | None = None,
    *,
    split_file: Path | None = None,
    resume: bool = False,
    progress: ProgressCallback = silent,
) -> RunResult:
    """Trains any timm model on labels alone: teachers and standalone baselines.

    Args:
        data: a folder of class folders, or of train/val/test folders of them.
        out: the run folder; new, empty, or with `resume` an unfinished run.
        config: settings; the defaults where None.
        split_file: a split made by `data split`; without one a leaf-disjoint split is made and stored in the run.
        resume: continues after a kill with the result of an uninterrupted run.
        progress: told how far the reading of the photos is.

    Raises:
        AgriDistillError: data, settings, model or run folder cannot be used.
    """
    config = config or TrainConfig()
    fit = config.train
    folder = RunFolder(out)
    _require_startable(folder, fit, resume=resume)
    _require_own_split(split_file, resume=resume)
    require_known_model(fit.model)
    prepared = _prepare(data, config.data, folder, split_file, _earlier(None, fit), resume, progress)
    return Session(folder, prepared, config, fit, ObjectiveSettings(method="ce"), None, None, resume).run()


def distill(
    data: Path,
    teacher: Path | None,
    out: Path,
    config: DistillConfig | None = None,
    *,
    split_file: Path | None = None,
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
        resume: continues after a kill with the result of an uninterrupted run.
        cache: asks the teacher once about each view and keeps its logits and attention; otherwise it runs in every
            step. Features (`w_hint`) come from the live teacher in their stage either way.
        cache_dir: folder of the teacher's caches; `cache` in the teacher's run folder where None.
        progress: told how far the reading of the photos is.

    Raises:
        AgriDistillError: data, settings, teacher, model or run folder cannot be used.
    """
    config = config or DistillConfig()
    method = get_method(config.objective.method)
    fit = config.distill
    folder = RunFolder(out)
    _require_startable(folder, fit, resume=resume)
    _require_own_split(split_file, resume=resume)
    require_known_model(fit.model)
    if method.uses_teacher and teacher is None:
        raise ModelError(f"a teacher for the method '{method.name}'", "none", "pass --teacher RUN, or --method ce")
    if teacher is not None:
        # Says now, before the photos are read, whether the teacher can be used.
        read_manifest(RunFolder(teacher).manifest).verified_weights(teacher)
    prepared = _prepare(data, config.data, folder, split_file, _earlier(teacher, fit), resume, progress)
    if teacher is None or not listens(config.objective):
        # A teacher that no term listens to is not asked.
        return Session(folder, prepared, config, fit, config.objective, None, None, resume).run()
    caches = (cache_dir or RunFolder(teacher).caches) if cache else None
    return Session(folder, prepared, config, fit, config.objective, teacher, caches, resume).run()


def _require_startable(folder: RunFolder, fit: FitSettings, *, resume: bool) -> None:
    require_launched(fit.processes)
    if is_first_process(fit.processes):
        folder.require_startable(resume=resume)


def _require_own_split(split_file: Path | None, *, resume: bool) -> None:
    if resume and split_file is not None:
        raise RunError("the run's own split on a resume", f"--splits {split_file}", "leave --splits away")


def _prepare(
    data: Path,
    settings: DataSettings,
    folder: RunFolder,
    split_file: Path | None,
    earlier: Mapping[str, RunFolder],
    resume: bool,
    progress: ProgressCallback,
) -> PreparedData:
    prepared = prepare_data(
        data,
        split_file=folder.splits if resume else split_file,
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        split_seed=settings.split_seed,
        progress=progress,
    )
    for path, reason in prepared.skipped:
        logger.warning("left out: %s (%s)", path, reason)
    if prepared.strays:
        logger.warning(
            "left out: files among the photos that are no photos: %d (%s), the first '%s'",
            len(prepared.strays),
            suffixes(prepared.strays),
            prepared.strays[0],
        )
    if resume:
        before = folder.read_environment().get("data_fingerprint")
        if before != prepared.fingerprint:
            raise RunError("the data that the run started with", f"other photos in '{data}'", "start a new run")
        # Its split names the photos that it learns from; those that it leaves aside stand in none of its parts.
        return prepared
    taken, labelled = "", False
    # A test that the user chose, by a file or by folders, is obeyed.
    if "test" in prepared.cut:
        for name, run in earlier.items():
            labelled = _labelled_alike(run, settings, prepared)
            found = _taken_over(prepared, run, named_alone=labelled)
            if found is not None:
                prepared, taken = found, name
                break
    for name, run in earlier.items():
        if name != taken:
            _tell_what_was_learnt(prepared, read_split(run.splits), name)
    return prepared if taken and labelled else _with_labels(prepared, settings.labels, settings.split_seed)


def _labelled_alike(run: RunFolder, settings: DataSettings, prepared: PreparedData) -> bool:
    """Whether the run's split names the very share of labels that is wanted now."""
    if settings.labels == 1 or not _learnt_on(run, prepared):
        return False
    try:
        data = tomllib.loads(run.recipe.read_text(encoding="utf-8")).get("data", {})
    except (OSError, ValueError):
        return False
    return (data.get("labels", 1.0), data.get("split_seed", 0)) == (settings.labels, settings.split_seed)


def _learnt_on(run: RunFolder, prepared: PreparedData) -> bool:
    return run.read_environment().get("data_fingerprint") == prepared.fingerprint


def _taken_over(prepared: PreparedData, run: RunFolder, *, named_alone: bool) -> PreparedData | None:
    """The photos, parted by an earlier run's split; None where that one is of other photos."""
    split, learnt_here = read_split(run.splits), _learnt_on(run, prepared)
    if not learnt_here and not _names_most_of(prepared, split):
        return None
    try:
        found = _with_split(prepared, split, named_alone=named_alone)
    except DataError:
        # A few photos of the earlier run, which fill no validation or no test.
        return None
    parts = (found.train, found.val, found.test)
    leaves = [{sample.leaf_id for sample in part} for part in parts]
    torn = len(set().union(*leaves)) < sum(len(part) for part in leaves)
    # Other photos of the same names, whose leaves that split knows nothing of.
    return None if torn and not learnt_here else found


def _with_labels(prepared: PreparedData, share: float, seed: int) -> PreparedData:
    """The same photos, of which only a share is learnt from and chosen by."""
    if share == 1:
        return prepared
    train, val = (labelled_share(part, share, seed=seed) for part in (prepared.train, prepared.val))
    train_paths, val_paths = (tuple(sample.path for sample in part) for part in (train, val))
    return replace(prepared, train=train, val=val, split=replace(prepared.split, train=train_paths, val=val_paths))


def _earlier(teacher: Path | None, fit: FitSettings) -> dict[str, RunFolder]:
    """The runs whose photos this one must not be tested on, by what they are to it.

    The split of the first is taken over on its own data (also where it learnt from a share of the labels and its split
    names only those photos), and where most photos stand in it, so that a photo more or less does not matter; other
    photos that happen to have its names keep a split of their own. Wherever one of them learnt photos of the test, a
    warning says so.
    """
    found = {} if teacher is None else {"the teacher": RunFolder(teacher)}
    if fit.weights:
        run = run_of(Path(fit.weights))
        found |= {} if run is None else {"the run of --weights": run}
    return {name: run for name, run in found.items() if run.splits.exists()}


def _names_most_of(prepared: PreparedData, split: Split) -> bool:
    known = {path for paths in split.parts().values() for path in paths}
    samples = (*prepared.train, *prepared.val, *prepared.test)
    return 2 * sum(sample.path in known for sample in samples) > len(samples)


def _tell_what_was_learnt(prepared: PreparedData, split: Split, name: str) -> None:
    # By class and file name: the same photos may have been moved into train, val and test.
    learnt = {_name_of(path) for path in split.train}
    met = sum(_name_of(sample.path) in learnt for sample in prepared.test)
    if met:
        logger.warning(
            "%s was trained on %d of the %d test photos of this split (or on photos of the same names): "
            "the result will be too high",
            name,
            met,
            len(prepared.test),
        )


def _name_of(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def _with_split(prepared: PreparedData, split: Split, *, named_alone: bool) -> PreparedData:
    """The same photos, parted by another split.

    A photo that it does not name goes where its leaf is, else to train, or stays away where the named ones alone count.

    Raises:
        DataError: a part without photos, or a class without any to learn from.
    """
    samples = sorted((*prepared.train, *prepared.val, *prepared.test), key=lambda sample: sample.path)
    part_of = {path: name for name, paths in split.parts().items() for path in paths}
    part_of_leaf = {sample.leaf_id: part_of[sample.path] for sample in samples if sample.path in part_of}
    parts: dict[str, list[Sample]] = {name: [] for name in SPLIT_NAMES}
    for sample in samples:
        if sample.path in part_of or not named_alone:
            parts[part_of.get(sample.path) or part_of_leaf.get(sample.leaf_id, "train")].append(sample)
    train, val, test = (tuple(parts[name]) for name in SPLIT_NAMES)
    paths = Split(*(tuple(sample.path for sample in part) for part in (train, val, test)))
    check_parts(prepared.classes, train, val, test)
    return replace(prepared, train=train, val=val, test=test, split=paths, cut=frozenset())

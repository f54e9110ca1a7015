"""`train()` and `distill()`: train a network on a data folder; `agridistill.train` documents the arguments.

A run takes the split of its parent run (its teacher, or the run that --weights comes from), so that it is not tested on
photos that the parent learnt from.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agridistill.data.folder import SPLIT_NAMES, Sample, require_outside
from agridistill.data.inspection import turned_phashes_of
from agridistill.data.labels import FOLDERS, Layout
from agridistill.data.likeness import count_learnt, read_learnt
from agridistill.data.prepare import PreparedData, check_parts, prepare_data, warn_of_shared_leaves
from agridistill.data.split import Split, labelled_share, read_split
from agridistill.data.unlabelled import find_unlabelled, list_unlabelled
from agridistill.errors import ConfigError, DataError, ModelError, RunError
from agridistill.losses import get_method
from agridistill.manifest import read_manifest
from agridistill.models import require_known_model, start_path, weights_file
from agridistill.progress import ProgressCallback, is_first_process, silent
from agridistill.storage import require_writable
from agridistill.training.fit import carry_out
from agridistill.training.parts import RunPlan
from agridistill.training.run_folder import RunFolder, RunResult, run_of
from agridistill.training.settings import DataSettings, DistillConfig, TrainConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Request:
    """The arguments that `train` and `distill` have in common."""

    folder: RunFolder
    data: Path
    config: TrainConfig | DistillConfig
    teacher: Path | None
    split_file: Path | None
    layout: Layout | None
    resume: bool
    progress: ProgressCallback


def train(
    data: Path,
    out: Path,
    config: TrainConfig,
    *,
    split_file: Path | None = None,
    layout: Layout | None = None,
    resume: bool = False,
    progress: ProgressCallback = silent,
) -> RunResult:
    """Trains a timm model on labelled photos, without a teacher; `agridistill.train` documents arguments and errors.

    `layout` is where the labels come from; None means class folders, or on a resume the layout that the run has used.
    """
    return _run(_Request(RunFolder(out), data, config, None, split_file, layout, resume, progress))


def distill(
    data: Path,
    teacher: Path | None,
    out: Path,
    config: DistillConfig,
    *,
    split_file: Path | None = None,
    layout: Layout | None = None,
    resume: bool = False,
    cache: bool = True,
    cache_dir: Path | None = None,
    progress: ProgressCallback = silent,
) -> RunResult:
    """Trains a student with a teacher; `agridistill.distill` documents arguments and errors, `train` the `layout`."""
    request = _Request(RunFolder(out), data, config, teacher, split_file, layout, resume, progress)
    caches = (cache_dir or RunFolder(teacher).caches) if cache and teacher is not None else None
    if caches is not None and cache_dir is not None:
        require_writable(cache_dir, "--cache-dir", folder=True)
    return _run(request, caches)


def _run(request: _Request, caches: Path | None = None) -> RunResult:
    config = request.config
    if request.resume and request.split_file is not None:
        got = f"--splits {request.split_file}"
        raise RunError("no --splits with --resume, because a run keeps its split", got, "leave --splits out")
    if request.resume and request.folder.evaluation.exists():
        return _finished(request)
    method = get_method(config.objective.method)
    _require_startable(request)
    if method.needs and request.teacher is None:
        raise ModelError(f"a teacher for the method '{method.name}'", "none", "pass --teacher RUN, or --method ce")
    if request.teacher is not None:
        # Check the teacher before the photos are read, which may take minutes.
        read_manifest(RunFolder(request.teacher).manifest).verified_weights(request.teacher)
    prepared = _prepare(request)
    # The teacher is not loaded if all terms that need it have weight 0.
    needed = config.objective.needs_teacher and request.teacher
    teacher = RunFolder(needed) if needed else None
    return carry_out(RunPlan(request.folder, prepared, config, teacher, caches if teacher else None, request.resume))


def _finished(request: _Request) -> RunResult:
    """Returns the stored result of a finished run; reads photos only if `data` is not the folder of the run."""
    folder, data, teacher = request.folder, request.data, request.teacher
    folder.require_same_recipe(request.config)
    environment = folder.read_environment()
    if teacher is not None and environment["teacher_sha256"] is not None:
        folder.require_same_teacher(read_manifest(RunFolder(teacher).manifest).weights_sha256)
    own = folder.read_layout()
    layout = request.layout or own
    if environment["data"] != str(data.resolve()) or layout.to_json() != own.to_json():
        prepared = prepare_data(data, layout=layout, split_file=folder.splits, progress=request.progress)
        folder.require_same_data(data, prepared.fingerprint)
    return folder.read_result()


def _require_startable(request: _Request) -> None:
    """Checks everything that can be checked before the photos are read, which may take minutes."""
    folder, resume, config, fit = request.folder, request.resume, request.config, request.config.fit
    launched = os.environ.get("WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else None
    if launched not in (None, str(fit.processes)):  # otherwise each process would train separately
        expected = f"--devices times --nodes to be {launched}, the number of processes that torchrun started"
        raise ConfigError(expected, str(fit.processes), "pass the same numbers to torchrun and to agridistill")
    if is_first_process(fit.processes):
        folder.require_startable(resume=resume)
        require_writable(folder.path, folder=True)
    weights = start_path(fit.weights, fit.model) if fit.weights and not resume else None
    if weights is not None:
        weights_file(weights)
    # A run inside the folder of its parent run would be deleted together with the parent.
    for name, run in (("--teacher", request.teacher), ("--weights", weights)):
        if not resume and run and run.is_dir() and folder.path.resolve().is_relative_to(run.resolve()):
            got = f"'{folder.path}', which is inside '{run}'"
            raise RunError(f"--out outside the run folder of {name}", got, "choose another --out")
    require_known_model(fit.model)
    if config.data.unlabelled is not None:
        _require_use_of_unlabelled(config)
        list_unlabelled(Path(config.data.unlabelled))


def _require_use_of_unlabelled(config: TrainConfig | DistillConfig) -> None:
    """Refuses photos without labels if no term uses them, or a term or mixup needs a label for each photo."""
    objective, fit = config.objective, config.fit
    if not objective.needs_teacher or objective.method == "dkd":
        why = "needs one label for each photo" if objective.method == "dkd" else "learns only from labels"
        expected = "a method that learns from a teacher without labels, because of --unlabelled"
        raise ConfigError(expected, f"'{objective.method}', which {why}", "pass --method kd, or leave --unlabelled out")
    if fit.mixup or fit.cutmix:
        expected = "mixup = 0 and cutmix = 0 with --unlabelled, because photos without labels have no label to mix"
        raise ConfigError(expected, f"mixup = {fit.mixup}, cutmix = {fit.cutmix}", "set both to 0")


def _prepare(request: _Request) -> PreparedData:
    folder, resume, settings = request.folder, request.resume, request.config.data
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
        logger.warning("left out: the unreadable photo %s (%s)", path, reason)
    # A resume accepts conflicting labels, because the run accepted them at its start.
    prepared.report(conflicts=1 if resume else settings.conflicts, option="--set conflicts=SHARE")
    if resume:
        folder.require_same_data(request.data, prepared.fingerprint)
    every = (*prepared.train, *prepared.val, *prepared.test)
    if not resume:
        prepared = inherit_split(_parent_runs(request), prepared, settings)
    if settings.unlabelled is not None:
        # Photos of held-out leaves also include those that `data.labels` has left out of the split.
        leaves = {sample.leaf_id for sample in (*prepared.val, *prepared.test)}
        unlabelled = find_unlabelled(
            Path(settings.unlabelled),
            {"train": prepared.train, "held out": [sample for sample in every if sample.leaf_id in leaves]},
            prepared.inspection,
            only=folder.read_unlabelled() if resume else (),
            progress=request.progress,
        )
        prepared = replace(prepared, unlabelled=unlabelled)
    if resume:
        folder.require_same_unlabelled(prepared.unlabelled.fingerprint if prepared.unlabelled else None)
    return prepared


def _parent_runs(request: _Request) -> dict[str, RunFolder]:
    """Returns the runs whose training photos must not be test photos of this run, by their name in messages."""
    weights = request.config.fit.weights
    runs = {"the teacher": RunFolder(request.teacher) if request.teacher else None}
    runs["the run of --weights"] = run_of(Path(weights)) if weights else None
    return {name: run for name, run in runs.items() if run is not None and run.splits.exists()}


def inherit_split(parents: Mapping[str, RunFolder], prepared: PreparedData, settings: DataSettings) -> PreparedData:
    """Splits the photos as a parent run did, and warns if a parent was trained on test photos of this run.

    A parent run is the run of the teacher or of the starting weights. Its split is used in two cases: the data is the
    same, or the split contains more than half of the photos and keeps the photos of each leaf in one part. The first
    parent for which this holds, and whose split has enough validation and test photos, is used. A test split that the
    user chose, by a file or by folders, is never replaced. `settings` selects the share of labels to use.
    """
    inherited, labelled = "", settings.labels == 1
    for name, run in parents.items() if "test" in prepared.cut else ():
        same_labels = _has_same_labels(run, settings, prepared)
        found = _with_split_of(run, prepared, named_only=same_labels)
        if found is not None:
            prepared, inherited, labelled = found, name, labelled or same_labels
            # The parent's split may come from the user, so it may divide leaves.
            warn_of_shared_leaves({"train": found.train, "val": found.val, "test": found.test})
            break
    for name, run in parents.items():
        if name != inherited:
            _warn_about_overlap(prepared, run, name)
    if labelled:
        return prepared
    train, val = (
        labelled_share(part, settings.labels, seed=settings.split_seed) for part in (prepared.train, prepared.val)
    )
    return _divided(prepared, {"train": train, "val": val, "test": prepared.test}, prepared.cut)


def _has_same_labels(run: RunFolder, settings: DataSettings, prepared: PreparedData) -> bool:
    """Returns whether the run's split contains exactly the share of labels that `settings` set."""
    if settings.labels == 1 or not _is_same_data(run, prepared):
        return False
    data = run.read_recipe()["data"]
    return (data["labels"], data["split_seed"]) == (settings.labels, settings.split_seed)


def _is_same_data(run: RunFolder, prepared: PreparedData) -> bool:
    return bool(run.read_environment()["data_fingerprint"] == prepared.fingerprint)


def _with_split_of(run: RunFolder, prepared: PreparedData, *, named_only: bool) -> PreparedData | None:
    """Returns the same photos with the run's split; None if that split does not fit.

    A photo that is not in the split goes to the part of its leaf, or to train if the leaf is new; with `named_only` it
    is left out.
    """
    same_data = _is_same_data(run, prepared)
    samples = sorted((*prepared.train, *prepared.val, *prepared.test), key=lambda sample: sample.path)
    part_of = {path: name for name, paths in read_split(run.splits).parts().items() for path in paths}
    named = [sample for sample in samples if sample.path in part_of]
    if not same_data and 2 * len(named) <= len(samples):
        return None
    part_of_leaf = {sample.leaf_id: part_of[sample.path] for sample in named}
    parts: dict[str, list[Sample]] = {name: [] for name in SPLIT_NAMES}
    for sample in named if named_only else samples:
        parts[part_of.get(sample.path) or part_of_leaf.get(sample.leaf_id, "train")].append(sample)
    try:
        check_parts(prepared.classes, **parts)
    except DataError:
        return None  # the parent's photos are too few for a validation or test split
    leaves = [{sample.leaf_id for sample in part} for part in parts.values()]
    torn = len(set().union(*leaves)) < sum(map(len, leaves))
    if torn and not same_data:
        return None  # other photos with the same names: the split would divide their leaves
    return _divided(prepared, parts, frozenset())


def _divided(prepared: PreparedData, parts: Mapping[str, Sequence[Sample]], cut: frozenset[str]) -> PreparedData:
    samples: dict[str, Any] = {name: tuple(part) for name, part in parts.items()}
    split = Split(**{name: tuple(sample.path for sample in part) for name, part in parts.items()})
    return replace(prepared, **samples, split=split, cut=cut)


def _warn_about_overlap(prepared: PreparedData, run: RunFolder, name: str) -> None:
    # Compare class and file name only, because the photos may have been moved into train, val and test folders.
    learnt = {Path(path).parts[-2:] for path in read_split(run.splits).train}
    overlap = sum(Path(sample.path).parts[-2:] in learnt for sample in prepared.test)
    # Photos that the run had without labels have other names.
    known = read_learnt(run.learnt, read_manifest(run.manifest)) if run.read_unlabelled() else None
    if known is not None:
        overlap = max(overlap, count_learnt(known, turned_phashes_of(prepared.test, prepared.inspection).values()))
    if overlap:
        logger.warning(
            "%s was trained on %d of the %d test photos of this run (or on photos with the same class and file name): "
            "the result will be too high",
            name,
            overlap,
            len(prepared.test),
        )

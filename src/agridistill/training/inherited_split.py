"""The split of a parent run (the teacher, or the run of --weights), so that no photo it learnt from tests this run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from agridistill.data.folder import SPLIT_NAMES, Sample
from agridistill.data.prepare import PreparedData, check_parts, warn_of_shared_leaves
from agridistill.data.split import Split, labelled_share, read_split
from agridistill.errors import DataError
from agridistill.training.run_folder import RunFolder, run_of
from agridistill.training.settings import DataSettings, FitSettings

logger = logging.getLogger(__name__)


def parent_runs(teacher: Path | None, fit: FitSettings) -> dict[str, RunFolder]:
    """The runs whose training photos must not test this run, by their role in messages."""
    runs = {"the teacher": RunFolder(teacher) if teacher else None}
    runs["the run of --weights"] = run_of(Path(fit.weights)) if fit.weights else None
    return {name: run for name, run in runs.items() if run is not None and run.splits.exists()}


def inherit_split(parents: Mapping[str, RunFolder], prepared: PreparedData, settings: DataSettings) -> PreparedData:
    """Takes the first parent's split that fits, and warns where a test photo was a training photo of a parent.

    A split fits on the parent's own data, and on data most of whose photos it names; other photos with the same names
    keep their own split, as does a test that the user chose by a file or by folders.
    """
    inherited, labelled = "", False
    for name, run in parents.items() if "test" in prepared.cut else ():
        labelled = _has_same_labels(run, settings, prepared)
        found = _with_split_of(run, prepared, named_only=labelled)
        if found is not None:
            prepared, inherited = found, name
            # An earlier version, which did not recognise turned copies, may have made it.
            warn_of_shared_leaves({"train": found.train, "val": found.val, "test": found.test})
            break
    for name, run in parents.items():
        if name != inherited:
            _warn_about_overlap(prepared, read_split(run.splits), name)
    if settings.labels == 1 or (inherited and labelled):
        return prepared
    train, val = (
        labelled_share(part, settings.labels, seed=settings.split_seed) for part in (prepared.train, prepared.val)
    )
    split = replace(prepared.split, train=_paths(train), val=_paths(val))
    return replace(prepared, train=train, val=val, split=split)


def _has_same_labels(run: RunFolder, settings: DataSettings, prepared: PreparedData) -> bool:
    """Whether the run's split names exactly the share of labels of these settings."""
    if settings.labels == 1 or not _is_same_data(run, prepared):
        return False
    data = run.read_recipe().get("data", {})
    return (data.get("labels", 1.0), data.get("split_seed", 0)) == (settings.labels, settings.split_seed)


def _is_same_data(run: RunFolder, prepared: PreparedData) -> bool:
    return bool(run.read_environment().get("data_fingerprint") == prepared.fingerprint)


def _with_split_of(run: RunFolder, prepared: PreparedData, *, named_only: bool) -> PreparedData | None:
    """The same photos in the run's split; None where that split does not fit.

    A photo that the split does not name follows its leaf, else goes to train; it is left out with `named_only`.
    """
    split, same_data = read_split(run.splits), _is_same_data(run, prepared)
    samples = sorted((*prepared.train, *prepared.val, *prepared.test), key=lambda sample: sample.path)
    part_of = {path: name for name, paths in split.parts().items() for path in paths}
    named = [sample for sample in samples if sample.path in part_of]
    if not same_data and 2 * len(named) <= len(samples):
        return None
    part_of_leaf = {sample.leaf_id: part_of[sample.path] for sample in named}
    parts: dict[str, list[Sample]] = {name: [] for name in SPLIT_NAMES}
    for sample in named if named_only else samples:
        parts[part_of.get(sample.path) or part_of_leaf.get(sample.leaf_id, "train")].append(sample)
    train, val, test = (tuple(parts[name]) for name in SPLIT_NAMES)
    try:
        check_parts(prepared.classes, train, val, test)
    except DataError:
        return None  # a few photos of the parent's, too few for a validation or a test
    leaves = [{sample.leaf_id for sample in part} for part in (train, val, test)]
    torn = len(set().union(*leaves)) < sum(len(part) for part in leaves)
    if torn and not same_data:
        return None  # other photos of the same names, whose leaves the split does not know
    paths = Split(_paths(train), _paths(val), _paths(test))
    return replace(prepared, train=train, val=val, test=test, split=paths, cut=frozenset())


def _paths(samples: tuple[Sample, ...]) -> tuple[str, ...]:
    return tuple(sample.path for sample in samples)


def _warn_about_overlap(prepared: PreparedData, split: Split, name: str) -> None:
    # By class and file name: the same photos may have been moved into train, val and test.
    learnt = {Path(path).parts[-2:] for path in split.train}
    overlap = sum(Path(sample.path).parts[-2:] in learnt for sample in prepared.test)
    if overlap:
        logger.warning(
            "%s was trained on %d of the %d test photos of this split (or on photos of the same names): "
            "the result will be too high",
            name,
            overlap,
            len(prepared.test),
        )

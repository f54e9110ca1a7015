"""The runs that a run goes on from: none of the photos that its teacher or its weights have learnt may test it."""

from __future__ import annotations

import logging
import tomllib
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


def earlier_runs(teacher: Path | None, fit: FitSettings) -> dict[str, RunFolder]:
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


def parted_beside(earlier: Mapping[str, RunFolder], prepared: PreparedData, settings: DataSettings) -> PreparedData:
    """The photos, parted so that none which an earlier run has learnt is in the test, or told to be there.

    Args:
        earlier: of `earlier_runs`.
        prepared: with a split of its own.
        settings: of which the share of labels is drawn.
    """
    taken, labelled = "", False
    # A test that the user chose, by a file or by folders, is obeyed.
    if "test" in prepared.cut:
        for name, run in earlier.items():
            labelled = _labelled_alike(run, settings, prepared)
            found = _taken_over(prepared, run, named_alone=labelled)
            if found is not None:
                prepared, taken = found, name
                # An earlier version may have made it, which did not know turned copies.
                warn_of_shared_leaves({"train": found.train, "val": found.val, "test": found.test})
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


def _with_labels(prepared: PreparedData, share: float, seed: int) -> PreparedData:
    """The same photos, of which only a share is learnt from and chosen by."""
    if share == 1:
        return prepared
    train, val = (labelled_share(part, share, seed=seed) for part in (prepared.train, prepared.val))
    train_paths, val_paths = (tuple(sample.path for sample in part) for part in (train, val))
    return replace(prepared, train=train, val=val, split=replace(prepared.split, train=train_paths, val=val_paths))

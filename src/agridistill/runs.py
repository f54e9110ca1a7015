"""The public functions that train models: `train`, `distill` and `compare`.

They turn their settings into a checked recipe, as the commands of the same names do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agridistill.arguments import require_callable, require_flag, require_whole, to_optional_path, to_path
from agridistill.config import (
    Recipe,
    compare_plan,
    complete_recipe,
    distill_config,
    recipe_from,
    require_serves,
    train_config,
)
from agridistill.data.labels import FOLDERS, Layout, to_layout
from agridistill.errors import needs_extra
from agridistill.progress import ProgressCallback, silent

if TYPE_CHECKING:
    from agridistill.training.run_folder import RunResult
    from agridistill.training.settings import DistillConfig, TrainConfig

logger = logging.getLogger(__name__)


def train(
    data: Path | str,
    out: Path | str,
    config: TrainConfig | Mapping[str, Any] | Path | str | None = None,
    *,
    split_file: Path | str | None = None,
    label_file: Path | str | None = None,
    label_columns: Sequence[str] = (),
    nested: bool | None = None,
    resume: bool = False,
    progress: ProgressCallback = silent,
    **settings: Any,
) -> RunResult:
    """Trains a network on labels, without a teacher: a classifier, a teacher for others, or a baseline.

    Args:
        data: a folder of class folders, or a folder with train, val and test folders that hold the class folders.
        out: the run folder, which must be new or empty; with `resume`, the folder of an unfinished run.
        config: a `TrainConfig`, a dict of sections such as `{"train": {"epochs": 3}, "data": {"image_size": 96}}`, or
            the path of a recipe. With None or a dict, settings that are not given are chosen for the photos and the
            hardware, as the command does; on a resume they are those of the run.
        split_file: a split made by `data split`; with None, a leaf-disjoint split is made and stored in the run.
        label_file: a CSV or TSV with the label of each photo; with None, the folders are the labels.
        label_columns: names of the columns of `label_file` that hold the photos, the labels and (optionally) the split;
            if empty, they are found by usual names.
        nested: True makes each folder with photos a class, named by its path ("Tomato/Late blight"); False makes each
            folder of the first level a class with all photos below it; None does the same if no class is lost by it.
        resume: continues an unfinished run.
        progress: called with (done, total) while the photos are read.
        settings: single settings by their key in a recipe, such as `epochs=3, image_size=96`; they override `config`.

    Returns:
        The finished run with its evaluation on the test split.

    Raises:
        ConfigError: an argument or a setting has an unknown name, or a wrong type or range.
        AgriDistillError: the data, the model or the run folder cannot be used.

    Example:
        >>> import agridistill
        >>> agridistill.train("photos", out="run", epoch=3)
        Traceback (most recent call last):
        agridistill.errors.ConfigError: expected a known recipe key; got 'epoch' in the settings; did you mean 'epochs'?
    """
    folder, run, splits = to_path("data", data), to_path("out", out), to_optional_path("split_file", split_file)
    require_flag("resume", resume)
    require_callable("progress", progress)
    layout = to_layout(label_file, label_columns, nested)
    recipe = _recipe("train", config, settings, folder, None, run, layout, resume=resume)
    with needs_extra():
        from agridistill.training import run as runs
    return runs.train(
        folder, run, train_config(recipe), layout=layout, split_file=splits, resume=resume, progress=progress
    )


def distill(
    data: Path | str,
    teacher: Path | str | None,
    out: Path | str,
    config: DistillConfig | Mapping[str, Any] | Path | str | None = None,
    *,
    split_file: Path | str | None = None,
    label_file: Path | str | None = None,
    label_columns: Sequence[str] = (),
    nested: bool | None = None,
    resume: bool = False,
    cache: bool = True,
    cache_dir: Path | str | None = None,
    progress: ProgressCallback = silent,
    **settings: Any,
) -> RunResult:
    """Trains a student network that learns from labels and from the outputs of a teacher.

    `data`, `out`, `label_file`, `label_columns`, `nested`, `resume` and `progress` mean the same as in `train`.

    Args:
        teacher: run folder of the finished teacher; None only for the method "ce", the baseline without a teacher.
        config: a `DistillConfig`, a dict of sections such as `{"distill": {"epochs": 3}, "objective": {"method":
            "kd"}}`, or the path of a recipe. None takes the defaults, or on a resume the settings of the run.
        split_file: a split made by `data split`; with None, the teacher's split is used if the data is the teacher's.
        cache: True stores the teacher's outputs for each view once; False runs the teacher in every step.
        cache_dir: folder of these caches; None takes the folder `cache` in the teacher's run folder.
        settings: single settings by their key in a recipe, such as `epochs=3, method="kd"`; they override `config`.
            A `method` replaces the method of a `DistillConfig`.

    Returns:
        The finished run with its evaluation on the test split.

    Raises:
        ConfigError: an argument or a setting has an unknown name, or a wrong type or range.
        AgriDistillError: the data, the teacher, the model or the run folder cannot be used.
    """
    folder, run, splits = to_path("data", data), to_path("out", out), to_optional_path("split_file", split_file)
    teacher_run, caches = to_optional_path("teacher", teacher), to_optional_path("cache_dir", cache_dir)
    require_flag("resume", resume)
    require_flag("cache", cache)
    require_callable("progress", progress)
    layout = to_layout(label_file, label_columns, nested)
    recipe = _recipe("distill", config, settings, folder, teacher_run, run, layout, resume=resume)
    with needs_extra():
        from agridistill.training import run as runs
    return runs.distill(
        folder,
        teacher_run,
        run,
        distill_config(recipe),
        layout=layout,
        split_file=splits,
        resume=resume,
        cache=cache,
        cache_dir=caches,
        progress=progress,
    )


def compare(
    data: Path | str,
    recipe: Mapping[str, Any] | Path | str,
    out: Path | str,
    *,
    teacher: Path | str | None = None,
    split_file: Path | str | None = None,
    label_file: Path | str | None = None,
    label_columns: Sequence[str] = (),
    nested: bool | None = None,
    jobs: int = 0,
    evidence: bool = True,
    progress: ProgressCallback = silent,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains each candidate of a recipe with each seed and budget, under one teacher, and compares their test results.

    Finished runs in `out` are not trained again: after an interruption, or with candidates added to the recipe, the
    same call continues.
    `data`, `label_file`, `label_columns` and `nested` mean the same as in `train`.

    Args:
        recipe: the path of a recipe with a section [compare], or a dict of sections with "compare".
        out: folder of the study; the runs are stored in it.
        teacher: run folder of the finished teacher; with None, one is trained by the recipe if a candidate needs it.
        split_file: a split made by `data split`; None takes the teacher's split.
        jobs: number of runs that train at the same time; 0 takes one for each GPU, or one without a GPU.
        evidence: also measures robustness, calibration and attention, for `report`.
        progress: called with (epochs done, epochs in all).
        tell: called with one line of text for each finished run.

    Returns:
        The document that is also written to `OUT/compare.json`.

    Raises:
        ConfigError: an argument or a setting has an unknown name, or a wrong type or range.
        AgriDistillError: the data, the teacher or a run in `out` cannot be used, or a run failed.
    """
    folder, study_folder = to_path("data", data), to_path("out", out)
    teacher_run, splits = to_optional_path("teacher", teacher), to_optional_path("split_file", split_file)
    require_whole("jobs", jobs, at_least=0)
    require_flag("evidence", evidence)
    require_callable("progress", progress)
    require_callable("tell", tell)
    checked = recipe_from("compare", recipe, {})
    require_serves(checked, "compare")
    with needs_extra():
        from agridistill.study import compare as study
    return study.compare(
        folder,
        study_folder,
        compare_plan(checked),
        layout=to_layout(label_file, label_columns, nested) or FOLDERS,
        teacher=teacher_run,
        split_file=splits,
        jobs=jobs,
        evidence=evidence,
        progress=progress,
        tell=tell,
    )


def _recipe(
    command: Literal["train", "distill"],
    config: object,
    settings: Mapping[str, Any],
    data: Path,
    teacher: Path | None,
    run: Path,
    layout: Layout | None,
    *,
    resume: bool,
) -> Recipe:
    """Returns the settings of a call; a dict or None is completed, a config object and a recipe file are not."""
    given = recipe_from(command, config, settings)
    if config is not None and not isinstance(config, Mapping):
        return given
    recipe, reason = complete_recipe(command, given, data, run, teacher=teacher, layout=layout, resume=resume)
    if reason:
        logger.info(reason)
    return recipe

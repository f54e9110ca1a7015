"""The public functions that make runs: `train`, `distill` and `compare`.

Settings of any kind become the same checked recipe as those of the commands.
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
    """Trains a network on labels alone: a classifier, a teacher, or a baseline.

    Args:
        data: a folder of class folders, or of train/val/test folders of them.
        out: the run folder; new, empty, or with `resume` an unfinished run.
        config: a `TrainConfig`, a dict of sections such as `{"train": {"epochs": 3}, "data": {"image_size": 96}}`, or
            the path of a recipe. What None or a dict leave open is chosen by photos and hardware, as by the command;
            on a resume the settings are those of the run.
        split_file: a split made by `data split`; without one a leaf-disjoint split is made and stored in the run.
        label_file: CSV or TSV with the label of each photo; None takes the folders.
        label_columns: its columns of photos and labels, and of the split; found by usual names where empty.
        nested: True names classes by the path of their folder ("Tomato/Late blight"), False takes its first level; None
            takes the first level too, where this loses nothing.
        resume: continues an unfinished run.
        progress: called with (done, total) while the photos are read.
        settings: single settings by their key in a recipe, such as `epochs=3, image_size=96`; they override `config`.

    Returns:
        The finished run with its evaluation on the test split.

    Raises:
        ConfigError: an argument or a setting of a wrong name, type or range.
        AgriDistillError: data, model or run folder cannot be used.

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
    """Trains a student under a teacher.

    `data`, `out`, `label_file`, `label_columns`, `nested`, `resume` and `progress` are as for `train`.

    Args:
        teacher: run folder of a finished run; None only for the method "ce", the equal baseline without a teacher.
        config: a `DistillConfig`, a dict of sections such as `{"distill": {"epochs": 3}, "objective": {"method":
            "kd"}}`, or the path of a recipe. None takes the defaults, on a resume the settings of the run.
        split_file: a split made by `data split`; without one the teacher's own split is used on the teacher's data.
        cache: stores the teacher's outputs for each view once; otherwise the teacher runs in every step.
        cache_dir: folder of these caches; `cache` in the teacher's run folder where None.
        settings: single settings by their key in a recipe, such as `epochs=3, method="kd"`; they override `config`.
            A `method` replaces the method of a `DistillConfig`.

    Returns:
        The finished run with its evaluation on the test split.

    Raises:
        ConfigError: an argument or a setting of a wrong name, type or range.
        AgriDistillError: data, teacher, model or run folder cannot be used.
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
    """Trains methods x seeds x budgets under one teacher and compares them photo by photo.

    Finished runs in `out` are kept: after an interruption, or with more in the recipe, the same call continues.
    `data`, `label_file`, `label_columns` and `nested` are as for `train`.

    Args:
        recipe: the path of a recipe with a section [compare], or a dict of sections with "compare".
        out: folder of the study.
        teacher: run folder of a finished run; None trains one by the recipe where a candidate needs one.
        split_file: made by `data split`; None takes the teacher's split.
        jobs: runs at a time; 0 takes one for each GPU, one without.
        evidence: also gathers, for `report`, robustness, calibration and attention.
        progress: called with (epochs done, epochs in all).
        tell: called with one line for each finished run.

    Returns:
        The document of `OUT/compare.json`.

    Raises:
        ConfigError: an argument or a setting of a wrong name, type or range.
        AgriDistillError: data, teacher or a run of `out` cannot be used, or a run failed.
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
    """The settings of a call. A config object and a recipe file are complete: they are taken as they are."""
    given = recipe_from(command, config, settings)
    if config is not None and not isinstance(config, Mapping):
        return given
    recipe, reason = complete_recipe(command, given, data, run, teacher=teacher, layout=layout, resume=resume)
    if reason:
        logger.info(reason)
    return recipe

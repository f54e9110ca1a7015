"""`compare --search N`: settings of one candidate by Optuna, judged on the validation split alone."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from agridistill.data.folder import require_outside
from agridistill.data.labels import FOLDERS, Layout, read_layout
from agridistill.data.split import read_split
from agridistill.errors import ConfigError, RunError
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import require_writable, write_json
from agridistill.study.job import Order
from agridistill.study.plan import SearchSettings
from agridistill.study.side_by_side import failed, run_side_by_side
from agridistill.study.summary import figures_of
from agridistill.training.run_folder import MAY_DIFFER, RunFolder
from agridistill.training.settings import DistillConfig

STORAGE_NAME = "search.db"
_OWNER, _FOLDER, _RECIPE = "owner", "folder", "recipe_sha256"


@dataclass(frozen=True)
class SearchPlan:
    """A search, resolved.

    Attributes:
        settings: of the section `compare.search`.
        config_of: settings of the run with these values.
    """

    settings: SearchSettings
    config_of: Callable[[Mapping[str, Any]], DistillConfig]


def search(
    data: Path,
    out: Path,
    plan: SearchPlan,
    trials: int,
    *,
    teacher: Path,
    layout: Layout = FOLDERS,
    storage: str | None = None,
    split_file: Path | None = None,
    progress: ProgressCallback = silent,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Tries settings until so many trials are finished; goes on after a kill, also in the trial that was killed.

    The value of a trial is the best epoch's accuracy on the validation split; what its run says of the test split is
    not read. Several machines may share one storage and one folder.

    Args:
        data: the photos.
        out: folder of the study: `search/NAME` with the trials' runs, `search-NAME.json`, and `search.db` without
            `storage`; NAME is the candidate's and the budget's.
        plan: what is tried.
        trials: finished ones in all, those of earlier calls too.
        teacher: run folder.
        layout: how the labels are found.
        storage: any Optuna storage by URL; None keeps SQLite in `out`.
        split_file: made by `data split`.
        progress: told (trials, trials in all).
        tell: told a line where a trial has finished.

    Returns:
        The document of `search-NAME.json`: every trial and the best.

    Raises:
        AgriDistillError: a trial failed, the storage cannot be used, or it holds a search of another recipe.
    """
    settings = plan.settings
    read_layout(data, layout)  # before anything is written
    require_writable(out, folder=True)
    require_outside(out, data)
    if split_file is not None:
        read_split(split_file)
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _opened(plan, storage or _sqlite(out / STORAGE_NAME))
    folder = out / "search" / study.study_name
    _take_up_killed(study)
    while (done := len(_finished(study))) < trials:
        progress(done, trials)
        # Anew for each trial: a sampler that began with the same seed in every call would try the same points again.
        study.sampler = optuna.samplers.TPESampler(seed=_sampler_seed(settings.seed, study, shared=storage is not None))
        trial = study.ask()
        values = _suggested(trial, settings)
        run = folder / str(trial.user_attrs.get(_FOLDER, f"trial-{trial.number:04}"))
        trial.set_user_attr(_FOLDER, run.name)
        trial.set_user_attr(_OWNER, _owner())
        try:
            value = _carried_out(data, run, plan.config_of(values), teacher, layout, split_file, out / "logs", trials)
        except RunError:
            study.tell(trial, state=TrialState.FAIL)
            raise
        study.tell(trial, value)
        shown = ", ".join(
            f"{key} {value if isinstance(value, str) else format(value, '.3g')}" for key, value in values.items()
        )
        tell(
            f"{run.name}: {100 * value:.2f} % on the validation split with {shown}; best {100 * study.best_value:.2f} %"
        )
    progress(trials, trials)
    document = _document(study, settings)
    write_json(out / f"search-{study.study_name}.json", document)
    return document


def _opened(plan: SearchPlan, url: str) -> optuna.Study:
    """The search in its storage: begun, or gone on with where it is of the same recipe."""
    settings = plan.settings
    name = f"{settings.candidate}-{settings.budget}"
    try:
        study = optuna.create_study(storage=url, study_name=name, direction="maximize", load_if_exists=True)
    except Exception as error:
        # SQLAlchemy's many kinds, and Optuna's for a URL that it does not know.
        reason = " ".join(str(error).split())[:160].replace(url, _without_password(url))
        told = f"'{_without_password(url)}' ({reason})"
        raise ConfigError("an Optuna storage that can be used", told, "check --storage") from None
    middle = {key: space.choices[0] if space.choices else space.at("low") for key, space in settings.space.items()}
    config = asdict(plan.config_of(middle))
    # As for a run that is resumed.
    config["distill"] = {key: value for key, value in config["distill"].items() if key not in MAY_DIFFER}
    recipe = sha256(json.dumps([config, asdict(settings)], default=str).encode()).hexdigest()
    before = study.user_attrs.get(_RECIPE)
    if before not in (None, recipe):
        raise RunError(
            "the recipe that this search began with",
            f"another one for '{name}'",
            "choose another --out or --storage, or undo the change",
        )
    study.set_user_attr(_RECIPE, recipe)
    return study


def _carried_out(
    data: Path,
    run: Path,
    config: DistillConfig,
    teacher: Path,
    layout: Layout,
    split_file: Path | None,
    logs: Path,
    trials: int,
) -> float:
    """The validation accuracy of a trial's run, which is trained where it is not finished."""
    folder = RunFolder(run)
    if folder.recipe.exists():
        folder.require_same_recipe(config)
    if not folder.evaluation.exists():
        order = Order(str(data), str(run), config, str(teacher), str(split_file) if split_file else None, layout)
        failures = run_side_by_side(
            [(f"{run.parent.name}-{run.name}", order)],
            slots=1,
            environment=lambda slot: {},
            logs=logs,
            on_tick=lambda: None,
            on_end=lambda name: None,
        )
        if failures:
            raise failed(failures, trials)
    return float(figures_of(run)["val_accuracy"])


def _sqlite(file: Path) -> str:
    # Not by hand: a folder's name may hold what has a meaning in a URL.
    return URL.create("sqlite", database=str(file.resolve())).render_as_string(hide_password=False)


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url.partition("://")[0] + "://…"


def _sampler_seed(seed: int, study: optuna.Study, *, shared: bool) -> int:
    """Of one trial: another for each, and for each machine that shares the storage."""
    who = _owner() if shared else ""
    digest = sha256(f"{seed}/{len(study.get_trials(deepcopy=False))}/{who}".encode()).digest()
    return int.from_bytes(digest[:4])


def _suggested(trial: Trial, settings: SearchSettings) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, space in settings.space.items():
        if space.choices:
            values[name] = trial.suggest_categorical(name, space.choices)
        elif space.integer:
            values[name] = trial.suggest_int(name, int(space.low), int(space.high), log=space.log)
        else:
            values[name] = trial.suggest_float(name, space.low, space.high, log=space.log)
    return values


def _owner() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _take_up_killed(study: optuna.Study) -> None:
    """Trials that a process of this machine began and did not end are tried again, in their own folders."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # One without an owner was begun a moment ago, somewhere.
        host, _, process = str(trial.user_attrs.get(_OWNER, "")).rpartition(":")
        # Our own number: an earlier process that had it, as in a container that was started anew.
        ours = host == socket.gethostname() and (int(process) == os.getpid() or not _lives(int(process)))
        if ours:
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except optuna.exceptions.UpdateFinishedTrialError:
                continue  # another process was first
            study.enqueue_trial(trial.params, user_attrs={_FOLDER: trial.user_attrs[_FOLDER]})


def _lives(process: int) -> bool:
    if process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _document(study: optuna.Study, settings: SearchSettings) -> dict[str, Any]:
    best = study.best_trial
    return {
        "candidate": settings.candidate,
        "budget": settings.budget,
        "value": "accuracy on the validation split, best epoch",
        "trials": [
            {
                "number": trial.number,
                "run": trial.user_attrs[_FOLDER],
                "settings": trial.params,
                "val_accuracy": trial.value,
            }
            for trial in _finished(study)
        ],
        "best": {
            "number": best.number,
            "run": best.user_attrs[_FOLDER],
            "recipe": f"search/{study.study_name}/{best.user_attrs[_FOLDER]}/recipe.toml",
            "settings": best.params,
            "val_accuracy": best.value,
        },
    }

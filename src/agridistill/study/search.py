"""`compare --search N`: searches settings of one candidate with Optuna, on the validation split only."""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from agridistill.data.folder import require_outside
from agridistill.data.labels import FOLDERS, Layout, read_layout
from agridistill.data.prepare import prepare_data
from agridistill.data.split import read_split
from agridistill.errors import ConfigError, RunError
from agridistill.manifest import read_manifest
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import require_writable, write_json
from agridistill.study.plan import SearchPlan, SearchSettings
from agridistill.study.summary import read_figures
from agridistill.study.workers import Order, run_side_by_side
from agridistill.training.run_folder import MAY_DIFFER, RunFolder

# A trial without a heartbeat for the grace period counts as killed and is run again.
HEARTBEAT_S, GRACE_S = 15, 60
_FOLDER, _RECIPE, _TEACHER, _PHOTOS = "folder", "recipe_sha256", "teacher_sha256", "data_fingerprint"


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
    """Searches settings with Optuna: trains runs with different settings until `trials` of them are finished.

    Trials of earlier calls count. A trial is rated by the accuracy of its best epoch on the validation split; the test
    split is not used. A later call resumes an interrupted trial; a killed trial, once its last heartbeat is 60 s old.
    Several machines may share one `storage`, the URL of a database for Optuna (None: SQLite in `out`), and one folder.

    The folder `out` gets the runs in `search/NAME`, and the result `search-NAME.json`, whose content is returned; NAME
    is `CANDIDATE-BUDGET`.

    Raises:
        AgriDistillError: a trial failed, the storage cannot be used, or it holds a search with another recipe.
    """
    read_layout(data, layout)  # reports a wrong path before anything is written
    require_writable(out, folder=True)
    require_outside(out, data)
    if split_file is not None:
        read_split(split_file)
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    database = URL.create("sqlite", database=str((out / "search.db").resolve()))
    study = _open_study(plan, storage or database.render_as_string(hide_password=False))
    photos = prepare_data(data, layout=layout, split_file=split_file)
    _require_same(study, _TEACHER, read_manifest(RunFolder(teacher).manifest).weights_sha256, "teacher")
    _require_same(study, _PHOTOS, photos.fingerprint, "photos and labels")
    folder = out / "search" / study.study_name

    def objective(trial: Trial) -> float:
        run = folder / trial.user_attrs.get(_FOLDER, f"trial-{trial.number:04}")
        trial.set_user_attr(_FOLDER, run.name)
        config = plan.config_of(_suggest(trial, plan.settings))
        order = Order(data, run, config, teacher, split_file, layout)
        try:
            return _accuracy_of(order, f"{folder.name}-{run.name}", out / "logs", trials)
        except KeyboardInterrupt:
            _retry(study, trial)
            raise

    def report_trial(study: optuna.Study, trial: FrozenTrial) -> None:
        values = ", ".join(
            f"{key} {value if isinstance(value, str) else format(value, '.3g')}" for key, value in trial.params.items()
        )
        tell(
            f"{trial.user_attrs[_FOLDER]}: {100 * (trial.value or 0):.2f} % on the validation split with {values}; "
            f"the best trial has {100 * study.best_value:.2f} %"
        )

    while (done := len(_finished(study))) < trials:
        progress(done, trials)
        # Use a new seed for each trial, because with one seed every call would try the same points again.
        study.sampler = optuna.samplers.TPESampler(seed=_sampler_seed(plan.settings, study, shared=storage is not None))
        study.optimize(objective, n_trials=1, callbacks=[report_trial])
    progress(trials, trials)
    document = _document(study, plan.settings)
    write_json(out / f"search-{study.study_name}.json", document)
    return document


def _open_study(plan: SearchPlan, url: str) -> optuna.Study:
    """Creates the search in its storage, or opens it if it was started with the same recipe."""
    settings = plan.settings
    name = f"{settings.candidate}-{settings.budget}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            heartbeats = optuna.storages.RDBStorage(
                url, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S, heartbeat_stale_trial_callback=_retry
            )
        study = optuna.create_study(storage=heartbeats, study_name=name, direction="maximize", load_if_exists=True)
    except Exception as error:
        # SQLAlchemy raises many types of exceptions, and Optuna another one for an unknown URL.
        public_url = _without_password(url)
        reason = " ".join(str(error).split())[:160].replace(url, public_url)
        raise ConfigError(
            "an Optuna storage that can be used", f"'{public_url}' ({reason})", "correct the URL of --storage"
        ) from None
    config = asdict(plan.config_of({key: space.ends[0] for key, space in settings.space.items()}))
    config["distill"] = {key: value for key, value in config["distill"].items() if key not in MAY_DIFFER}
    recipe = sha256(json.dumps([config, asdict(settings)], default=str).encode()).hexdigest()
    _require_same(study, _RECIPE, recipe, "recipe")
    return study


def _require_same(study: optuna.Study, name: str, value: str, what: str) -> None:
    """Stores an attribute of a search, or raises a RunError if the search was started with another value of it."""
    if study.user_attrs.get(name) not in (None, value):
        expected = f"the {what} that the search '{study.study_name}' was started with"
        raise RunError(expected, "another one", "undo the change, or choose another --out or --storage")
    study.set_user_attr(name, value)


def _retry(study: optuna.Study, trial: FrozenTrial | Trial) -> None:
    """Queues a trial again with the same values and the same folder."""
    study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)


def _accuracy_of(order: Order, name: str, logs: Path, trials: int) -> float:
    """Returns the validation accuracy of a trial's run, 0 to 1; trains the run first if it is not finished."""
    folder = RunFolder(order.out)
    if folder.recipe.exists():
        folder.require_same_recipe(order.config)
    if not folder.evaluation.exists():
        run_side_by_side({name: order}, logs, total=trials)
    return float(read_figures(order.out)["val_accuracy"])


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url.partition("://")[0] + "://…"


def _sampler_seed(settings: SearchSettings, study: optuna.Study, *, shared: bool) -> int:
    """Returns the sampler's seed for the next trial; processes that share a storage get different seeds."""
    process = f"{socket.gethostname()}:{os.getpid()}" if shared else ""
    text = f"{settings.seed}/{len(study.get_trials(deepcopy=False))}/{process}"
    return int.from_bytes(sha256(text.encode()).digest()[:4])


def _suggest(trial: Trial, settings: SearchSettings) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, space in settings.space.items():
        if space.choices:
            values[name] = trial.suggest_categorical(name, space.choices)
        elif space.integer:
            values[name] = trial.suggest_int(name, *space.ends, log=space.log)
        else:
            values[name] = trial.suggest_float(name, *space.ends, log=space.log)
    return values


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _document(study: optuna.Study, settings: SearchSettings) -> dict[str, Any]:
    def row(trial: FrozenTrial) -> dict[str, Any]:
        run = trial.user_attrs[_FOLDER]
        return {"number": trial.number, "run": run, "settings": trial.params, "val_accuracy": trial.value}

    best = row(study.best_trial)
    return {
        "candidate": settings.candidate,
        "budget": settings.budget,
        "value": "accuracy on the validation split, best epoch",
        "trials": [row(trial) for trial in _finished(study)],
        "best": {**best, "recipe": f"search/{study.study_name}/{best['run']}/recipe.toml"},
    }

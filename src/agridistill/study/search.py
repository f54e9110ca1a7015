"""`compare --search N`: settings of one candidate by Optuna, judged on the validation split alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from agridistill.errors import ConfigError
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import write_json
from agridistill.study.job import Order
from agridistill.study.plan import SearchSettings
from agridistill.study.side_by_side import failed, run_side_by_side
from agridistill.study.summary import figures_of
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import DistillConfig

RESULT_NAME, STORAGE_NAME = "search.json", "search.db"
_OWNER, _FOLDER = "owner", "folder"


@dataclass(frozen=True)
class SearchPlan:
    """A search, resolved.

    Attributes:
        settings: of the section `compare.search`.
        config_of: settings of the run with these values.
    """

    settings: SearchSettings
    config_of: Callable[[Mapping[str, float]], DistillConfig]


def search(
    data: Path,
    out: Path,
    plan: SearchPlan,
    trials: int,
    *,
    teacher: Path,
    storage: str | None = None,
    split_file: Path | None = None,
    progress: ProgressCallback = silent,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Tries settings until so many trials are finished; goes on after a kill, also in the trial that was killed.

    The value of a trial is the best epoch's accuracy on the validation split. The test split is never looked at here.
    Several machines may share one storage and one folder.

    Args:
        data: the photos.
        out: folder of the study: `search` with the trials' runs, `search.json`, and `search.db` without `storage`.
        plan: what is tried.
        trials: finished ones in all, those of earlier calls too.
        teacher: run folder.
        storage: any Optuna storage by URL; None keeps SQLite in `out`.
        split_file: made by `data split`.
        progress: told (trials, trials in all).
        tell: told a line where a trial has finished.

    Returns:
        The document of `search.json`: every trial, the best, and its settings as `--set` takes them.

    Raises:
        AgriDistillError: a trial failed, or the storage cannot be used.
    """
    settings = plan.settings
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = storage or f"sqlite:///{(out / STORAGE_NAME).resolve()}"
    name = f"{settings.candidate}-{settings.budget}" if settings.budget else settings.candidate
    try:
        study = optuna.create_study(
            storage=url,
            study_name=name,
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=settings.seed),
            load_if_exists=True,
        )
    except Exception as error:
        # SQLAlchemy's many kinds, and Optuna's for a URL that it does not know.
        reason = " ".join(str(error).split())[:160]
        raise ConfigError("an Optuna storage that can be used", f"'{url}' ({reason})", "check --storage") from None
    _take_up_killed(study)
    while (done := len(_finished(study))) < trials:
        progress(done, trials)
        trial = study.ask()
        values = _suggested(trial, settings)
        run = out / "search" / str(trial.user_attrs.get(_FOLDER, f"trial-{trial.number:04}"))
        trial.set_user_attr(_OWNER, _owner())
        trial.set_user_attr(_FOLDER, run.name)
        config = plan.config_of(values)
        order = Order(str(data), str(run), config, str(teacher), str(split_file) if split_file else None)
        if not RunFolder(run).evaluation.exists():
            failures = run_side_by_side(
                [(run.name, order)],
                slots=1,
                environment=lambda slot: {},
                logs=out / "logs",
                on_tick=lambda: None,
                on_end=lambda name: None,
            )
            if failures:
                study.tell(trial, state=TrialState.FAIL)
                raise failed(failures, trials)
        value = figures_of(run)["val_accuracy"]
        study.tell(trial, value)
        shown = ", ".join(f"{key} {value:.3g}" for key, value in values.items())
        tell(
            f"{run.name}: {100 * value:.2f} % on the validation split with {shown}; best {100 * study.best_value:.2f} %"
        )
    progress(trials, trials)
    document = _document(study, settings)
    write_json(out / RESULT_NAME, document)
    return document


def _suggested(trial: Trial, settings: SearchSettings) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, space in settings.space.items():
        if space.choices:
            values[name] = float(trial.suggest_categorical(name, space.choices))
        else:
            values[name] = trial.suggest_float(name, space.low, space.high, log=space.log)
    return values


def _owner() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _take_up_killed(study: optuna.Study) -> None:
    """Trials that a process of this machine began and did not end are tried again, in their own folders."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, process = str(trial.user_attrs.get(_OWNER, ":0")).rpartition(":")
        if host in ("", socket.gethostname()) and not _lives(int(process)):
            study.tell(trial.number, state=TrialState.FAIL)
            folder = {_FOLDER: trial.user_attrs[_FOLDER]} if _FOLDER in trial.user_attrs else {}
            study.enqueue_trial(trial.params, user_attrs=folder)


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
            "settings": best.params,
            "val_accuracy": best.value,
            "set": [f"{name}={value:.4g}" for name, value in best.params.items()],
        },
    }

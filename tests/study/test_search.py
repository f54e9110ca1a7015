"""The search judges on the validation split, goes on where it stopped, and says what it found."""

from __future__ import annotations

import contextlib
import csv
import json
import sqlite3
import tomllib
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna")

from agridistill.cli.main import main  # noqa: E402
from agridistill.config import search_plan  # noqa: E402
from agridistill.errors import ConfigError, RunError  # noqa: E402
from agridistill.study.search import GRACE_S, search  # noqa: E402
from agridistill.study.workers import Order  # noqa: E402
from agridistill.training.run_folder import ENVIRONMENT_KEYS, RunFolder  # noqa: E402

RECIPE = {
    "data": {"image_size": 64},
    "distill": {
        "model": "mobilenetv3_small_050",
        "epochs": 2,
        "batch_size": 16,
        "pretrained": False,
        "workers": 0,
        "precision": "fp32",
    },
    "compare": {
        "candidates": [{"name": "ce"}, {"name": "hybrid", "set": ["temperature=2"]}],
        "search": {
            "candidate": "hybrid",
            "space": {"w_att": {"low": 1.0, "high": 10.0, "log": True}, "w_kd": {"choices": [0.5, 0.9]}},
        },
    },
}


def changed(**settings: object) -> dict[str, object]:
    compare = RECIPE["compare"]
    return {**RECIPE, "compare": {**compare, "search": {**compare["search"], **settings}}}  # type: ignore[dict-item,index]


@pytest.fixture(scope="module")
def searched(leaves: Path, teacher_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "study"
    told: list[str] = []
    search(leaves, out, search_plan(RECIPE), 2, teacher=teacher_run, tell=told.append)
    assert len(told) == 2
    return out


@pytest.mark.slow
def test_a_trial_is_worth_its_best_validation_epoch(searched: Path) -> None:
    document = json.loads((searched / "search-hybrid-full.json").read_text())
    assert len(document["trials"]) == 2
    for trial in document["trials"]:
        run = searched / "search/hybrid-full" / trial["run"]
        with (run / "metrics.csv").open() as file:
            assert trial["val_accuracy"] == max(float(row["val/accuracy"]) for row in csv.DictReader(file))
        recipe = (run / "recipe.toml").read_text()
        assert f"w_att = {trial['settings']['w_att']}" in recipe
        assert "temperature = 2" in recipe
        assert 1 <= trial["settings"]["w_att"] <= 10
        assert trial["settings"]["w_kd"] in (0.5, 0.9)
    best = max(document["trials"], key=lambda trial: trial["val_accuracy"])
    assert document["best"]["val_accuracy"] == best["val_accuracy"]


def test_the_test_split_does_not_choose(
    leaves: Path, teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Runs of which the test and the validation split say the opposite.
    val, test = iter([0.7, 0.9, 0.8]), iter([0.9, 0.7, 0.8])

    def run(orders: dict[str, Order], *_: object, **__: object) -> None:
        (order,) = orders.values()
        folder = RunFolder(order.out)
        folder.path.mkdir(parents=True)
        folder.write_recipe(order.config)
        folder.write_environment(dict.fromkeys(ENVIRONMENT_KEYS))
        folder.metrics.write_text(f"epoch,val/accuracy\n1,0.1\n2,{next(val)}\n")
        figures = dict.fromkeys(("model", "macro_f1", "nll_nats", "calibration_error", "parameters", "macs"), 0)
        more = {"accuracy": next(test), "accuracy_ci95": [0, 1], "image_size": 64, "best_epoch": 2, "train_s": 1}
        folder.evaluation.write_text(json.dumps(figures | more))

    monkeypatch.setattr("agridistill.study.search.run_side_by_side", run)
    document = search(leaves, tmp_path, search_plan(RECIPE), 3, teacher=teacher_run)
    assert [trial["val_accuracy"] for trial in document["trials"]] == [0.7, 0.9, 0.8]
    assert document["best"]["number"] == 1
    tried = {(trial["settings"]["w_att"], trial["settings"]["w_kd"]) for trial in document["trials"]}
    assert len(tried) == 3


def test_calls_that_go_on_try_other_points(
    leaves: Path, teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agridistill.study.search._accuracy_of", lambda *order: 0.5)
    for trials in range(1, 6):
        document = search(leaves, tmp_path, search_plan(RECIPE), trials, teacher=teacher_run)
    assert len({trial["settings"]["w_att"] for trial in document["trials"]}) == 5


@pytest.mark.slow
def test_another_recipe_is_another_search(searched: Path, leaves: Path, teacher_run: Path) -> None:
    with pytest.raises(RunError, match="the recipe that the search 'hybrid-full' was started with; got another one"):
        search(leaves, searched, search_plan(changed(seed=5)), 2, teacher=teacher_run)
    other = {
        **RECIPE,
        "compare": {**RECIPE["compare"], "search": {"candidate": "kd", "space": {"temperature": {"choices": [1, 2]}}}},
    }
    other["compare"]["candidates"] = [{"name": "ce"}, {"name": "kd"}]
    search(leaves, searched, search_plan(other), 1, teacher=teacher_run)
    recipe = tomllib.loads((searched / "search/kd-full/trial-0000/recipe.toml").read_text())
    assert recipe["objective"]["method"] == "kd"


def test_a_search_goes_on_with_other_loaders_but_not_with_another_teacher(
    leaves: Path, teacher_run: Path, student_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agridistill.study.search._accuracy_of", lambda *order: 0.5)
    search(leaves, tmp_path, search_plan(RECIPE), 1, teacher=teacher_run)
    with pytest.raises(RunError, match="the teacher that the search 'hybrid-full' was started with; got another one"):
        search(leaves, tmp_path, search_plan(RECIPE), 2, teacher=student_run)
    changed_loaders = {**RECIPE, "distill": {**RECIPE["distill"], "workers": 1, "keep_views": True}}  # type: ignore[dict-item]
    document = search(leaves, tmp_path, search_plan(changed_loaders), 2, teacher=teacher_run)
    assert len(document["trials"]) == 2


def test_words_and_whole_numbers_can_be_searched() -> None:
    space = {"distance": {"choices": ["l2", "kl"]}, "batch_size": {"low": 8, "high": 32, "integer": True}}
    found = search_plan(changed(space=space)).config_of({"distance": "kl", "batch_size": 12})
    assert (found.objective.distance, found.distill.batch_size) == ("kl", 12)


@pytest.mark.slow
def test_a_killed_trial_is_tried_again_in_its_own_folder(searched: Path, leaves: Path, teacher_run: Path) -> None:
    study = optuna.load_study(study_name="hybrid-full", storage=f"sqlite:///{searched / 'search.db'}")
    killed, alive = study.ask(), study.ask()
    w_att = killed.suggest_float("w_att", 1.0, 10.0, log=True)
    killed.suggest_categorical("w_kd", (0.5, 0.9))
    killed.set_user_attr("folder", "trial-of-the-killed")
    with contextlib.closing(sqlite3.connect(searched / "search.db")) as database, database:
        for trial, age_s in ((killed, GRACE_S + 5), (alive, 0)):
            row = (trial._trial_id, f"-{age_s} seconds")
            database.execute("INSERT INTO trial_heartbeats (trial_id, heartbeat) VALUES (?, datetime('now', ?))", row)
    document = search(leaves, searched, search_plan(RECIPE), 3, teacher=teacher_run)
    again = document["trials"][-1]
    assert again["run"] == "trial-of-the-killed"
    assert again["settings"]["w_att"] == w_att
    states = {trial.number: trial.state.name for trial in study.get_trials()}
    assert states[killed.number] == "FAIL"
    assert states[alive.number] == "RUNNING"


def test_an_interrupted_trial_is_resumed_at_once(
    leaves: Path, teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Order] = []

    def interrupted_once(order: Order, *rest: object) -> float:
        tried.append(order)
        if len(tried) == 1:
            raise KeyboardInterrupt
        return 0.5

    monkeypatch.setattr("agridistill.study.search._accuracy_of", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        search(leaves, tmp_path, search_plan(RECIPE), 1, teacher=teacher_run)
    search(leaves, tmp_path, search_plan(RECIPE), 1, teacher=teacher_run)
    assert tried[0] == tried[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidate": "hybird"}, "a known candidate in compare.search; got 'hybird'; did you mean 'hybrid'"),
        ({"budget": "ful"}, "a known budget in compare.search; got 'ful'; did you mean 'full'"),
        (
            {"space": {"w_tat": {"low": 1.0, "high": 2.0}}},
            "a known recipe key; got 'w_tat' in --set; did you mean 'w_att'",
        ),
        ({"space": {"w_att": {"low": 2.0, "high": 1.0}}}, "low below high; got 2.0 and 1.0"),
        ({"space": {"w_att": {"low": 0.0, "high": 1.0, "log": True}}}, "low above 0 with log = true"),
        ({"space": {"w_att": {"low": -1.0, "high": 1.0}}}, r"objective\.w_att.* 0.*; got -1"),
        ({"space": {}}, "at least one setting to search"),
    ],
)
def test_what_cannot_be_searched_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search_plan(changed(**settings))  # type: ignore[arg-type]


def test_a_storage_that_is_none_is_told(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"an Optuna storage that can be used; got 'nosuch://me:\*\*\*@host"
    ) as raised:
        search(leaves, tmp_path, search_plan(RECIPE), 1, teacher=teacher_run, storage="nosuch://me:s3cret@host/x")
    assert "s3cret" not in str(raised.value)


def test_odd_folders_hold_their_own_database(
    leaves: Path, teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agridistill.study.search._accuracy_of", lambda *order: 0.5)
    odd = tmp_path / "50%41 a?b#c"
    search(leaves, odd, search_plan(RECIPE), 1, teacher=teacher_run)
    assert (odd / "search.db").is_file()


@pytest.mark.slow
def test_the_command_prints_the_best_settings_and_how_to_use_them(
    searched: Path, leaves: Path, teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tomli_w

    recipe = tmp_path / "study.toml"
    recipe.write_text(tomli_w.dumps(RECIPE))
    command = ["compare", str(leaves), "--recipe", str(recipe), "--out", str(searched), "--search", "2"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert "a teacher for --search; got none; pass --teacher RUN" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*command, "--teacher", str(teacher_run)])
    assert ended.value.code == 0
    shown = capsys.readouterr()
    best = json.loads((searched / "search-hybrid-full.json").read_text())["best"]
    assert f"w_att = {best['settings']['w_att']}" in shown.out
    assert f"--recipe '{searched}/search/hybrid-full/{best['run']}/recipe.toml'" in shown.err.replace(
        f"--recipe {searched}", f"--recipe '{searched}"
    ).replace("recipe.toml ", "recipe.toml' ")
    with pytest.raises(SystemExit):
        main([*command, "--teacher", str(teacher_run), "--jobs", "2"])
    assert "expected no --jobs with --search, which trains one run at a time; got --jobs" in capsys.readouterr().err

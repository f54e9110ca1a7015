"""The search judges on the validation split, goes on where it stopped, and says what it found."""

from __future__ import annotations

import csv
import json
import socket
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna")

from agridistill.cli.main import main  # noqa: E402
from agridistill.config import search_plan  # noqa: E402
from agridistill.errors import ConfigError  # noqa: E402
from agridistill.study.search import search  # noqa: E402

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
        "search": {"space": {"w_att": {"low": 1.0, "high": 10.0, "log": True}, "w_kd": {"choices": [0.5, 0.9]}}},
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


def test_a_trial_is_worth_its_best_validation_epoch(searched: Path) -> None:
    document = json.loads((searched / "search.json").read_text())
    assert len(document["trials"]) == 2
    for trial in document["trials"]:
        run = searched / "search" / trial["run"]
        with (run / "metrics.csv").open() as file:
            assert trial["val_accuracy"] == max(float(row["val/accuracy"]) for row in csv.DictReader(file))
        recipe = (run / "recipe.toml").read_text()
        assert f"w_att = {trial['settings']['w_att']}" in recipe
        assert "temperature = 2" in recipe
        assert 1 <= trial["settings"]["w_att"] <= 10
        assert trial["settings"]["w_kd"] in (0.5, 0.9)
    best = max(document["trials"], key=lambda trial: trial["val_accuracy"])
    assert document["best"]["val_accuracy"] == best["val_accuracy"]


def test_the_test_split_is_not_looked_at(searched: Path, leaves: Path, teacher_run: Path) -> None:
    first = (searched / "search.json").read_text()
    for file in searched.glob("search/*/evaluation.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "accuracy": 1.0}))
    search(leaves, searched, search_plan(RECIPE), 2, teacher=teacher_run)
    assert (searched / "search.json").read_text() == first


def test_a_killed_trial_is_tried_again_in_its_own_folder(searched: Path, leaves: Path, teacher_run: Path) -> None:
    study = optuna.load_study(study_name="hybrid-full", storage=f"sqlite:///{searched / 'search.db'}")
    killed = study.ask()
    values = {"w_att": killed.suggest_float("w_att", 1.0, 10.0, log=True), "w_kd": 0.9}
    killed.suggest_categorical("w_kd", (0.5, 0.9))
    killed.set_user_attr("owner", f"{socket.gethostname()}:{2**22 + 1}")  # no process has this number
    killed.set_user_attr("folder", "trial-of-the-killed")
    elsewhere = study.ask()
    elsewhere.set_user_attr("owner", "another-machine:1")
    document = search(leaves, searched, search_plan(RECIPE), 3, teacher=teacher_run)
    again = document["trials"][-1]
    assert again["run"] == "trial-of-the-killed"
    assert again["settings"]["w_att"] == values["w_att"]
    states = {trial.number: trial.state.name for trial in study.get_trials()}
    assert states[killed.number] == "FAIL"
    assert states[elsewhere.number] == "RUNNING"  # another machine's is not ours to end


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
        ({"space": {"w_att": {"low": 0.0, "high": 1.0, "log": True}}}, "low above 0 with log"),
        ({"space": {"w_att": {"low": -1.0, "high": 1.0}}}, "a finite objective.w_att of at least 0"),
        ({"space": {}}, "at least one setting to search"),
    ],
)
def test_what_cannot_be_searched_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search_plan(changed(**settings))  # type: ignore[arg-type]


def test_a_storage_that_is_none_is_told(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"an Optuna storage that can be used; got 'nosuch://host'"):
        search(leaves, tmp_path, search_plan(RECIPE), 1, teacher=teacher_run, storage="nosuch://host")


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
    best = json.loads((searched / "search.json").read_text())["best"]
    assert f"--set w_att={best['settings']['w_att']:.4g}" in shown.out
    assert "Next: agridistill distill" in shown.err

from __future__ import annotations

import datetime
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from agridistill.config import (
    SECTIONS,
    distill_config,
    read_recipe,
    require_serves,
    train_config,
    with_options,
    with_overrides,
)
from agridistill.errors import ConfigError
from agridistill.training.settings import DistillConfig, PairSettings, TrainConfig

RECIPES = Path(__file__).parent.parent / "recipes"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_an_empty_recipe_gives_the_defaults() -> None:
    assert train_config({}) == TrainConfig()
    assert distill_config({}) == DistillConfig()


def test_a_recipe_reaches_every_section(tmp_path: Path) -> None:
    recipe = read_recipe(
        write(
            tmp_path,
            """
            [data]
            image_size = 96
            [augmentation]
            flip = false
            [train]
            epochs = 3
            [distill]
            lr = 2e-3
            [objective]
            pairs = [{student = 32, teacher = 16, weight = 2}]
            """,
        )
    )
    config = distill_config(recipe)
    assert config.data.image_size == train_config(recipe).data.image_size == 96
    assert not config.augmentation.flip
    assert train_config(recipe).train.epochs == 3
    assert config.distill.lr == 0.002
    assert config.objective.pairs == (PairSettings(32, 16, 2.0),)


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, "hybrid-hint"),
        ({"weights": "runs/student"}, "hybrid"),
        ({"weights": "runs/student", "int8": True}, "kd"),
    ],
)
def test_the_method_fits_what_is_trained_unless_it_is_named(settings: dict[str, object], method: str) -> None:
    assert distill_config({"distill": settings}).objective.method == method
    assert distill_config({"distill": settings, "objective": {"method": "auto"}}).objective.method == method
    assert distill_config({"distill": settings, "objective": {"method": "dkd"}}).objective.method == "dkd"


@pytest.mark.parametrize(
    ("command", "recipe", "message"),
    [
        (
            "train",
            {"data": {}, "distill": {}},
            r"with a section \[train\]; got one with \[data\], \[distill\]; use it with 'agridistill distill'",
        ),
        ("train", {"objective": {}}, r"got one with \[objective\]; use it with 'agridistill distill'"),
        ("distill", {"train": {}}, r"a section \[distill\]; got one with \[train\]; use it with 'agridistill train'"),
        ("train", {}, "got an empty one; add the section or leave out --recipe"),
    ],
)
def test_a_recipe_of_another_command_is_refused(
    command: str, recipe: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        require_serves(recipe, command)


@pytest.mark.parametrize("sections", [("train",), ("train", "distill", "data"), ("data",), ("augmentation", "data")])
def test_a_recipe_that_says_something_for_a_command_serves_it(sections: tuple[str, ...]) -> None:
    require_serves({section: {} for section in sections}, "train")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.name)
def test_the_recipes_that_we_ship_are_valid(path: Path) -> None:
    recipe = read_recipe(path)
    assert train_config(recipe) != TrainConfig()
    assert distill_config(recipe) != DistillConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepoch = 3", r"a known key of \[train\]; got 'epoch' in .*; did you mean 'epochs'\?"),
        ("[trian]\nepochs = 3", r"a known recipe section; got \[trian\] in .*; did you mean 'train'\?"),
        ("data = 3", r"a section \[data\]; got a single value"),
        ("[train", "a recipe in TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml', which does not exist; check the path; .*ablations, .*cpu, "):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize("name", [path.stem for path in sorted(RECIPES.glob("*.toml"))])
def test_a_shipped_recipe_is_found_by_its_name_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A folder of that name, as of photos or runs, is no recipe.
    (tmp_path / name).mkdir()
    assert read_recipe(name) == read_recipe(Path(name)) == read_recipe(RECIPES / f"{name}.toml")


def test_a_file_of_the_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cpu").write_text("[train]\nepochs = 3\n")
    assert read_recipe("cpu") == {"train": {"epochs": 3}}


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train", "epochs", "many", r"train.epochs: .*integer.*; got 'many'"),
        ("train", "epochs", 0, r"train\.epochs.* 1.*; got 0"),
        ("train", "lr", -1, r"train\.lr.* 0.*; got -1"),
        ("train", "precision", "fp8", r"train\.precision.*'fp32' or 'bf16'.*; got 'fp8'"),
        ("data", "image_size", 2, r"data\.image_size.* 16.*; got 2"),
        ("data", "val_fraction", 0.9, r"data.val_fraction \+ data.test_fraction below 1"),
        ("objective", "temperature", 0, r"objective\.temperature.* 0.*; got 0"),
        ("objective", "w_att", -2, r"objective\.w_att.* 0.*; got -2"),
        ("objective", "pairs", [], r"objective\.pairs.* 1 item.*; got \[\]"),
        ("objective", "pairs", [{"studnt": 16}], "'studnt'; did you mean 'student'"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(section: str, key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        (train_config if section in ("train", "data") else distill_config)({section: {key: value}})
    assert "\n" not in str(caught.value)


def test_overrides_find_their_section_and_their_type() -> None:
    recipe = with_overrides(
        {"distill": {"epochs": 5}},
        "distill",
        ["lr=0.01", "temperature=2", "data.image_size=64", "method=kd", "flip=false", "pairs=[{student = 32}]"],
    )
    config = distill_config(recipe)
    assert (config.distill.lr, config.objective.temperature, config.data.image_size) == (0.01, 2.0, 64)
    assert (config.objective.method, config.augmentation.flip, config.distill.epochs) == ("kd", False, 5)
    assert config.objective.pairs == (PairSettings(32, 16),)
    assert train_config(with_overrides({}, "train", ["lr=0.01"])).train.lr == 0.01


def test_overrides_leave_the_recipe_as_it_was() -> None:
    recipe = {"train": {"epochs": 5}}
    with_overrides(recipe, "train", ["epochs=7"])
    with_options(recipe, {("train", "epochs"): 8})
    assert recipe == {"train": {"epochs": 5}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "--set KEY=VALUE; got 'epochs'"),
        ("epoch=3", "'epoch' in --set; did you mean 'epochs'"),
        ("trian.epochs=3", "'trian' in --set trian.epochs; did you mean 'train'"),
        ("train.epoch=3", r"a known key of \[train\]; got 'epoch' in --set"),
    ],
)
def test_a_wrong_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_overrides({}, "train", [override])


def test_options_that_were_not_given_change_nothing() -> None:
    recipe = with_options({"train": {"epochs": 5}}, {("train", "epochs"): None, ("train", "lr"): 0.5})
    assert asdict(train_config(recipe).train)["epochs"] == 5
    assert train_config(recipe).train.lr == 0.5


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("objective", "pairs", 5, "objective.pairs: .*; got 5"),
        ("objective", "pairs", [5], "objective.pairs.0: .*; got 5"),
        ("distill", "epochs", "1", "distill.epochs: .*integer; got '1'"),
        ("distill", "epochs", True, "distill.epochs: .*integer; got True"),
        ("distill", "lr", "0.1", "distill.lr: .*number; got '0.1'"),
        ("augmentation", "flip", "yes", "augmentation.flip: .*boolean; got 'yes'"),
        ("augmentation", "flip", 1, "augmentation.flip: .*boolean; got 1"),
        ("distill", "lr", float("inf"), "distill.lr: .*finite number.*; got inf"),
        ("distill", "lr", float("nan"), "distill.lr: .*finite number.*; got nan"),
        ("distill", "seed", datetime.date(2024, 1, 2), "distill.seed: .*finite number.*; got 2024-01-02"),
    ],
)
def test_a_value_of_another_type_is_refused_and_not_converted(
    section: str, key: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        distill_config({section: {key: value}})


def test_a_whole_number_is_a_float_and_a_list_a_tuple() -> None:
    config = distill_config({"distill": {"lr": 1}, "objective": {"pairs": [{"student": 32, "weight": 2}]}})
    assert (config.distill.lr, config.objective.pairs) == (1.0, (PairSettings(32, weight=2.0),))


@pytest.mark.parametrize(
    ("command", "override"),
    [("train", "objective.temperature=2"), ("train", "distill.lr=1"), ("distill", "train.lr=1")],
)
def test_an_override_of_a_section_that_the_command_does_not_use_is_refused(command: str, override: str) -> None:
    with pytest.raises(ConfigError, match=rf"a section that {command} uses \({command}, .*data, augmentation\)"):
        with_overrides({}, command, [override])


@pytest.mark.parametrize(
    "sections",
    [("train", "data", "augmentation"), ("distill", "objective", "data", "augmentation")],
    ids=["train", "distill"],
)
def test_a_key_without_its_section_names_one_setting(sections: tuple[str, ...]) -> None:
    keys = [field.name for section in sections for field in fields(SECTIONS[section])]
    assert len(keys) == len(set(keys))

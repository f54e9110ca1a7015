"""Recipes: TOML -> typed, strict settings. An unknown key is an error that names the nearest known one.

A recipe holds the sections `data`, `augmentation`, `train` (for the command `train`), `distill` and `objective` (for
the command `distill`), and `compare`, so one file describes a teacher, its students and a study of them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from agridistill.arguments import described, to_path
from agridistill.data.labels import FOLDERS, Layout
from agridistill.data.views import Augmentation
from agridistill.errors import ConfigError, nearest, needs_extra
from agridistill.settings_file import build_settings, read_toml, require_known_key, require_known_keys, setting_names
from agridistill.study.plan import ComparePlan, CompareSettings, SearchPlan, plan_search, plan_study
from agridistill.training.settings import DataSettings, DistillConfig, FitSettings, ObjectiveSettings, TrainConfig

SECTIONS: Mapping[str, type[Any]] = {
    "data": DataSettings,
    "augmentation": Augmentation,
    "train": FitSettings,
    "distill": FitSettings,
    "objective": ObjectiveSettings,
    "compare": CompareSettings,
}
_SECTIONS_OF = {
    "train": ("train", "data", "augmentation"),
    "distill": ("distill", "objective", "data", "augmentation"),
    "compare": ("compare", "data", "augmentation"),
}
# In a wheel beside this package's modules, in a checkout at its root.
_RECIPE_FOLDERS = (Path(__file__).parent / "shipped" / "recipes", Path(__file__).parents[2] / "recipes")
SHARED_SECTIONS = frozenset({"data", "augmentation"})
Recipe = dict[str, dict[str, Any]]


def read_recipe(recipe: Path | str) -> Recipe:
    """Reads a recipe and checks its keys.

    Args:
        recipe: a file, or the name of a shipped recipe ("cpu"); a file of that name in the current folder wins.

    Raises:
        ConfigError: not there, no TOML, or an unknown section or key.
    """
    path = _recipe_path(Path(recipe))
    alike = nearest(path.stem, shipped_recipes())
    absent = f"check the path; shipped recipes: {', '.join(shipped_recipes())}"
    document = read_toml(path, "a recipe", absent=absent + (f"; {alike}" if alike.startswith("did you mean") else ""))
    _check_document(document, f"in '{path}'")
    return document


def _check_document(document: Mapping[str, Any], where: str) -> None:
    for section, content in document.items():
        if section not in SECTIONS:
            raise ConfigError("a known recipe section", f"[{section}] {where}", _section_remedy(str(section)))
        if not isinstance(content, dict):
            raise ConfigError(f"a section [{section}]", f"a single value {where}", "write it as a table")
        require_known_keys(SECTIONS[section], content, where, section)


def _section_remedy(name: str) -> str:
    """Names the section of a key that stands in place of a section."""
    owner = next((section for section, kind in SECTIONS.items() if name in setting_names(kind)), None)
    return f"write '{name}' into the section [{owner}]" if owner else nearest(name, SECTIONS)


def recipe_from(command: str, config: object, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of a Python call, checked as a recipe file is.

    Args:
        command: "train", "distill" or "compare".
        config: a `TrainConfig` or `DistillConfig`, a dict of sections, the path of a recipe file, or None for none.
        settings: by key as in a recipe, "epochs" or "distill.epochs"; they override `config`.

    Raises:
        ConfigError: of another type or for another command, or an unknown section or key.
    """
    recipe = _given_recipe(config)
    if recipe or isinstance(config, str | Path):
        require_serves(recipe, command)
    located = {_locate(command, name, "in the settings"): _as_plain(value) for name, value in settings.items()}
    return _changed(recipe, located)


def _given_recipe(config: object) -> Recipe:
    if config is None:
        return {}
    if isinstance(config, TrainConfig | DistillConfig):
        return asdict(config)
    if isinstance(config, str | Path):
        return read_recipe(to_path("config", config))
    if isinstance(config, Mapping):
        document = {
            str(section): {str(key): _as_plain(value) for key, value in content.items()}
            if isinstance(content, Mapping)
            else content
            for section, content in config.items()
        }
        _check_document(document, "in the settings")
        return document
    raise ConfigError(
        "settings as a config object, a dict of sections or the path of a recipe",
        described(config),
        "pass one of these, or single settings as keywords such as epochs=3",
    )


def _as_plain(value: Any) -> Any:
    """A Python value as JSON and TOML hold it: a path as text, a numpy scalar as a number."""
    if isinstance(value, Path):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with AgriDistill: their files by their names."""
    folder = next((folder for folder in _RECIPE_FOLDERS if folder.is_dir()), None)
    files = folder.glob("*.toml") if folder is not None else ()
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def _recipe_path(named: Path) -> Path:
    """The file of a path or a shipped name; a folder of that name does not hide a shipped recipe."""
    if named.exists() and not named.is_dir():
        return named
    return shipped_recipes().get(str(named), named)


def serves(recipe: Recipe, command: str) -> bool:
    """Whether a recipe is for the command: it has a section of the command, or only sections of all commands."""
    own = set(_SECTIONS_OF[command]) - SHARED_SECTIONS
    return bool(recipe) and (bool(own & set(recipe)) or set(recipe) <= SHARED_SECTIONS)


def require_serves(recipe: Recipe, command: str) -> None:
    """Checks that a recipe is for the command. Otherwise the command would silently use defaults.

    Raises:
        ConfigError: names the sections that the recipe has.
    """
    if serves(recipe, command):
        return
    got = "one with " + ", ".join(f"[{section}]" for section in recipe) if recipe else "an empty one"
    others = [name for name in _SECTIONS_OF if serves(recipe, name)]
    remedy = f"use it with 'agridistill {others[0]}'" if others else "write the section or leave --recipe away"
    raise ConfigError(f"a recipe with a section [{command}]", got, remedy)


def with_overrides(recipe: Recipe, command: str, overrides: Sequence[str]) -> Recipe:
    """Applies `--set key=value`, where the key is `section.key`, or a key that only one section of the command has.

    Args:
        overrides: such as "distill.lr=0.002", "temperature=2", "objective.pairs=[{student=32, teacher=32}]".

    Raises:
        ConfigError: no `=`, or an unknown key.
    """
    located = {}
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise ConfigError("--set key=value", f"'{override}'", "write the value after an equals sign")
        located[_locate(command, name.strip(), "in --set")] = _value(text.strip())
    return _changed(recipe, located)


def with_options(recipe: Recipe, options: Mapping[tuple[str, str], Any]) -> Recipe:
    """Applies command-line options by section and key; those that are None were not given."""
    return _changed(recipe, {place: _as_plain(value) for place, value in options.items() if value is not None})


def _changed(recipe: Recipe, values: Mapping[tuple[str, str], Any]) -> Recipe:
    changed = {section: dict(content) for section, content in recipe.items()}
    for (section, key), value in values.items():
        changed.setdefault(section, {})[key] = value
    return changed


def complete_recipe(
    command: Literal["train", "distill"],
    given: Recipe,
    data: Path,
    run: Path,
    *,
    teacher: Path | None = None,
    layout: Layout | None = None,
    resume: bool = False,
) -> tuple[Recipe, str]:
    """Settings that are left open: those of the run on a resume, else chosen by photos and hardware.

    Returns:
        The recipe, and the reason for what was chosen in a sentence; empty where nothing was.
    """
    if resume:
        stored = run / "recipe.toml"
        base = read_recipe(stored) if stored.exists() else {}
        if base:
            require_serves(base, command)
        return {name: {**base.get(name, {}), **given.get(name, {})} for name in {**base, **given}}, ""
    with needs_extra():
        from agridistill.training.defaults import choice_for
    choice = choice_for(command, given, data, teacher, layout or FOLDERS)
    return choice.recipe, choice.reason


def train_config(recipe: Recipe) -> TrainConfig:
    """The settings of `train`; a wrong type or range is a ConfigError."""
    return TrainConfig(**{name: _section(name, recipe) for name in _SECTIONS_OF["train"]})


def distill_config(recipe: Recipe) -> DistillConfig:
    """The settings of `distill`; a wrong type or range is a ConfigError."""
    return DistillConfig(**{name: _section(name, recipe) for name in _SECTIONS_OF["distill"]})


def compare_plan(recipe: Recipe, overrides: Sequence[str] = ()) -> ComparePlan:
    """The runs of `compare`: the recipe, changed by each budget, then by each candidate, then by `overrides`.

    Args:
        overrides: of `--set`. Those of [data] and [augmentation] also apply to a teacher that the study trains.

    Raises:
        ConfigError: a value of the wrong type or out of range, or an unknown name.
    """
    changed = with_overrides(recipe, "distill", overrides)
    shared = {name: dict(changed[name]) for name in SHARED_SECTIONS if name in changed}
    if "data" in shared:
        # The share of labels is for students only.
        shared["data"] |= {"labels": recipe.get("data", {}).get("labels", 1.0)}
    settings = _section("compare", recipe)
    return plan_study(settings, train_config({**recipe, **shared}), partial(_changed_config, recipe), overrides)


def search_plan(recipe: Recipe, overrides: Sequence[str] = ()) -> SearchPlan:
    """The trials of `compare --search`: the candidate under the budget, with searched values.

    Raises:
        ConfigError: a value of the wrong type or out of range, or an unknown name.
    """
    return plan_search(_section("compare", recipe), partial(_changed_config, recipe), overrides)


def _changed_config(recipe: Recipe, changes: Sequence[str]) -> DistillConfig:
    return distill_config(with_overrides(recipe, "distill", changes))


def _section(name: str, recipe: Recipe) -> Any:
    remedy = "correct the recipe or the option"
    return build_settings(SECTIONS[name], recipe.get(name, {}), section=name, remedy=remedy)


def _locate(command: str, name: str, where: str) -> tuple[str, str]:
    section, dot, key = name.partition(".")
    if dot:
        if section not in SECTIONS:
            raise ConfigError("a known recipe section", f"'{section}' {where} {name}", nearest(section, SECTIONS))
        if section not in _SECTIONS_OF[command]:
            used = ", ".join(_SECTIONS_OF[command])
            raise ConfigError(f"a section that {command} uses ({used})", f"'{name}' {where}", "leave it away")
        require_known_key(SECTIONS[section], key, where, section)
        return section, key
    sections = _SECTIONS_OF[command]
    owners = [section for section in sections if name in setting_names(SECTIONS[section])]
    if not owners:
        known = [key for section in sections for key in setting_names(SECTIONS[section])]
        raise ConfigError("a known recipe key", f"'{name}' {where}", nearest(name, known))
    return owners[0], name


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        # A bare word: names need no quotes on the command line.
        return text

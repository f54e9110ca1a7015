"""Reads recipes, which are TOML files, into typed settings; an unknown key is an error that suggests a known one.

A recipe holds the sections `data`, `augmentation`, `train` (for the command `train`), `distill` and `objective` (for
the command `distill`), and `compare`, so that one file describes a teacher, its students and their comparison.
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
# A wheel has the recipes in a folder of this package, a checkout has them at its root.
_RECIPE_FOLDERS = (Path(__file__).parent / "shipped" / "recipes", Path(__file__).parents[2] / "recipes")
SHARED_SECTIONS = frozenset({"data", "augmentation"})
Recipe = dict[str, dict[str, Any]]


def read_recipe(recipe: Path | str) -> Recipe:
    """Reads a recipe, section -> key -> value; a ConfigError names an unknown section or key.

    `recipe` is a file, or the name of a shipped recipe ("cpu"); a file with this name in the current folder is
    preferred to the shipped recipe.
    """
    path = Path(recipe)
    if not path.exists() or path.is_dir():
        path = shipped_recipes().get(str(recipe), path)
    absent = f"check the path; shipped recipes: {', '.join(shipped_recipes())}"
    document = read_toml(path, "a recipe", absent=absent)
    _check_document(document, f"in '{path}'")
    return document


def _check_document(document: Mapping[str, Any], where: str) -> None:
    for section, content in document.items():
        if section not in SECTIONS:
            raise ConfigError("a known recipe section", f"[{section}] {where}", _section_remedy(str(section)))
        if not isinstance(content, dict):
            raise ConfigError(f"a section [{section}]", f"a single value {where}", "write it as a table of keys")
        require_known_keys(SECTIONS[section], content, where, section)


def _section_remedy(name: str) -> str:
    """Returns the remedy for an unknown section name: the right section if the name is a key, else a similar name."""
    owner = next((section for section, kind in SECTIONS.items() if name in setting_names(kind)), None)
    return f"write '{name}' into the section [{owner}]" if owner else nearest(name, SECTIONS)


def recipe_from(command: str, config: object, settings: Mapping[str, Any]) -> Recipe:
    """Makes a recipe from the arguments of a Python call, with the same checks as for a recipe file.

    `config` is a `TrainConfig` or `DistillConfig`, a dict of sections, the path of a recipe file, or None; `settings`,
    recipe key ("epochs" or "distill.epochs") -> value, override it. A wrong type, or an unknown section or key is a
    ConfigError.
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
    expected = "settings as a config object, a dict of sections or the path of a recipe"
    raise ConfigError(expected, described(config), "pass one of these, or single settings as keywords such as epochs=3")


def _as_plain(value: Any) -> Any:
    """Converts a Python value to one that JSON and TOML can hold: a path to text, a numpy scalar to a number."""
    if isinstance(value, Path):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def shipped_recipes() -> dict[str, Path]:
    """Returns the recipes that are installed with AgriDistill: name -> file."""
    folder = next((folder for folder in _RECIPE_FOLDERS if folder.is_dir()), None)
    files = folder.glob("*.toml") if folder is not None else ()
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def serves(recipe: Recipe, command: str) -> bool:
    """Returns whether a recipe has a section for the command, or only sections that all commands use."""
    own = set(_SECTIONS_OF[command]) - SHARED_SECTIONS
    return bool(recipe) and (bool(own & set(recipe)) or set(recipe) <= SHARED_SECTIONS)


def require_serves(recipe: Recipe, command: str) -> None:
    """Raises a ConfigError if a recipe has no settings for the command, which would otherwise silently use defaults."""
    if serves(recipe, command):
        return
    got = "one with " + ", ".join(f"[{section}]" for section in recipe) if recipe else "an empty one"
    others = [name for name in _SECTIONS_OF if serves(recipe, name)]
    remedy = f"use it with 'agridistill {others[0]}'" if others else "add the section or leave out --recipe"
    raise ConfigError(f"a recipe with a section [{command}]", got, remedy)


def with_overrides(recipe: Recipe, command: str, overrides: Sequence[str]) -> Recipe:
    """Returns a copy of the recipe, changed by options `--set key=value` of "train", "distill" or "compare".

    The key may have its section before it, as in "objective.pairs=[{student=32, teacher=32}]"; without one, the
    command's first section with it is taken. A text without `=` or with an unknown key is a ConfigError.
    """
    located = {}
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise ConfigError("--set KEY=VALUE", f"'{override}'", "write the value after an equals sign")
        located[_locate(command, name.strip(), "in --set")] = _value(text.strip())
    return _changed(recipe, located)


def with_options(recipe: Recipe, options: Mapping[tuple[str, str], Any]) -> Recipe:
    """Returns a copy of the recipe, changed by options (section, key) -> value; None for one that was not given."""
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
    """Adds the settings that the user did not give: those of a resumed run, else a choice by photos and hardware.

    Returns the recipe, and a sentence with the reason for what was chosen; "" if nothing was chosen.
    """
    if resume:
        stored = run / "recipe.toml"
        base = read_recipe(stored) if stored.exists() else {}
        if base:
            require_serves(base, command)
        return {name: {**base.get(name, {}), **given.get(name, {})} for name in {**base, **given}}, ""
    with needs_extra():
        from agridistill.training.defaults import choice_for
    return choice_for(command, given, data, teacher, layout or FOLDERS)


def train_config(recipe: Recipe) -> TrainConfig:
    """Builds the typed settings of `train` from a recipe; a value of a wrong type or range is a ConfigError."""
    return TrainConfig(**{name: _section(name, recipe) for name in _SECTIONS_OF["train"]})


def distill_config(recipe: Recipe) -> DistillConfig:
    """Builds the typed settings of `distill` from a recipe; a value of a wrong type or range is a ConfigError."""
    return DistillConfig(**{name: _section(name, recipe) for name in _SECTIONS_OF["distill"]})


def compare_plan(recipe: Recipe, overrides: Sequence[str] = ()) -> ComparePlan:
    """Plans the runs of `compare`; a wrong value or an unknown name is a ConfigError.

    The settings of a run are the recipe, changed by the run's budget, then by its candidate, then by `overrides`
    (texts of `--set`). Those for [data] and [augmentation] also apply to a teacher that the study trains.
    """
    changed = with_overrides(recipe, "distill", overrides)
    shared = {name: dict(changed[name]) for name in SHARED_SECTIONS if name in changed}
    if "data" in shared:
        # An override of `data.labels` (the share of labels that is used) is for students only.
        shared["data"] |= {"labels": recipe.get("data", {}).get("labels", 1.0)}
    settings = _section("compare", recipe)
    return plan_study(settings, train_config({**recipe, **shared}), partial(_changed_config, recipe), overrides)


def search_plan(recipe: Recipe, overrides: Sequence[str] = ()) -> SearchPlan:
    """Plans the trials of `compare --search`: one candidate under one budget, with values chosen by the search."""
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
            raise ConfigError(f"a section that {command} uses ({used})", f"'{name}' {where}", "leave it out")
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
        # A word without quotes is text: users need not quote names on the command line.
        return text

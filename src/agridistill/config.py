"""Recipes: TOML -> typed, strict settings. An unknown key is an error that names the nearest known one.

A recipe holds the sections `data`, `augmentation`, `train` (for the command `train`), `distill` and `objective` (for
the command `distill`), and `compare`, so one file describes a teacher, its students and a study of them.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from agridistill.data.views import Augmentation
from agridistill.distillation.methods import METHODS, get_method
from agridistill.errors import ConfigError, nearest
from agridistill.study.plan import BudgetSettings, CandidateSettings, ComparePlan, CompareSettings, Job
from agridistill.training.settings import (
    DataSettings,
    DistillConfig,
    FitSettings,
    ObjectiveSettings,
    PairSettings,
    TrainConfig,
)

if TYPE_CHECKING:
    from agridistill.study.search import SearchPlan

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
# Tables within a section, whose keys are checked like a section's own.
_TABLES: Mapping[tuple[str, str], type[Any]] = {
    ("objective", "pairs"): PairSettings,
    ("compare", "budgets"): BudgetSettings,
    ("compare", "candidates"): CandidateSettings,
}
_SHARED_SECTIONS = frozenset({"data", "augmentation"})
Recipe = dict[str, dict[str, Any]]


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe file and checks its keys.

    Raises:
        ConfigError: not there, no TOML, or an unknown section or key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("a recipe file", f"'{path}', which does not exist", "check the path") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("a recipe in TOML", f"'{path}' ({error})", "correct the file") from None
    for section, content in document.items():
        if section not in SECTIONS:
            raise ConfigError("a known recipe section", f"[{section}] in '{path}'", nearest(section, SECTIONS))
        if not isinstance(content, dict):
            raise ConfigError(f"a section [{section}]", f"a single value in '{path}'", "write it as a table")
        for key in content:
            _require_key(section, key, f"in '{path}'")
    return document


def serves(recipe: Recipe, command: str) -> bool:
    """Whether a recipe says something for the command: in a section of its own, or only in sections of all commands."""
    own = set(_SECTIONS_OF[command]) - _SHARED_SECTIONS
    return bool(recipe) and (bool(own & set(recipe)) or set(recipe) <= _SHARED_SECTIONS)


def require_serves(recipe: Recipe, command: str) -> None:
    """Checks that a recipe was meant for the command; of another one's its command would train the defaults.

    Args:
        recipe: as read from a file.
        command: "train" or "distill".

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
        recipe: as read; not changed.
        command: "train" or "distill".
        overrides: such as "distill.lr=0.002", "temperature=2", "objective.pairs=[{student=32, teacher=32}]".

    Raises:
        ConfigError: no `=`, or an unknown key.
    """
    changed = {section: dict(content) for section, content in recipe.items()}
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise ConfigError("--set key=value", f"'{override}'", "write the value after an equals sign")
        section, key = _locate(command, name.strip())
        changed.setdefault(section, {})[key] = _value(text.strip())
    return changed


def with_options(recipe: Recipe, options: Mapping[tuple[str, str], Any]) -> Recipe:
    """Applies command-line options; those that are None were not given."""
    changed = {section: dict(content) for section, content in recipe.items()}
    for (section, key), value in options.items():
        if value is not None:
            changed.setdefault(section, {})[key] = value
    return changed


def train_config(recipe: Recipe) -> TrainConfig:
    """The settings of `train`.

    Raises:
        ConfigError: a value of the wrong type or out of range.
    """
    return TrainConfig(
        data=_build(DataSettings, "data", recipe),
        augmentation=_build(Augmentation, "augmentation", recipe),
        train=_build(FitSettings, "train", recipe),
    )


def distill_config(recipe: Recipe) -> DistillConfig:
    """The settings of `distill`.

    Raises:
        ConfigError: a value of the wrong type or out of range.
    """
    return DistillConfig(
        data=_build(DataSettings, "data", recipe),
        augmentation=_build(Augmentation, "augmentation", recipe),
        distill=_build(FitSettings, "distill", recipe),
        objective=_build(ObjectiveSettings, "objective", recipe),
    )


def compare_plan(recipe: Recipe) -> ComparePlan:
    """The runs of `compare`: the recipe, changed by each budget and then by each candidate.

    A candidate that is called like a method is that method, unless it names another.

    Raises:
        ConfigError: a value of the wrong type or out of range, or an unknown name.
    """
    settings: CompareSettings = _build(CompareSettings, "compare", recipe)
    budgets = {budget.name: with_overrides(recipe, "distill", budget.set) for budget in settings.budgets}
    jobs = []
    for seed in _in_order(seed for candidate in settings.candidates for seed in candidate.seeds or settings.seeds):
        for budget, changed in budgets.items():
            for candidate in settings.candidates:
                takes_part = seed in (candidate.seeds or settings.seeds)
                if takes_part and (not candidate.budgets or budget in candidate.budgets):
                    own = [f"objective.method={candidate.name}"] if candidate.name in METHODS else []
                    own += [*candidate.set, f"distill.seed={seed}"]
                    config = distill_config(with_overrides(changed, "distill", own))
                    get_method(config.objective.method)
                    jobs.append(Job(budget, candidate.name, config))
    return ComparePlan(settings, tuple(jobs), train_config(recipe))


def search_plan(recipe: Recipe) -> SearchPlan:
    """The trials of `compare --search`: the candidate under the budget, changed by what is tried.

    Raises:
        ConfigError: a value of the wrong type or out of range, or an unknown name.
    """
    from agridistill.study.search import SearchPlan

    settings: CompareSettings = _build(CompareSettings, "compare", recipe)
    wanted = settings.search
    budgets = {budget.name: budget.set for budget in settings.budgets}
    budget = wanted.budget or settings.budgets[0].name
    candidates = {candidate.name: candidate.set for candidate in settings.candidates}
    for what, name, known in (("budget", budget, budgets), ("candidate", wanted.candidate, candidates)):
        if name not in known:
            raise ConfigError(f"a known {what} in compare.search", f"'{name}'", nearest(name, known))
    own = [f"objective.method={wanted.candidate}"] if wanted.candidate in METHODS else []
    changes = [*budgets[budget], *own, *candidates[wanted.candidate], f"distill.seed={wanted.seed}"]
    changed = with_overrides(recipe, "distill", changes)

    def config_of(values: Mapping[str, float]) -> DistillConfig:
        return distill_config(with_overrides(changed, "distill", [f"{name}={value}" for name, value in values.items()]))

    config_of({name: space.choices[0] if space.choices else space.low for name, space in wanted.space.items()})
    return SearchPlan(replace(wanted, budget=budget), config_of)


def _in_order(seeds: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(seeds))


def _build(kind: type[Any], section: str, recipe: Recipe) -> Any:
    content = recipe.get(section, {})
    for (owner, name), row in _TABLES.items():
        rows = content.get(name) if owner == section else None
        for given in rows if isinstance(rows, list | tuple) else ():
            for key in given if isinstance(given, dict) else ():
                _require_known(key, row, f"{section}.{name}", "in the recipe")
    try:
        # Strict JSON takes no text for a number or a flag, but a list for a tuple and a whole number for a float.
        return TypeAdapter(kind).validate_json(_as_json(section, content), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (section, *first["loc"]))
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(f"{key}: {message}", repr(first["input"]), "correct the recipe or the option") from None


def _as_json(section: str, content: Mapping[str, Any]) -> str:
    for key, value in content.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ConfigError(
                f"{section}.{key}: text, a finite number, true, false or a list of these",
                str(value),
                "correct the recipe or the option",
            ) from None
    return json.dumps(content)


def _locate(command: str, name: str) -> tuple[str, str]:
    section, dot, key = name.partition(".")
    if dot:
        if section not in SECTIONS:
            raise ConfigError("a known recipe section", f"'{section}' in --set {name}", nearest(section, SECTIONS))
        if section not in _SECTIONS_OF[command]:
            used = ", ".join(_SECTIONS_OF[command])
            raise ConfigError(f"a section that {command} uses ({used})", f"--set {name}", "leave it away")
        _require_key(section, key, "in --set")
        return section, key
    sections = _SECTIONS_OF[command]
    owners = [section for section in sections if name in _keys(SECTIONS[section])]
    if not owners:
        known = [key for section in sections for key in _keys(SECTIONS[section])]
        raise ConfigError("a known recipe key", f"'{name}' in --set", nearest(name, known))
    return owners[0], name


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        # A bare word: names need no quotes on the command line.
        return text


def _require_key(section: str, key: str, where: str) -> None:
    _require_known(key, SECTIONS[section], section, where)


def _require_known(key: str, kind: type[Any], section: str, where: str) -> None:
    if key not in _keys(kind):
        raise ConfigError(f"a known key of [{section}]", f"'{key}' {where}", nearest(key, _keys(kind)))


def _keys(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]

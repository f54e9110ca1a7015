"""From the section `compare` of a recipe to the runs that it means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agridistill.config import SHARED_SECTIONS, Recipe, build_section, distill_config, train_config, with_overrides
from agridistill.errors import ConfigError, nearest
from agridistill.losses.methods import METHODS, get_method
from agridistill.study.plan import CandidateSettings, ComparePlan, CompareSettings, Job
from agridistill.training.settings import DistillConfig

if TYPE_CHECKING:
    from agridistill.study.search import SearchPlan


def compare_plan(recipe: Recipe, overrides: Sequence[str] = ()) -> ComparePlan:
    """The runs of `compare`: the recipe, changed by each budget, then by each candidate, then by the command line.

    A candidate that is called like a method is that method, unless it names another.

    Args:
        recipe: as read.
        overrides: of `--set`.

    Raises:
        ConfigError: a value of the wrong type or out of range, or an unknown name.
    """
    settings: CompareSettings = build_section(CompareSettings, "compare", recipe)
    budgets = {budget.name: with_overrides(recipe, "distill", budget.set) for budget in settings.budgets}
    rows = [
        (budget, candidate, settings.seeds_of(budget, candidate))
        for budget in settings.budgets
        for candidate in settings.candidates
    ]
    jobs = []
    for seed in _in_order(seed for _, _, seeds in rows for seed in seeds):
        for budget, candidate, seeds in rows:
            if seed in seeds:
                config = _job_config(budgets[budget.name], candidate, (*overrides, f"distill.seed={seed}"))
                jobs.append(Job(budget.name, candidate.name, config))
    bases = {name: distill_config(with_overrides(changed, "distill", overrides)) for name, changed in budgets.items()}
    # The teacher's photos are the students', but not how many of them have labels for those.
    changed = with_overrides(recipe, "distill", overrides)
    shared = {name: dict(changed[name]) for name in SHARED_SECTIONS if name in changed}
    if "data" in shared:
        shared["data"] |= {"labels": recipe.get("data", {}).get("labels", 1.0)}
    teacher = train_config({**recipe, **shared})
    return ComparePlan(settings, tuple(jobs), teacher, bases)


def search_plan(recipe: Recipe, overrides: Sequence[str] = ()) -> SearchPlan:
    """The trials of `compare --search`: the candidate under the budget, changed by what is tried.

    Raises:
        ConfigError: a value of the wrong type or out of range, or an unknown name.
    """
    from agridistill.study.search import SearchPlan

    settings: CompareSettings = build_section(CompareSettings, "compare", recipe)
    wanted = settings.search
    budgets = {budget.name: budget.set for budget in settings.budgets}
    budget = wanted.budget or settings.budgets[0].name
    candidates = {candidate.name: candidate for candidate in settings.candidates}
    for what, name, known in (("budget", budget, list(budgets)), ("candidate", wanted.candidate, list(candidates))):
        if name not in known:
            raise ConfigError(f"a known {what} in compare.search", f"'{name}'", nearest(name, known))
    changed = with_overrides(recipe, "distill", budgets[budget])

    def config_of(values: Mapping[str, Any]) -> DistillConfig:
        tried = [f"{name}={_as_toml(value)}" for name, value in values.items()]
        return _job_config(changed, candidates[wanted.candidate], (*overrides, f"distill.seed={wanted.seed}", *tried))

    for end in ("low", "high"):
        config_of({name: space.choices[0] if space.choices else space.at(end) for name, space in wanted.space.items()})
    return SearchPlan(replace(wanted, budget=budget), config_of)


def _job_config(recipe: Recipe, candidate: CandidateSettings, overrides: Sequence[str]) -> DistillConfig:
    own = [f"objective.method={candidate.name}"] if candidate.name in METHODS else []
    if not own and not candidate.set:
        raise ConfigError(
            "candidates that are methods or change a setting",
            f"'{candidate.name}' without 'set'",
            nearest(candidate.name, METHODS),
        )
    config = distill_config(with_overrides(recipe, "distill", [*own, *candidate.set, *overrides]))
    get_method(config.objective.method)
    if config.distill.processes > 1:
        raise ConfigError(
            "one device for each run of a study",
            f"devices {config.distill.devices}, nodes {config.distill.nodes}",
            "leave them at 1: runs go side by side with --jobs",
        )
    return config


def _as_toml(value: bool | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _in_order(seeds: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(seeds))

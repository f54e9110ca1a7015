"""Describes a study: settings for candidates, budgets and seeds, and the runs that follow from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from agridistill.errors import ConfigError, nearest
from agridistill.training.settings import DistillConfig, TrainConfig

# Names that the study needs for its files.
_RESERVED = ("teacher", "gallery")

# A name must be a valid folder name on every system.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$")]
Seed = Annotated[int, Field(ge=0)]
ConfigOf = Callable[[Sequence[str]], DistillConfig]
"""Returns the settings of the recipe after changes, each in the form `key=value` as for `--set`."""


def _require(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise ConfigError(expected, str(got), "correct the section [compare] of the recipe")


def _require_once(what: str, values: Sequence[object]) -> None:
    # Some file systems ignore case.
    counts = Counter(str(value).lower() for value in values)
    _require(bool(counts), f"at least one {what}", "none")
    for value, number in counts.items():
        _require(number == 1, f"each {what} once", f"'{value}' twice")


def _require_known(expected: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ConfigError(expected, f"'{name}'", nearest(name, known))


@dataclass(frozen=True)
class BudgetSettings:
    """An entry of `compare.budgets`: settings that all candidates share, such as epochs and share of labels.

    A study compares the candidates under each budget separately.
    """

    name: Name = "full"
    set: tuple[str, ...] = ()  # changes of the recipe, each `key=value` as for `--set`
    seeds: tuple[Seed, ...] = ()  # empty: the seeds of the study


@dataclass(frozen=True)
class CandidateSettings:
    """An entry of `compare.candidates`: what a study compares, such as a method, a network or changed settings."""

    name: Name  # if it is the name of a method, the candidate uses this method
    set: tuple[str, ...] = ()  # changes of the recipe, each `key=value` as for `--set`
    seeds: tuple[Seed, ...] = ()  # empty: the seeds of the budget
    budgets: tuple[str, ...] = ()  # names of the budgets that it takes part in; empty: all


@dataclass(frozen=True)
class SpaceSettings:
    """The values that a search may try for one setting: an interval from `low` to `high`, or a list of `choices`.

    With `log`, values of the interval are drawn on a logarithmic scale, with `integer` as whole numbers.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    choices: tuple[bool | int | float | str, ...] = ()

    def __post_init__(self) -> None:
        if self.choices:
            _require(
                self.low == self.high == 0, "choices, or low and high", f"{self.choices} and {self.low} to {self.high}"
            )
            return
        _require(self.low < self.high < math.inf, "low below high", f"{self.low} and {self.high}")
        _require(not self.log or self.low > 0, "low above 0 with log = true", self.low)

    @property
    def ends(self) -> tuple[Any, Any]:
        """The lowest and the highest value of the interval, or the first and the last of `choices`."""
        if self.choices:
            return self.choices[0], self.choices[-1]
        return (int(self.low), int(self.high)) if self.integer else (self.low, self.high)


_DEFAULT_SPACE = {
    "w_kd": SpaceSettings(0.1, 3.0, log=True),
    "w_att": SpaceSettings(0.3, 50.0, log=True),
    "hint_share": SpaceSettings(0.1, 0.5),
}


@dataclass(frozen=True)
class SearchSettings:
    """The section `compare.search`: the candidate, and the values that Optuna may try for its settings.

    Optuna looks for the values with the highest accuracy on the validation split.
    """

    candidate: str = "hybrid-hint"
    budget: str = ""  # name of the budget; empty: the first one
    seed: Seed = 0  # seed of the sampler and of every trial's run
    space: dict[str, SpaceSettings] = field(default_factory=_DEFAULT_SPACE.copy)  # by recipe key, as for `--set`

    def __post_init__(self) -> None:
        _require(bool(self.space), "at least one setting to search", "none")


@dataclass(frozen=True)
class CompareSettings:
    """The section `compare` of a recipe: the candidates, budgets and seeds of a study."""

    baseline: str = "ce"  # the candidate that the others are compared with
    seeds: tuple[Seed, ...] = (0,)  # for budgets and candidates that set no seeds
    tuning: str = "the recipe does not say how its settings were found"  # printed under the table
    budgets: tuple[BudgetSettings, ...] = (BudgetSettings(),)
    candidates: tuple[CandidateSettings, ...] = tuple(
        CandidateSettings(name) for name in ("ce", "kd", "at", "hybrid", "hybrid-hint")
    )
    search: SearchSettings = SearchSettings()

    def seeds_of(self, budget: BudgetSettings, candidate: CandidateSettings) -> tuple[int, ...]:
        """Returns the seeds of a candidate's runs under a budget; () if the candidate excludes this budget."""
        if candidate.budgets and budget.name not in candidate.budgets:
            return ()
        return candidate.seeds or budget.seeds or self.seeds

    def __post_init__(self) -> None:
        budgets = [budget.name for budget in self.budgets]
        candidates = [candidate.name for candidate in self.candidates]
        _require_once("budget", budgets)
        _require_once("candidate", candidates)
        own_seeds = [budget.seeds for budget in self.budgets] + [candidate.seeds for candidate in self.candidates]
        for seeds in (self.seeds, *filter(None, own_seeds)):
            _require_once("seed", seeds)
        _require_known("the baseline among the candidates", self.baseline, candidates)
        for candidate in self.candidates:
            _require(candidate.name not in _RESERVED, "another name for a candidate", f"'{candidate.name}'")
            for name in candidate.budgets:
                _require_known(f"a known budget of the candidate '{candidate.name}'", name, budgets)


@dataclass(frozen=True)
class Job:
    """One run of a study: its budget, its candidate, and its complete settings with the seed."""

    budget: str
    candidate: str
    config: DistillConfig

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.config.distill.seed

    @property
    def name(self) -> str:
        """Path of the run's folder in the folder `runs` of the study, such as "full/hybrid-0"."""
        return f"{self.budget}/{self.candidate}-{self.seed}"


@dataclass(frozen=True)
class ComparePlan:
    """A study whose runs have complete settings: its jobs, its teacher and its budgets."""

    settings: CompareSettings
    jobs: tuple[Job, ...]  # in the order of their start: all candidates of a seed before the next seed
    teacher: TrainConfig  # settings of the teacher, if the study trains one
    budgets: Mapping[str, DistillConfig]  # settings of each budget, without the changes of candidates

    @property
    def needs_teacher(self) -> bool:
        """Whether the method of any run uses the outputs of a teacher."""
        from agridistill.losses.methods import get_method  # imported here because reading a study must not need torch

        return any(get_method(job.config.objective.method).needs for job in self.jobs)


@dataclass(frozen=True)
class SearchPlan:
    """A search, and a function that returns the complete settings of a trial's run."""

    settings: SearchSettings
    config_of: Callable[[Mapping[str, Any]], DistillConfig]  # returns a run's settings for values of searched keys


def plan_study(
    settings: CompareSettings, teacher: TrainConfig, config_of: ConfigOf, overrides: Sequence[str]
) -> ComparePlan:
    """Lists the runs of a study with their complete settings: one for each budget, candidate and seed.

    A run has the settings of the recipe (`config_of`) with the changes of its budget, then of its candidate, then
    `overrides`, each `key=value`. A value of the wrong type or range, or an unknown name is a ConfigError.
    """
    rows = [
        (budget, candidate, settings.seeds_of(budget, candidate))
        for budget in settings.budgets
        for candidate in settings.candidates
    ]
    jobs = [
        Job(budget.name, candidate.name, _job_config(config_of, budget, candidate, [*overrides, _seed(seed)]))
        for seed in dict.fromkeys(seed for *_, seeds in rows for seed in seeds)
        for budget, candidate, seeds in rows
        if seed in seeds
    ]
    budgets = {budget.name: config_of([*budget.set, *overrides]) for budget in settings.budgets}
    return ComparePlan(settings, tuple(jobs), teacher, budgets)


def plan_search(settings: CompareSettings, config_of: ConfigOf, overrides: Sequence[str]) -> SearchPlan:
    """Prepares a search, as `plan_study`, and checks the lowest and highest value of each searched setting."""
    search = replace(settings.search, budget=settings.search.budget or settings.budgets[0].name)
    budgets = {budget.name: budget for budget in settings.budgets}
    candidates = {candidate.name: candidate for candidate in settings.candidates}
    _require_known("a known budget in compare.search", search.budget, list(budgets))
    _require_known("a known candidate in compare.search", search.candidate, list(candidates))

    def config_of_values(values: Mapping[str, Any]) -> DistillConfig:
        searched = [
            f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()
        ]
        changes = [*overrides, _seed(search.seed), *searched]
        return _job_config(config_of, budgets[search.budget], candidates[search.candidate], changes)

    for end in (0, 1):  # check that both ends of every interval are valid settings
        config_of_values({name: space.ends[end] for name, space in search.space.items()})
    return SearchPlan(search, config_of_values)


def _seed(seed: int) -> str:
    return f"distill.seed={seed}"


def _job_config(
    config_of: ConfigOf, budget: BudgetSettings, candidate: CandidateSettings, changes: Sequence[str]
) -> DistillConfig:
    from agridistill.losses.methods import METHODS, get_method  # as above

    method = [f"objective.method={candidate.name}"] if candidate.name in METHODS else []
    if not method and not candidate.set:
        expected = "a candidate that has the name of a method or changes a setting"
        raise ConfigError(expected, f"the candidate '{candidate.name}' without 'set'", nearest(candidate.name, METHODS))
    config = config_of([*budget.set, *method, *candidate.set, *changes])
    get_method(config.objective.method)
    if config.distill.processes > 1:
        expected = "one device for each run of a study"
        got = f"devices {config.distill.devices}, nodes {config.distill.nodes}"
        raise ConfigError(expected, got, "set both to 1, and pass --jobs to train several runs at the same time")
    return config

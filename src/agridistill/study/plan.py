"""What a study compares: candidates x budgets x seeds, as settings and as the runs that they describe."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from agridistill.errors import ConfigError, nearest
from agridistill.training.settings import DistillConfig, TrainConfig

# Names of the study's own files.
_RESERVED = ("teacher", "gallery")

# A name becomes a folder, on any system.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$")]
Seed = Annotated[int, Field(ge=0)]
ConfigOf = Callable[[Sequence[str]], DistillConfig]
"""The recipe with changes, each `key=value` as after `--set`."""


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
    """What all candidates have in common: epochs, share of labels, photo size. Each budget has a table of its own."""

    name: Name = "full"
    set: tuple[str, ...] = ()  # changes of the recipe, each `key=value` as after `--set`
    seeds: tuple[Seed, ...] = ()  # those of the study where empty


@dataclass(frozen=True)
class CandidateSettings:
    """One row of the table: a method, a network, or one method with other settings."""

    name: Name  # the name of a method selects that method
    set: tuple[str, ...] = ()  # changes of the recipe, each `key=value` as after `--set`
    seeds: tuple[Seed, ...] = ()  # those of the budget where empty
    budgets: tuple[str, ...] = ()  # all where empty


@dataclass(frozen=True)
class SpaceSettings:
    """The values of one searched setting: an interval, optionally on a log scale or of integers, or choices."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    choices: tuple[bool | int | float | str, ...] = ()

    def __post_init__(self) -> None:
        if self.choices:
            _require(self.low == self.high == 0, "choices or two ends", f"{self.choices} and {self.low} to {self.high}")
            return
        _require(self.low < self.high < math.inf, "low below high", f"{self.low} and {self.high}")
        _require(not self.log or self.low > 0, "low above 0 with log", self.low)

    @property
    def ends(self) -> tuple[Any, Any]:
        """The lowest and the highest value, or the first and the last choice."""
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
    """The section `compare.search`: settings of one candidate, chosen by Optuna on the validation split."""

    candidate: str = "hybrid-hint"
    budget: str = ""  # the first one where empty
    seed: Seed = 0  # of the sampler and of every trial's run
    space: dict[str, SpaceSettings] = field(default_factory=_DEFAULT_SPACE.copy)  # by recipe key, as after `--set`

    def __post_init__(self) -> None:
        _require(bool(self.space), "at least one setting to search", "none")


@dataclass(frozen=True)
class CompareSettings:
    """The section `compare` of a recipe."""

    baseline: str = "ce"  # the candidate that the others are compared to
    seeds: tuple[Seed, ...] = (0,)  # of budgets and candidates without seeds of their own
    tuning: str = "the recipe does not say how its settings were found"  # printed under the table
    budgets: tuple[BudgetSettings, ...] = (BudgetSettings(),)
    candidates: tuple[CandidateSettings, ...] = tuple(
        CandidateSettings(name) for name in ("ce", "kd", "at", "hybrid", "hybrid-hint")
    )
    search: SearchSettings = SearchSettings()

    def seeds_of(self, budget: BudgetSettings, candidate: CandidateSettings) -> tuple[int, ...]:
        """Seeds of the candidate's runs under the budget; none where it does not take part."""
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
            _require(candidate.name not in _RESERVED, "another name of a candidate", f"'{candidate.name}'")
            for name in candidate.budgets:
                _require_known(f"a known budget of the candidate '{candidate.name}'", name, budgets)


@dataclass(frozen=True)
class Job:
    """One run of a study. `config` is complete, with the seed."""

    budget: str
    candidate: str
    config: DistillConfig

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.config.distill.seed

    @property
    def name(self) -> str:
        """The run's folder below the study's `runs`, with forward slashes."""
        return f"{self.budget}/{self.candidate}-{self.seed}"


@dataclass(frozen=True)
class ComparePlan:
    """A study with all settings resolved."""

    settings: CompareSettings
    jobs: tuple[Job, ...]  # in the order of their start: all candidates of a seed before the next seed
    teacher: TrainConfig  # of a teacher that the study trains
    budgets: Mapping[str, DistillConfig]  # settings of each budget, without its candidates' changes

    @property
    def needs_teacher(self) -> bool:
        """Whether the method of any run has a teacher."""
        from agridistill.losses.methods import get_method  # studies are read without torch

        return any(get_method(job.config.objective.method).needs for job in self.jobs)


@dataclass(frozen=True)
class SearchPlan:
    """A search with all settings resolved."""

    settings: SearchSettings
    config_of: Callable[[Mapping[str, Any]], DistillConfig]  # settings of the run with these values


def plan_study(
    settings: CompareSettings, teacher: TrainConfig, config_of: ConfigOf, overrides: Sequence[str]
) -> ComparePlan:
    """The runs of a study: the recipe, changed by each budget, then by each candidate, then by `overrides`.

    Raises:
        ConfigError: a value of the wrong type or out of range, or an unknown name.
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
    """The trials of a search: the runs of one candidate under one budget with the searched values.

    Raises:
        ConfigError: a value of the wrong type or out of range, or an unknown name.
    """
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

    for end in (0, 1):  # both ends are valid settings
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
        expected = "candidates that are methods or change a setting"
        raise ConfigError(expected, f"'{candidate.name}' without 'set'", nearest(candidate.name, METHODS))
    config = config_of([*budget.set, *method, *candidate.set, *changes])
    get_method(config.objective.method)
    if config.distill.processes > 1:
        raise ConfigError(
            "one device for each run of a study",
            f"devices {config.distill.devices}, nodes {config.distill.nodes}",
            "leave them at 1: --jobs starts several runs at a time",
        )
    return config

"""What a study compares: candidates x budgets x seeds, as settings and as the runs that they mean."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agridistill.errors import ConfigError, nearest
from agridistill.training.settings import DistillConfig, TrainConfig

# Names become folders, on whatever system.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")


def _require(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise ConfigError(expected, str(got), "correct the section [compare] of the recipe")


def _require_names(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        _require(bool(_NAME.fullmatch(name)), f"{what} of letters, digits, '.', '_' and '-'", f"'{name}'")
        # A file system may not tell them apart.
        _require(name.lower() not in seen, f"{what}, each once", f"'{name}' twice")
        seen.add(name.lower())


@dataclass(frozen=True)
class BudgetSettings:
    """What every candidate is given alike: epochs, share of labels, photo size.

    Attributes:
        name: of its folder and its table.
        set: changes of the recipe, each `key=value` as after `--set`.
        seeds: of its runs; those of the study where empty. A candidate's own go before both.
    """

    name: str = "full"
    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class CandidateSettings:
    """One row of the table: a method, a network, or one method with other settings.

    Attributes:
        name: of its folder and its row; the name of a method is that method.
        set: changes of the recipe, each `key=value` as after `--set`.
        seeds: of its runs; those of the budget where empty.
        budgets: names of those that it takes part in; all where empty.
    """

    name: str
    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    budgets: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpaceSettings:
    """Where a search looks for one setting: between two ends, or among choices.

    Attributes:
        low: lower end.
        high: upper end.
        log: whether to look at orders of magnitude.
        integer: whether to look at whole numbers alone.
        choices: instead of the ends; numbers, words, true or false.
    """

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

    def at(self, end: str) -> float:
        """One of the two ends, "low" or "high"."""
        value = float(getattr(self, end))
        return int(value) if self.integer else value


def _default_space() -> dict[str, SpaceSettings]:
    return {
        "w_kd": SpaceSettings(0.1, 3.0, log=True),
        "w_att": SpaceSettings(0.3, 50.0, log=True),
        "hint_share": SpaceSettings(0.1, 0.5),
    }


@dataclass(frozen=True)
class SearchSettings:
    """The section `compare.search`: one candidate's settings by Optuna, judged on the validation split.

    Attributes:
        candidate: of the study.
        budget: of the study; its first where empty.
        seed: of the sampler and of every trial's run.
        space: by recipe key, as after `--set`.
    """

    candidate: str = "hybrid-hint"
    budget: str = ""
    seed: int = 0
    space: dict[str, SpaceSettings] = field(default_factory=_default_space)

    def __post_init__(self) -> None:
        _require(bool(self.space), "at least one setting to search", "none")
        _require(self.seed >= 0, "a seed of at least 0", self.seed)


@dataclass(frozen=True)
class CompareSettings:
    """The section `compare` of a recipe.

    Attributes:
        baseline: the candidate that the others are held against.
        seeds: of every run, but for budgets and candidates with seeds of their own.
        tuning: in words, how the candidates' settings were found; stands under the table.
        budgets: each gives a table of its own.
        candidates: the rows.
        search: what `--search` looks for.
    """

    baseline: str = "ce"
    seeds: tuple[int, ...] = (0,)
    tuning: str = "the recipe does not say how its settings were found"
    budgets: tuple[BudgetSettings, ...] = (BudgetSettings(),)
    candidates: tuple[CandidateSettings, ...] = field(
        default_factory=lambda: tuple(CandidateSettings(name) for name in ("ce", "kd", "at", "hybrid", "hybrid-hint"))
    )

    search: SearchSettings = field(default_factory=SearchSettings)

    def seeds_of(self, budget: BudgetSettings, candidate: CandidateSettings) -> tuple[int, ...]:
        """Of the candidate's runs under the budget; none where it does not take part."""
        if candidate.budgets and budget.name not in candidate.budgets:
            return ()
        return candidate.seeds or budget.seeds or self.seeds

    def __post_init__(self) -> None:
        _require_names("names of budgets", (budget.name for budget in self.budgets))
        _require_names("names of candidates", (candidate.name for candidate in self.candidates))
        _require(bool(self.budgets), "at least one budget", "none")
        budgets = [budget.name for budget in self.budgets]
        candidates = [candidate.name for candidate in self.candidates]
        if self.baseline not in candidates:
            raise ConfigError(
                "the baseline among the candidates", f"'{self.baseline}'", nearest(self.baseline, candidates)
            )
        of_budgets = [budget.seeds for budget in self.budgets]
        of_candidates = [candidate.seeds for candidate in self.candidates]
        for seeds in (self.seeds, *of_budgets, *of_candidates):
            _require(all(seed >= 0 for seed in seeds), "seeds of at least 0", seeds)
            _require(len(set(seeds)) == len(seeds), "each seed once", seeds)
        _require(bool(self.seeds), "at least one seed", "none")
        for candidate in self.candidates:
            # The study has files of these names.
            _require(candidate.name not in ("teacher", "gallery"), "another name of a candidate", f"'{candidate.name}'")
            for name in candidate.budgets:
                if name not in budgets:
                    raise ConfigError(
                        f"a known budget of the candidate '{candidate.name}'", f"'{name}'", nearest(name, budgets)
                    )


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        budget: name.
        candidate: name.
        config: complete, with the seed.
    """

    budget: str
    candidate: str
    config: DistillConfig

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.config.distill.seed

    @property
    def name(self) -> str:
        """The run's folder below the study's `runs`, with forward slashes."""
        return f"{self.budget}/{self.candidate}-{self.seed}"


@dataclass(frozen=True)
class ComparePlan:
    """A study, resolved.

    Attributes:
        settings: of the section `compare`.
        jobs: every run, in the order in which they start: all candidates of a seed before the next seed.
        teacher: how a teacher is trained where none is given.
        budgets: settings of each budget, before its candidates change them.
    """

    settings: CompareSettings
    jobs: tuple[Job, ...]
    teacher: TrainConfig
    budgets: Mapping[str, DistillConfig]

    @property
    def needs_teacher(self) -> bool:
        """Whether any run's method has one: networks on labels alone need none, whatever the recipe weighs."""
        from agridistill.losses.methods import get_method  # studies are read without torch

        return any(get_method(job.config.objective.method).needs for job in self.jobs)

"""A study's recipe: what runs it means, and which recipes are refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from agridistill.config import compare_plan, read_recipe, search_plan
from agridistill.errors import ConfigError
from agridistill.training.settings import PairSettings

RECIPES = Path(__file__).parents[2] / "recipes"
STUDY = """
[data]
image_size = 64
[distill]
epochs = 4
[objective]
method = "hybrid"
w_att = 2.0
[compare]
seeds = [3, 5]
[[compare.budgets]]
name = "all"
[[compare.budgets]]
name = "few"
set = ["labels=0.25", "epochs=16"]
[[compare.candidates]]
name = "ce"
[[compare.candidates]]
name = "hybrid-32"
set = ["pairs=[{student=32, teacher=32}]", "w_att=7"]
seeds = [3]
budgets = ["few"]
[[compare.candidates]]
name = "kd"
set = ["model=resnet18"]
"""


def plan(text: str = STUDY):  # type: ignore[no-untyped-def]
    return compare_plan(tomllib.loads(text))


def test_candidates_budgets_and_seeds_are_multiplied_a_seed_at_a_time() -> None:
    assert [job.name for job in plan().jobs] == [
        "all/ce-3",
        "all/kd-3",
        "few/ce-3",
        "few/hybrid-32-3",
        "few/kd-3",
        "all/ce-5",
        "all/kd-5",
        "few/ce-5",
        "few/kd-5",
    ]


def test_a_job_is_the_recipe_changed_by_its_budget_and_then_by_its_candidate() -> None:
    jobs = {job.name: job.config for job in plan().jobs}
    changed = jobs["few/hybrid-32-3"]
    assert (changed.data.image_size, changed.data.labels) == (64, 0.25)
    assert (changed.distill.epochs, changed.distill.seed) == (16, 3)
    assert (changed.objective.method, changed.objective.w_att) == ("hybrid", 7)
    assert changed.objective.pairs == (PairSettings(32, 32),)
    assert jobs["all/ce-5"].objective.method == "ce"
    assert jobs["all/ce-5"].data.labels == 1.0
    assert jobs["all/kd-5"].distill.model == "resnet18"


def test_the_command_line_has_the_last_word() -> None:
    found = compare_plan(tomllib.loads(STUDY), ["epochs=1", "labels=1", "w_att=3"])
    assert {(job.config.distill.epochs, job.config.data.labels, job.config.objective.w_att) for job in found.jobs} == {
        (1, 1.0, 3)
    }
    assert {config.distill.epochs for config in found.budgets.values()} == {1}


def test_a_recipe_without_the_rest_compares_the_five_methods_once() -> None:
    names = ("ce", "kd", "at", "hybrid", "hybrid-hint")
    assert [job.name for job in plan("[compare]").jobs] == [f"full/{name}-0" for name in names]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('name = "kd"', 'name = "ce"'), "each candidate once; got '.*' twice"),
        (('name = "few"', 'name = "ALL"'), "each budget once; got '.*' twice"),
        (('name = "kd"', 'name = "../kd"'), r"compare.candidates.2.name: .*; got '\.\./kd'"),
        (("[3, 5]", "[3, 3]"), "each seed once; got '3' twice"),
        (("[3, 5]", "[-1]"), r"compare.seeds.0 of at least 0; got -1"),
        (("[3, 5]", "[]"), "at least one seed; got none"),
        (('name = "all"', 'name = "all"\nseeds = [1, 1]'), "each seed once; got '1' twice"),
        (('name = "all"', 'name = "all"\nseeds = [-1]'), r"compare.budgets.0.seeds.0 of at least 0; got -1"),
        (
            ("[compare]", '[compare]\nbaseline = "kdd"'),
            "the baseline among the candidates; got 'kdd'; did you mean 'kd'",
        ),
        (
            ('budgets = ["few"]', 'budgets = ["fwe"]'),
            "budget of the candidate 'hybrid-32'; got 'fwe'; did you mean 'few'",
        ),
        (("w_att=7", "w_tat=7"), "a known recipe key; got 'w_tat' in --set; did you mean 'w_att'"),
        (("w_att=7", "w_att=-7"), r"objective\.w_att.* 0.*; got -7"),
        (("model=resnet18", "method=kdd"), "a distillation method; got 'kdd'; did you mean 'kd'"),
        (("labels=0.25", "labels=0"), r"data\.labels.* 0.*; got 0"),
        (
            ('name = "ce"\n', 'name = "kd_std"\n[[compare.candidates]]\nname = "ce"\n'),
            "'kd_std' without 'set'; did you mean 'kd-std'",
        ),
        (('name = "kd"', 'name = "gallery"'), "another name for a candidate; got 'gallery'"),
        (("model=resnet18", "devices=2"), "one device for each run of a study; got devices 2"),
        (
            ("[compare]", '[compare]\nsearch = { candidat = "kd" }'),
            r"a known key of \[compare.search\]; got 'candidat'",
        ),
        (
            ("[compare]", "[compare]\nsearch = { space = { w_att = { low = 1.0, hihg = 2.0 } } }"),
            r"a known key of \[compare.search.space.w_att\]; got 'hihg'.*'high'",
        ),
        (("seeds = [3]", "seedz = [3]"), r"a known key of \[compare.candidates\]; got 'seedz'.*'seeds'"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: tuple[str, str], message: str) -> None:
    assert change[0] in STUDY
    with pytest.raises(ConfigError, match=message):
        plan(STUDY.replace(*change))


@pytest.mark.parametrize(("name", "runs"), [("compare", 46), ("ablations", 51), ("networks", 6)])
def test_the_shipped_studies_can_be_read(name: str, runs: int) -> None:
    found = compare_plan(read_recipe(RECIPES / f"{name}.toml"))
    assert len(found.jobs) == len({job.name for job in found.jobs}) == runs
    assert found.needs_teacher == (name != "networks")


@pytest.mark.parametrize("name", ["compare", "ablations"])
def test_the_shipped_studies_under_a_teacher_can_be_searched(name: str) -> None:
    found = search_plan(read_recipe(RECIPES / f"{name}.toml"))
    assert found.config_of({"w_att": 9.0}).objective.w_att == 9


def test_seeds_are_the_candidates_then_the_budgets_then_the_studys() -> None:
    found = plan("""
[compare]
seeds = [0]
[[compare.budgets]]
name = "few"
seeds = [3, 1]
[[compare.budgets]]
name = "all"
[[compare.candidates]]
name = "ce"
[[compare.candidates]]
name = "kd"
seeds = [2]
""")
    # A seed at a time, in the order in which the rows name them.
    assert [job.name for job in found.jobs] == ["few/ce-3", "few/ce-1", "few/kd-2", "all/kd-2", "all/ce-0"]


def test_a_table_of_networks_trains_no_teacher_whatever_weights_the_recipe_names() -> None:
    text = STUDY.replace('name = "ce"', 'name = "net"\nset = ["method=ce"]').replace(
        "[compare]", '[compare]\nbaseline="net"'
    )
    one = text[: text.index('[[compare.candidates]]\nname = "hybrid-32"')]
    assert not plan(one).needs_teacher
    assert plan(text).needs_teacher


def test_the_command_lines_photos_are_the_teachers_as_well() -> None:
    changed = compare_plan(
        tomllib.loads(STUDY), ["data.image_size=32", "split_seed=3", "augmentation.flip=false", "distill.lr=0.5"]
    )
    assert (changed.teacher.data.image_size, changed.teacher.data.split_seed) == (32, 3)
    assert not changed.teacher.augmentation.flip
    assert changed.teacher.train.lr == plan().teacher.train.lr

"""`agridistill compare`: a study from one recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agridistill.cli import options
from agridistill.cli.output import next_command, print_json, progress_bar, stderr, stdout
from agridistill.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from agridistill.config import Recipe
    from agridistill.data.labels import Layout


def compare(
    data: options.Data,
    recipe: Annotated[
        Path,
        typer.Option(
            "--recipe", metavar="NAME|FILE", help="Shipped recipe, as compare, or a file in TOML; with \\[compare]."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the study.")],
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="Run folder of the teacher; trained by the recipe otherwise.")
    ] = None,
    set_: options.Set = None,
    labels: options.Labels = None,
    label_columns: options.LabelColumns = None,
    nested: options.Nested = None,
    splits: options.Splits = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=0, help="Runs at a time; 0 takes one for each GPU, one without.")
    ] = 0,
    evidence: Annotated[
        bool,
        typer.Option("--evidence/--no-evidence", help="Robustness, calibration and attention for the report, too."),
    ] = True,
    search: Annotated[
        int, typer.Option("--search", min=0, metavar="N", help="Instead: N trials of \\[compare.search], by Optuna.")
    ] = 0,
    storage: Annotated[
        str | None,
        typer.Option("--storage", metavar="URL", help="Optuna storage of --search; SQLite in --out otherwise."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Train methods x seeds x budgets under one teacher and compare them, photo by photo.

    Finished runs are kept: after an interruption, or with more in the recipe, the same command goes on.
    """
    from agridistill.config import compare_plan, read_recipe, require_serves
    from agridistill.data.labels import FOLDERS

    layout = options.layout_of(labels, label_columns, nested) or FOLDERS
    chosen = read_recipe(recipe)
    require_serves(chosen, "compare")
    if search:
        _refuse("--search, which tries one after another", {"--jobs": jobs, "--no-evidence": not evidence})
        _search(
            data,
            out,
            chosen,
            set_ or [],
            search,
            layout=layout,
            teacher=teacher,
            storage=storage,
            splits=splits,
            json=json,
        )
        return
    _refuse("a study without --search", {"--storage": storage})
    plan = compare_plan(chosen, set_ or [])
    with progress_bar("epochs of all runs") as progress:
        from agridistill.study import compare as study

        document = study.compare(
            data,
            out,
            plan,
            layout=layout,
            teacher=teacher,
            split_file=splits,
            jobs=jobs,
            evidence=evidence,
            progress=progress,
            tell=lambda line: stderr.print(line, markup=False),
        )
    if json:
        print_json(document)
    else:
        from agridistill.cli.study_tables import print_study

        print_study(document)
    next_command("report", out)


def _refuse(where: str, given: Mapping[str, object]) -> None:
    """An option that would be passed over in silence is refused."""
    for name, value in given.items():
        if value:
            raise ConfigError(f"options for {where}", name, "leave it away")


def _search(
    data: Path,
    out: Path,
    recipe: Recipe,
    overrides: list[str],
    trials: int,
    *,
    layout: Layout,
    teacher: Path | None,
    storage: str | None,
    splits: Path | None,
    json: bool,
) -> None:
    if teacher is None:
        raise ConfigError("a teacher for --search", "none", "pass --teacher RUN")
    try:
        import optuna  # noqa: F401 - told before anything is done
    except ModuleNotFoundError:
        raise MissingExtraError(
            "Optuna, to search", "no module 'optuna'", "pip install 'agridistill[search]'"
        ) from None
    from agridistill.config import search_plan

    plan = search_plan(recipe, overrides)
    with progress_bar("trials") as progress:
        from agridistill.study.search import search

        document = search(
            data,
            out,
            plan,
            trials,
            layout=layout,
            teacher=teacher,
            storage=storage,
            split_file=splits,
            progress=progress,
            tell=lambda line: stderr.print(line, markup=False),
        )
    best = document["best"]
    if json:
        print_json(document)
    else:
        found = ", ".join(f"{name} = {value}" for name, value in best["settings"].items())
        accuracy = f"{100 * best['val_accuracy']:.2f} % on the validation split"
        stdout.print(f"best of {len(document['trials'])} trials: {accuracy} with {found}", markup=False)
    # The run's own recipe says everything: budget, candidate and what was found.
    whole = (*layout.words(), *(("--splits", splits) if splits is not None else ()))
    next_command("distill", data, "--teacher", teacher, "--recipe", out / best["recipe"], *whole, "--out", "RUN")

"""`agridistill compare`: a study from one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agridistill.cli import options
from agridistill.cli.output import next_command, print_json, progress_bar, stderr


def compare(
    data: options.Data,
    recipe: Annotated[Path, typer.Option("--recipe", help="Recipe in TOML with a section [compare].")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the study.")],
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="Run folder of the teacher; trained by the recipe otherwise.")
    ] = None,
    set_: options.Set = None,
    splits: options.Splits = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=0, help="Runs at a time; 0 takes one for each GPU, one without.")
    ] = 0,
    evidence: Annotated[
        bool,
        typer.Option("--evidence/--no-evidence", help="Robustness, calibration and attention for the report, too."),
    ] = True,
    json: options.Json = False,
) -> None:
    """Train methods x seeds x budgets under one teacher and compare them, photo by photo.

    Finished runs are kept: after an interruption, or with more in the recipe, the same command goes on.
    """
    from agridistill.config import compare_plan, read_recipe, require_serves, with_overrides

    chosen = read_recipe(recipe)
    require_serves(chosen, "compare")
    plan = compare_plan(with_overrides(chosen, "distill", set_ or []))
    with progress_bar("epochs of all runs") as progress:
        from agridistill.study import compare as study

        document = study.compare(
            data,
            out,
            plan,
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

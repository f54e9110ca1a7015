"""`agridistill demo`: the main job on drawn leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agridistill.cli import options
from agridistill.cli.output import next_command, print_json, progress_bar, stderr
from agridistill.storage import require_writable


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the drawn photos and the runs.")] = Path("demo"),
    json: options.Json = False,
) -> None:
    """Draw leaves, train a first model and its file for a device, then a teacher with two students, and compare them.

    Takes a few minutes on two cores. After an interruption the same command goes on where it stopped.
    """
    require_writable(out, folder=True)
    stderr.print("Drawn leaves stand in for photos here: the figures say that it works, not how well on real leaves.")
    with progress_bar("drawing leaves") as progress:
        from agridistill.study.demo import run_demo

        result = run_demo(out, progress=progress)
    if json:
        print_json(result.to_json())
    else:
        from agridistill.cli.tables import ComparisonRow, print_comparison

        rows = [ComparisonRow(row.name, row.evaluation, row.train_s) for row in result.rows]
        print_comparison(rows, title="Test split of the drawn leaves")
    if result.artefact is not None:
        megabytes = result.artefact.stat().st_size / 1e6
        stderr.print(f"For a device: {result.artefact}, {megabytes:.1f} MB in int8, with its manifest.", markup=False)
    model = result.artefact or next(row.run for row in result.rows if row.name == "hybrid student")
    next_command("predict", model, result.data / "mosaic")

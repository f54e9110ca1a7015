"""`agridistill report`: one page from the results of a study or a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agridistill.cli import options
from agridistill.cli.output import print_json, progress_bar, stderr, stdout
from agridistill.progress import begin
from agridistill.storage import require_writable


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Of `compare`, of a run, or of `evaluate --evidence`.")],
    json: options.Json = False,
) -> None:
    """Write one self-contained HTML page: what was found, with plots, robustness, attention and the worst mistakes."""
    if folder.is_dir():
        require_writable(folder, "DIR", folder=True)
    with progress_bar("drawing") as progress:
        from agridistill.report import report as write

        begin(progress, "drawing")
        result = write(folder)
    if json:
        print_json(
            {
                "page": str(result.page),
                "plots": [str(file) for file in result.plots],
                "numbers": [str(file) for file in result.numbers],
            }
        )
    else:
        stdout.print(str(result.page), markup=False)
    stderr.print(f"open it in a browser: {result.page.resolve().as_uri()}", markup=False)

"""Writes reports: an HTML page and its plots, made only from the result files of a study or a run.

The attribute `agridistill.report` is the function `report` of this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agridistill.arguments import to_path
from agridistill.errors import needs_extra

if TYPE_CHECKING:
    from agridistill.report.page import ReportResult

__all__ = ["report"]


def report(folder: Path | str) -> ReportResult:
    """Writes `report.html`, and each plot as SVG with its numbers as JSON, from the result files in a folder.

    Args:
        folder: the folder that `compare`, `train`, `distill` or `evaluate --evidence` wrote; it receives the report.

    Raises:
        ConfigError: `folder` is not a path.
        RunError: `folder` has no result files, or one is damaged.
        MissingExtraError: the extra `report` is not installed.
    """
    path = to_path("folder", folder)
    with needs_extra("matplotlib and jinja2 for the report", "report"):
        from agridistill.report.page import report as write
    return write(path)

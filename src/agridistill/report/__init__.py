"""The one HTML page and its plots, from result files alone.

`agridistill.report("study")` is the public function, and `agridistill.report` the package that holds it: Python can
hold only one of the two under a name, so the package itself can be called.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from agridistill.arguments import to_path
from agridistill.errors import MissingExtraError

if TYPE_CHECKING:
    from agridistill.report.page import ReportResult


def write_report(folder: Path | str) -> ReportResult:
    """Writes `report.html`, and each plot with its numbers, from the result files of a study or a run.

    Args:
        folder: of a study (`compare`), of a run, or of `evaluate --evidence`.

    Raises:
        ConfigError: `folder` is no path.
        RunError: nothing to report on, or a damaged file.
        MissingExtraError: the extra `report` is not installed.
    """
    path = to_path("folder", folder)
    try:
        from agridistill.report.page import report
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "matplotlib and jinja2, to draw and write the page",
            f"no module '{error.name}'",
            "pip install 'agridistill[report]'",
        ) from None
    return report(path)


class _CallablePackage(ModuleType):
    """This package, which can be called like the function that it is named after."""

    __call__ = staticmethod(write_report)


sys.modules[__name__].__class__ = _CallablePackage

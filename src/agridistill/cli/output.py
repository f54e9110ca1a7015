"""What every command prints and where: results on stdout, progress and logs on stderr."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from agridistill.progress import StagedProgress, is_first_process, registered_display, stderr_console
from agridistill.storage import json_text

stdout = Console(highlight=False, soft_wrap=True)
stderr = stderr_console()


class LogLines(logging.Handler):
    """Log records on stderr, beside a progress bar without breaking it.

    Further lines of a record are indented: no name with a line feed in it passes for a record of its own.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one record."""
        text = "\n  ".join(shown(line) for line in self.format(record).split("\n"))
        stderr.print(f"{record.levelname.lower()}: {text}", markup=False, style="yellow")


def leave_talking_to_the_first(processes: int) -> None:
    """Of the processes of one run one talks; an error is told by whoever meets it."""
    if not is_first_process(processes):
        stdout.quiet = stderr.quiet = True
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends


def print_json(document: Any) -> None:
    """The one JSON document of a command with --json."""
    sys.stdout.write(json_text(document))
    # A reader that has ended (such as `head`) is no defect; at Python's own exit it would look like one.
    sys.stdout.flush()


def shown(name: str) -> str:
    """The same text as a terminal can show it: what would command it, or is no Unicode, stands as its number.

    Example:
        >>> print(shown("leaf\\x1b[2J.jpg"))
        leaf\\x1b[2J.jpg
    """
    if name.isprintable():
        return name
    return "".join(sign if _is_visible(sign) else sign.encode("unicode_escape").decode("ascii") for sign in name)


def _is_visible(sign: str) -> bool:
    # Python calls no space but the plain one printable.
    return sign.isprintable() or unicodedata.category(sign) == "Zs"


def sibling(path: Path, name: str) -> Path:
    """Another name in the folder where `path` stands, also where `path` is written as `.` or `..`."""
    return path.resolve().parent / name if path.name in ("", "..") else path.with_name(name)


def next_command(*words: str | Path) -> None:
    """The command that a user would run next, ready to be copied. On stderr, so that stdout stays the result."""
    from agridistill.cli.next_steps import missing_extra

    extra = missing_extra(str(words[0]))
    install = f"pip install 'agridistill[{extra}]' && " if extra else ""
    stderr.print("Next: ", end="", style="bold")
    stderr.print(f"{install}agridistill " + shlex.join(str(word) for word in words), markup=False)


@contextmanager
def progress_bar(label: str, *, then: str = "working") -> Iterator[StagedProgress]:
    """Shows on stderr that work goes on, from now until the block ends; gives the callback that moves the bar.

    A spinner with the time since it began; a bar with count and time left while a pass with a known end runs. Without
    a terminal nothing is printed.

    Args:
        label: of the first pass, and of all that follow until the callback's `stage` names another.
        then: label of the spinner after a pass, where no stage was named.
    """
    display = _Display(label, then, stderr)
    with registered_display(display):
        display.show("starting")
        try:
            yield display
        finally:
            display.hide()


class _Display:
    """The callback of `progress_bar`, and what it draws."""

    def __init__(self, label: str, then: str, console: Console) -> None:
        self._label, self._then = label, then
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            _Either(BarColumn(max(10, min(40, console.width - 48))), TimeElapsedColumn()),
            _Either(MofNCompleteColumn()),
            _Either(TimeRemainingColumn()),
        )
        # stdout stays the command's own: rich would send to stderr what is printed there meanwhile.
        self._progress = Progress(
            *columns,
            console=console,
            transient=True,
            redirect_stdout=False,
            disable=not console.is_terminal or console.quiet,
            refresh_per_second=5,
        )
        self._task = self._progress.add_task("", total=None)

    def __call__(self, done: int, total: int) -> None:
        """A bar from the beginning of a pass to its end, a spinner where the end is unknown."""
        if done >= total > 0:
            self._spin(self._then)
        elif total <= 0:
            self._spin(self._label)
        else:
            if self._total is None:
                self._begin(self._label, total)
            self._progress.update(self._task, completed=done, total=total)

    def stage(self, name: str) -> None:
        """A spinner with the name of what is done from now on."""
        self._label = self._then = name
        self._begin(name, None)

    def hide(self) -> None:
        """Takes it away."""
        self._progress.stop()

    def show(self, label: str) -> None:
        """Draws it, with the label where no pass is running."""
        if self._total is None:
            self._spin(label)
        self._progress.start()

    @property
    def _total(self) -> float | None:
        return self._progress.tasks[0].total

    def _spin(self, label: str) -> None:
        if self._total is not None or self._progress.tasks[0].description != label:
            self._begin(label, None)

    def _begin(self, label: str, total: int | None) -> None:
        # A new task has a clock of its own.
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(label, total=total)


class _Either(ProgressColumn):
    """One column for work whose end is known, another or none for work whose end is not."""

    def __init__(self, known: ProgressColumn, unknown: ProgressColumn | None = None) -> None:
        super().__init__()
        self._known, self._unknown = known, unknown

    def render(self, task: Task) -> RenderableType:
        """The column that belongs to the task."""
        column = self._known if task.total is not None else self._unknown
        return column(task) if column is not None else Text()

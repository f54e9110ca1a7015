"""What every command prints and where: results on stdout; progress, logs and the next command on stderr."""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
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
from rich.table import Column, Table
from rich.text import Text

from agridistill.progress import StagedProgress, is_first_process, registered_display, stderr_console
from agridistill.storage import json_text

UNDEFINED = "–"

stdout = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
stderr = stderr_console()

# What a command imports beyond the base, by the extra that holds it.
_NEEDS = {
    "train": ("train", ("torch", "timm", "lightning")),
    "distill": ("train", ("torch", "timm", "lightning")),
    "evaluate": ("train", ("torch", "sklearn")),
    "export": ("export", ("onnx", "onnxscript")),
    "report": ("report", ("jinja2", "matplotlib")),
    "watch": ("edge", ("paho", "cryptography", "httpx")),
    "publish": ("edge", ("cryptography",)),
}
_ANY_WIDTH = 10_000


class LogLines(logging.Handler):
    """Log records on stderr, without breaking a progress bar.

    Further lines of a record are indented: a name that holds a line feed cannot look like a record.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one record."""
        text = "\n  ".join(printable(line) for line in self.format(record).split("\n"))
        stderr.print(f"{record.levelname.lower()}: {text}", style="yellow")


def silence_other_ranks(processes: int) -> None:
    """Of the processes of one run only the first prints; an error is printed by the process that fails."""
    if not is_first_process(processes):
        stdout.quiet = stderr.quiet = True
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends


def print_json(document: Any) -> None:
    """Prints the one JSON document of a command with --json."""
    sys.stdout.write(json_text(document))
    # A reader that has ended (such as `head`) is an error here; at Python's own exit it would be a traceback.
    sys.stdout.flush()


def printable(name: str) -> str:
    """A text with its control characters and invalid Unicode replaced by their escape sequences.

    Example:
        >>> print(printable("leaf\\x1b[2J.jpg"))
        leaf\\x1b[2J.jpg
    """
    if name.isprintable():
        return name
    return "".join(sign if _is_visible(sign) else sign.encode("unicode_escape").decode("ascii") for sign in name)


def _is_visible(sign: str) -> bool:
    # For Python only the ASCII space is a printable space.
    return sign.isprintable() or unicodedata.category(sign) == "Zs"


def sibling(path: Path, name: str) -> Path:
    """Another name in the folder of `path`, also where `path` is written as `.` or `..`."""
    return path.resolve().parent / name if path.name in ("", "..") else path.with_name(name)


def next_command(*words: str | Path) -> None:
    """Prints the command that a user would run next, ready to be copied, and how to install what it needs."""
    extra, modules = _NEEDS.get(str(words[0]), ("", ()))
    missing = any(importlib.util.find_spec(module) is None for module in modules)
    install = f"pip install 'agridistill[{extra}]' && " if missing else ""
    stderr.print("Next: ", end="", style="bold")
    stderr.print(f"{install}agridistill " + shlex.join(str(word) for word in words))


def print_skipped(count: int, first: str) -> None:
    """Reports photos that were left out of a result."""
    if count:
        stderr.print(f"left out: {count} unreadable photos, the first {printable(first)}")


def print_note(text: str, *, style: str = "dim") -> None:
    """Prints a sentence below a table: in lines of whole words on a screen, as one line in a file or a pipe."""
    stdout.print(Text(text, style=style), soft_wrap=not stdout.is_terminal)


def new_table(title: str, first: str, *others: str) -> Table:
    """A table for `print_table`: names on the left, figures on the right, the most important columns first."""
    columns = [Column(heading, justify="right", no_wrap=True) for heading in others]
    return _table([Column(first, overflow="fold"), *columns], title=printable(title))


def _table(columns: Sequence[Column], title: str | None = None) -> Table:
    return Table(*columns, title=title, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)


def print_table(table: Table) -> None:
    """Prints a table whole in a file or a pipe; on a screen, columns without room go into further tables below."""
    print_note(str(table.title), style="italic")
    table.title = None  # it would be wrapped to the width of the columns
    for part in [table] if has_room(table) else _parts(table):
        _print_whole(part)


def print_figures(rows: Iterable[tuple[str, str]]) -> None:
    """Prints one line for each name and its value."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, printable(value))
    _print_whole(table)


def _print_whole(table: Table) -> None:
    if not stdout.is_terminal:
        table.width = _width(table)
    stdout.print(table, soft_wrap=not stdout.is_terminal)
    stdout.print()


def has_room(table: Table) -> bool:
    """Whether `print_table` prints all columns beside one another."""
    return not stdout.is_terminal or _width(table) <= stdout.width


def _width(table: Table) -> int:
    return stdout.measure(table, options=stdout.options.update(max_width=_ANY_WIDTH)).maximum


def _parts(table: Table) -> Iterator[Table]:
    """The table as one or several that fit the screen, each with the first column."""
    first, *others = table.columns
    part = _with_columns(table, [first, *others[:1]])
    for column in others[1:]:
        wider = _with_columns(table, [*part.columns, column])
        if has_room(wider):
            part = wider
        else:
            yield part
            part = _with_columns(table, [first, column])
    yield part


def _with_columns(table: Table, columns: Sequence[Column]) -> Table:
    part = _table([column.copy() for column in columns])
    for row, cells in zip(table.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
        part.add_row(*cells, style=row.style, end_section=row.end_section)
    return part


def percent(share: float | None) -> str:
    """One decimal: 92.4 %."""
    return UNDEFINED if share is None else f"{100 * share:.1f} %"


def digits(value: float) -> str:
    """Three digits: 2.31, 23.1, 231."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def count(number: int | None) -> str:
    """Three digits and a unit: 4.21 M."""
    if number is None:
        return UNDEFINED
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= size:
            return digits(number / size) + unit
    return str(number)


@contextmanager
def progress_bar(label: str, *, then: str = "working", first_line: str = "") -> Iterator[StagedProgress]:
    """Shows progress on stderr until the block ends; yields the callback that moves the bar.

    A pass of known length is a bar with count and time left, other work a spinner with its time. Without a terminal
    nothing is drawn.

    Args:
        label: of the first pass, and of all further ones until the callback's `stage` sets another.
        then: label of the spinner after a pass, where no stage was set.
        first_line: printed at the first progress, so after all checks: an error before it is the only line.
    """
    display = _Display(label, then, first_line, stderr)
    with registered_display(display):
        display.show("starting")
        try:
            yield display
        finally:
            display.hide()


class _Display:
    """The callback of `progress_bar`, and its drawing."""

    def __init__(self, label: str, then: str, first_line: str, console: Console) -> None:
        self._label, self._then, self._first_line, self._console = label, then, first_line, console
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            _Either(BarColumn(max(10, min(40, console.width - 48))), TimeElapsedColumn()),
            _Either(MofNCompleteColumn()),
            _Either(TimeRemainingColumn()),
        )
        # Without redirect_stdout=False rich would print results to stderr.
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
        """Draws a bar during a pass, a spinner after it or where its length is unknown."""
        if self._first_line:
            self._console.print(self._first_line)
            self._first_line = ""
        if done >= total > 0:
            self._spin(self._then)
        elif total <= 0:
            self._spin(self._label)
        else:
            if self._total is None:
                self._begin(self._label, total)
            self._progress.update(self._task, completed=done, total=total)

    def stage(self, name: str) -> None:
        """Draws a spinner with the name of the stage."""
        self._label = self._then = name
        self._begin(name, None)

    def hide(self) -> None:
        """Removes the display."""
        self._progress.stop()

    def show(self, label: str) -> None:
        """Draws the display, with the label where no pass is running."""
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
        # A new task starts its clock at zero.
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(label, total=total)


class _Either(ProgressColumn):
    """One column for work of known length, another or none for other work."""

    def __init__(self, known: ProgressColumn, unknown: ProgressColumn | None = None) -> None:
        super().__init__()
        self._known, self._unknown = known, unknown

    def render(self, task: Task) -> RenderableType:
        """The column for the task."""
        column = self._known if task.total is not None else self._unknown
        return column(task) if column is not None else Text()

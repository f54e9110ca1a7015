"""Prints for all commands: results on stdout; progress, logs and the suggested next command on stderr."""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from agridistill.progress import StagedProgress, displays, is_first_process, stderr_console
from agridistill.storage import json_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

UNDEFINED = "–"
# With one of these, rich may take a file or a pipe for a terminal.
_FORCING = ("FORCE_COLOR", "TTY_COMPATIBLE")


class Stream:
    """The command's stdout or stderr.

    rich prints to a terminal, and draws tables. All other lines are written without it, because its import takes a
    tenth of the time of a first answer.
    """

    def __init__(self, name: str) -> None:
        self._name, self._quiet = name, False

    @cached_property
    def console(self) -> Console:
        """The console of rich for this stream."""
        if self._name == "stderr":
            return stderr_console()
        from rich.console import Console

        return Console(highlight=False, soft_wrap=True, markup=False, emoji=False)

    @property
    def is_terminal(self) -> bool:
        """Whether a person may look at the output now."""
        may_be = any(os.environ.get(name) for name in _FORCING) or (self._file is not None and self._file.isatty())
        return may_be and self.console.is_terminal

    @property
    def quiet(self) -> bool:
        """Whether nothing is printed."""
        return self._quiet

    @quiet.setter
    def quiet(self, quiet: bool) -> None:
        self._quiet = self.console.quiet = quiet

    def print(self, text: Any = "", *, style: str | None = None, end: str = "\n", **options: Any) -> None:
        """Prints a text, or something that rich renders; `options` are those of `rich.console.Console.print`."""
        if self._file is None or not isinstance(text, str) or self.is_terminal:
            self.console.print(text, style=style, end=end, **options)
        elif not self._quiet:
            try:
                self._file.write(text + end)
                self._file.flush()
            except BrokenPipeError:
                self.console.on_broken_pipe()

    @property
    def _file(self) -> IO[str] | None:
        return getattr(sys, self._name)  # type: ignore[no-any-return]


stdout, stderr = Stream("stdout"), Stream("stderr")

# Command -> the extra that it needs, and modules which show whether the extra is installed.
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
_WAKE_S = 0.5


class LogLines(logging.Handler):
    """A logging handler that prints records to stderr without destroying a progress bar.

    All lines of a record but the first are indented, so that a file name with a line feed cannot imitate a record.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one log record with its level, such as "warning: …"."""
        text = "\n  ".join(printable(line) for line in self.format(record).split("\n"))
        stderr.print(f"{record.levelname.lower()}: {text}", style="yellow")


def show_logs(*, debug: bool) -> None:
    """Prints log records to stderr: warnings and errors, with `debug` also information."""
    root = logging.getLogger()
    root.setLevel(logging.INFO if debug else logging.WARNING)
    if not any(isinstance(handler, LogLines) for handler in root.handlers):
        root.addHandler(LogLines())


def silence_other_ranks(processes: int) -> None:
    """Switches output off in all `processes` of a training run except the first one; errors are still printed."""
    if not is_first_process(processes):
        stdout.quiet = stderr.quiet = True
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends


def wait_for_ctrl_c() -> None:
    """Waits until Ctrl-C raises KeyboardInterrupt."""
    # In steps: a Ctrl-C just before an endless wait would be noticed when the wait ends, which it never does.
    while True:
        time.sleep(_WAKE_S)


def print_json(document: Any) -> None:
    """Prints the result of a command as one JSON document on stdout, for the option --json."""
    sys.stdout.write(json_text(document))
    # Flush now: if the reader of a pipe (such as `head`) has ended, the error is handled here and not at Python's exit,
    # where it would print a traceback.
    sys.stdout.flush()


def printable(name: str) -> str:
    """Replaces control characters and invalid Unicode in a text by their escape sequences.

    Example:
        >>> print(printable("leaf\\x1b[2J.jpg"))
        leaf\\x1b[2J.jpg
    """
    if name.isprintable():
        return name
    return "".join(sign if _is_visible(sign) else sign.encode("unicode_escape").decode("ascii") for sign in name)


def _is_visible(sign: str) -> bool:
    # `str.isprintable` is False for all spaces except the ASCII one.
    return sign.isprintable() or unicodedata.category(sign) == "Zs"


def sibling(path: Path, name: str) -> Path:
    """Returns the path of the file or folder `name` in the same folder as `path`; `path` may also be `.` or `..`."""
    return path.resolve().parent / name if path.name in ("", "..") else path.with_name(name)


def next_command(*words: str | Path) -> None:
    """Suggests the next command on stderr; if it needs an extra that is not installed, `pip install` comes first."""
    extra, modules = _NEEDS.get(str(words[0]), ("", ()))
    missing = any(importlib.util.find_spec(module) is None for module in modules)
    install = f"pip install 'agridistill[{extra}]' && " if missing else ""
    stderr.print("Next: ", end="", style="bold")
    stderr.print(f"{install}agridistill " + shlex.join(str(word) for word in words))


def print_skipped(count: int, first: str) -> None:
    """Reports on stderr that `count` unreadable photos were left out; `first` is the first path, with the reason."""
    if count:
        stderr.print(f"left out: {count} unreadable photos, the first {printable(first)}")


def print_note(text: str, *, style: str = "dim") -> None:
    """Prints a sentence below a table; on a screen it is wrapped between words, in a file or a pipe it is one line."""
    from rich.text import Text

    stdout.print(Text(text, style=style), soft_wrap=not stdout.is_terminal)


def new_table(title: str, first: str, *others: str) -> Table:
    """Creates a table for `print_table`: a column of names, then columns of figures, the most important first."""
    from rich.table import Column

    columns = [Column(heading, justify="right", no_wrap=True) for heading in others]
    return _table([Column(first, overflow="fold"), *columns], title=printable(title))


def _table(columns: Sequence[Column], title: str | None = None) -> Table:
    from rich import box
    from rich.table import Table

    return Table(*columns, title=title, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)


def print_table(table: Table) -> None:
    """Prints a table; on a screen, columns that do not fit the width follow in further tables below."""
    print_note(str(table.title), style="italic")
    table.title = None  # rich would wrap it to the width of the columns
    for part in [table] if has_room(table) else _parts(table):
        _print_whole(part)


def print_with_legend(table: Table, names: Iterable[str]) -> None:
    """Prints a table with numbers for the long names of its rows, then these names, each after its number."""
    print_table(table)
    for name in names:
        print_note(name)
    stdout.print()


def print_figures(rows: Iterable[tuple[str, str]]) -> None:
    """Prints one line for each pair of a name and its value."""
    from rich.table import Table

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
    """Returns whether `print_table` prints one table: all its columns fit the screen, or stdout is no terminal."""
    return not stdout.is_terminal or _width(table) <= stdout.console.width


def _width(table: Table) -> int:
    console = stdout.console
    return console.measure(table, options=console.options.update(max_width=_ANY_WIDTH)).maximum


def _parts(table: Table) -> Iterator[Table]:
    """Splits a table into tables that fit the screen and that all have the first column."""
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
    """Formats a share (0 to 1) as a percentage with one decimal, such as "92.4 %"; None as "–"."""
    return UNDEFINED if share is None else f"{100 * share:.1f} %"


def percent_with_interval(share: float, interval: tuple[float, float]) -> str:
    """Formats a share with its interval (both 0 to 1), such as "92.4 % (90.1–94.2)"."""
    low, high = interval
    return f"{percent(share)} ({100 * low:.1f}–{100 * high:.1f})"


def digits(value: float) -> str:
    """Formats a positive number with about three digits: "2.31", "23.1", "231"."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def count(number: int | None) -> str:
    """Formats a count with about three digits and a unit, such as "4.21 M"; None as "–"."""
    if number is None:
        return UNDEFINED
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= size:
            return digits(number / size) + unit
    return str(number)


@contextmanager
def progress_bar(label: str, *, then: str = "working", first_line: str = "") -> Iterator[StagedProgress]:
    """Shows progress on stderr until the block ends; yields the progress callback for the work in the block.

    Work of known length is a bar with its count and the time left, other work a spinner with the time that it has
    taken. Nothing is drawn if stderr is not a terminal. `label` names the work until the callback's method `stage`
    does; `then` is the label after a complete bar. `first_line` is printed with the first progress: if the work fails
    before, only its error is printed.
    """
    if not stderr.is_terminal or stderr.quiet:
        yield _Unseen(first_line)
        return
    # Its import would delay the first answer of `predict`.
    from agridistill.cli.display import LiveDisplay

    display = LiveDisplay(label, then, first_line, stderr.console)
    displays.append(display)
    try:
        display.show("starting")
        yield display
    finally:
        displays.remove(display)
        display.hide()


class _Unseen:
    """The callback that `progress_bar` yields where nothing is drawn."""

    def __init__(self, first_line: str) -> None:
        self._first_line = first_line

    def __call__(self, done: int, total: int) -> None:
        if self._first_line:
            stderr.print(self._first_line)
            self._first_line = ""

    def stage(self, name: str) -> None:
        """Shows nothing."""

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

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agridistill.processes import is_first_process
from agridistill.progress import ProgressCallback
from agridistill.storage import json_text

stdout = Console(highlight=False, soft_wrap=True)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


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
def progress_bar(label: str) -> Iterator[ProgressCallback]:
    """A bar with count and time left on stderr; gives the callback that moves it.

    It goes when all is done, so that the next step may have a bar of its own, and comes back with the next pass.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            if not progress.disable and done < total and not progress.live.is_started:
                progress.reset(task)
                progress.start()
            progress.update(task, completed=done, total=total)
            if done >= total:
                progress.stop()

        yield update

"""Draws the progress of long work on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class LiveDisplay:
    """The progress callback that `output.progress_bar` yields on a terminal; it also draws the bar."""

    def __init__(self, label: str, then: str, first_line: str, console: Console) -> None:
        self._label, self._then, self._first_line, self._console = label, then, first_line, console
        start = SpinnerColumn(), TextColumn("{task.description}", markup=False)
        bar = BarColumn(max(10, min(40, console.width - 48)))
        self._bar = (*start, bar, MofNCompleteColumn(), TimeRemainingColumn())
        self._spinner = (*start, TimeElapsedColumn())
        # Without redirect_stdout=False, rich would print results to stderr instead of stdout.
        self._progress = Progress(
            *self._spinner,
            console=console,
            transient=True,
            redirect_stdout=False,
            refresh_per_second=5,
        )
        self._task = self._progress.add_task("", total=None)

    def __call__(self, done: int, total: int) -> None:
        """Draws a bar while `done` is below `total`, else a spinner; a `total` of 0 means an unknown length."""
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
        """Starts a stage of unknown length: draws a spinner with its name."""
        self._label = self._then = name
        self._begin(name, None)

    def hide(self) -> None:
        """Removes the bar."""
        self._progress.stop()

    def show(self, label: str) -> None:
        """Draws the display again; it shows the label unless a bar is in progress."""
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
        self._progress.columns = self._spinner if total is None else self._bar
        # Only a new task starts its clock at zero.
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(label, total=total)

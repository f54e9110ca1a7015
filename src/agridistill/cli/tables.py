"""Tables of names and figures that fit the screen, and the tables of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agridistill.cli.output import printable, stdout

if TYPE_CHECKING:
    from agridistill.evaluation.evaluate import EvaluationResult

UNDEFINED = "–"

_GAP = 2
_INDENT = 2  # of figures below their name
_MAX_MATRIX = 15  # classes of a confusion matrix that fits a page
_CONFUSIONS = 10


@dataclass
class FigureTable:
    """Names on the left, figures on the right; the most important columns first.

    Where a screen is too narrow for all columns, none is cut or folded: the figures go below their names, or the last
    columns into a further table, or both. Names and cells are rich markup and may have several lines.
    """

    title: str
    first: str  # heading of the names
    columns: list[tuple[str, Any]] = field(default_factory=list)  # heading, and "right" or "left"
    rows: list[tuple[str, tuple[str, ...], str]] = field(default_factory=list)  # name, cells, style
    sections: set[int] = field(default_factory=set)  # rows with a line below them

    def add_column(self, heading: str, *, justify: str = "right") -> None:
        """Adds a column, less important than those before."""
        self.columns.append((heading, justify))

    def add_row(self, name: str, *cells: str, style: str = "") -> None:
        """Adds a row with one cell for each column."""
        self.rows.append((name, cells, style))

    def add_section(self) -> None:
        """Draws a line below the last row."""
        self.sections.add(len(self.rows) - 1)

    def fits(self, width: int) -> bool:
        """Whether all columns have room beside the names."""
        return len(self._parts(width - self._width_of_names() - _GAP)) == 1

    def on_screen(self, width: int | None) -> list[RenderableType]:
        """The title and the tables to print one below the other; one table where the width is None."""
        title = Text(self.title, style="italic", overflow="fold")
        if width is None:
            return [title, self._beside(range(len(self.columns)))]
        beside = self._parts(width - self._width_of_names() - _GAP)
        below = self._parts(width - _INDENT)
        layout, parts = (self._beside, beside) if len(beside) <= len(below) else (self._below, below)
        return [title, *(layout(part) for part in parts)]

    def _parts(self, room: int) -> list[range]:
        """The columns of each table, as many as there is room for; a table has at least one."""
        parts, start, used = [], 0, 0
        for index in range(len(self.columns)):
            needed = self._width(index) + (_GAP if index > start else 0)
            if index > start and used + needed > room:
                parts.append(range(start, index))
                start, used, needed = index, 0, self._width(index)
            used += needed
        return [*parts, range(start, len(self.columns))]

    def _beside(self, part: range) -> Table:
        table = self._empty(self.first)
        for index in part:
            heading, justify = self.columns[index]
            table.add_column(heading, justify=justify, overflow="fold")
        for number, (name, cells, style) in enumerate(self.rows):
            texts = [Text.from_markup(text) for text in (name, *(cells[index] for index in part))]
            table.add_row(*texts, style=style or None, end_section=number in self.sections)
        return table

    def _below(self, part: range) -> Table:
        headings = [escape(heading) for heading, _ in self.columns]
        table = self._empty(Group(Text(self.first), self._line(headings, part)))
        for number, (name, cells, style) in enumerate(self.rows):
            text = Text.from_markup(name, overflow="fold")
            text.stylize("bold", 0, len(text.plain.split("\n", 1)[0]))
            row = Group(text, self._line(cells, part))
            table.add_row(row, style=style or None, end_section=number in self.sections)
        return table

    @staticmethod
    def _empty(first: RenderableType) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
        table.add_column(first, overflow="fold")
        return table

    def _line(self, cells: Sequence[str], part: range) -> RenderableType:
        """Cells in columns as wide as those of all rows."""
        line = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
        for index in part:
            line.add_column(justify=self.columns[index][1], width=self._width(index), overflow="fold")
        line.add_row(*(Text.from_markup(cells[index]) for index in part))
        return Padding(line, (0, 0, 0, _INDENT))

    def _width_of_names(self) -> int:
        return _widest((escape(self.first), *(name for name, _, _ in self.rows)))

    def _width(self, index: int) -> int:
        return _widest((escape(self.columns[index][0]), *(cells[index] for _, cells, _ in self.rows)))


def _widest(texts: Sequence[str]) -> int:
    lines = (line for text in texts for line in Text.from_markup(text).split("\n", allow_blank=True))
    return max(line.cell_len for line in lines)


def new_table(title: str, first: str, *others: str) -> FigureTable:
    """A table of names on the left and figures on the right, the most important first."""
    return FigureTable(printable(title), first, [(heading, "right") for heading in others])


def print_table(table: FigureTable | Table) -> None:
    """Prints a table: as the screen has room, whole in a file or a pipe."""
    width = stdout.width if stdout.is_terminal else None
    parts: list[RenderableType] = list(table.on_screen(width)) if isinstance(table, FigureTable) else [table]
    for part in parts:
        if width is None and isinstance(part, Table):
            part.width = stdout.measure(part, options=stdout.options.update(max_width=10_000)).maximum
        stdout.print(part, soft_wrap=width is None)
        if isinstance(part, Table):
            stdout.print()


def print_note(text: str, *, style: str = "dim") -> None:
    """Prints a sentence below a table: in lines of whole words on a screen, as one line in a file or a pipe."""
    stdout.print(Text(text, style=style), soft_wrap=not stdout.is_terminal)


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


def cell(text: str) -> str:
    """A text without markup, for a cell of a `FigureTable`."""
    return escape(printable(text))


def accuracy(result: EvaluationResult) -> str:
    """Accuracy with its 95 % interval."""
    low, high = result.accuracy_ci95
    return f"{percent(result.accuracy)} ({100 * low:.1f}–{100 * high:.1f})"


def print_evaluation(result: EvaluationResult, *, title: str) -> None:
    """Prints the scores of each class, the confusions and the figures of the whole model."""
    table = new_table(title, "class", "precision", "recall", "F1", "photos")
    for scores in result.per_class:
        f1 = UNDEFINED if scores.f1 is None else f"{scores.f1:.3f}"
        table.add_row(cell(scores.name), percent(scores.precision), percent(scores.recall), f1, f"{scores.photos:,}")
    print_table(table)
    if any(scores.f1 is None for scores in result.per_class):
        print_note(f"{UNDEFINED}: no photos of this class; it is left out of macro-F1")
    _print_confusions(result)
    print_table(_summary(result))


def _print_confusions(result: EvaluationResult) -> None:
    """The matrix if it has room; where the names take too much of it, with numbers for them."""
    width = stdout.width if stdout.is_terminal else None
    named, numbered = _confusion_matrix(result), _confusion_matrix(result, names=False)
    small = len(result.classes) <= _MAX_MATRIX
    if small and (width is None or named.fits(width)):
        print_table(named)
    elif small and width is not None and numbered.fits(width):
        print_table(numbered)
        for number, name in enumerate(result.classes, start=1):
            print_note(f"{number:>2} {printable(name)}")
        stdout.print()
    else:
        print_table(_frequent_confusions(result))


def _confusion_matrix(result: EvaluationResult, *, names: bool = True) -> FigureTable:
    numbers = [f"{number:>{len(str(len(result.classes)))}}" for number in range(1, len(result.classes) + 1)]
    table = new_table("confusion matrix: rows are the truth, columns the prediction", "class", *numbers)
    for index, (name, row) in enumerate(zip(result.classes, result.confusion_matrix, strict=True)):
        cells = [f"[bold]{photos}[/]" if column == index else str(photos or "·") for column, photos in enumerate(row)]
        table.add_row(f"{numbers[index]} {cell(name)}" if names else numbers[index], *cells)
    return table


def _frequent_confusions(result: EvaluationResult) -> FigureTable:
    table = FigureTable("most frequent confusions", "class", [("taken for", "left"), ("photos", "right")])
    mistakes = [
        (photos, result.classes[truth], result.classes[prediction])
        for truth, row in enumerate(result.confusion_matrix)
        for prediction, photos in enumerate(row)
        if photos and truth != prediction
    ]
    for photos, truth_name, prediction_name in sorted(mistakes, key=lambda mistake: -mistake[0])[:_CONFUSIONS]:
        table.add_row(cell(truth_name), cell(prediction_name), f"{photos:,}")
    return table


def _summary(result: EvaluationResult) -> Table:
    """One line a figure of the whole model."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    # Where no leaf is known, each photo counts as one.
    photos = f"{result.photos:,}" + (f" of {result.leaves:,} leaves" if result.leaves < result.photos else "")
    table.add_row("accuracy (95 % CI)", accuracy(result))
    table.add_row("macro-F1", f"{result.macro_f1:.3f}")
    table.add_row("negative log-likelihood", f"{result.nll_nats:.3f} nats")
    table.add_row("calibration error", percent(result.calibration_error))
    table.add_row("temperature", f"{result.temperature:.2f}")
    table.add_row("photos", photos + (f"; {result.skipped:,} unreadable left out" if result.skipped else ""))
    table.add_row("parameters", count(result.parameters))
    table.add_row("MACs", count(result.macs))
    table.add_row("FLOPs", count(result.flops))
    table.add_row("input", f"{result.image_size} x {result.image_size} px")
    return table

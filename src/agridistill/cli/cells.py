"""Tables of names and figures, which fit the screen, and how figures and names stand in their cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agridistill.cli.output import shown, stdout

UNDEFINED = "–"

_GAP = 2
# Figures that stand below their name begin so far to the right.
_INDENT = 2


@dataclass
class FigureTable:
    """Names on the left, figures on the right; the most important columns first.

    Where a screen is too narrow for all columns, none is cut and none is folded: the figures go below their names, or
    the last columns into a further table, or both.

    Attributes:
        title: without markup.
        first: heading of the names.
        columns: heading of each column of figures, and "right" or "left".
        rows: name, cells and style of each row; names and cells are rich markup and may have several lines.
        sections: numbers of rows below which a line is drawn.
    """

    title: str
    first: str
    columns: list[tuple[str, str]] = field(default_factory=list)
    rows: list[tuple[str, tuple[str, ...], str]] = field(default_factory=list)
    sections: set[int] = field(default_factory=set)

    def add_column(self, heading: str, *, justify: str = "right") -> None:
        """A further column, less important than those before."""
        self.columns.append((heading, justify))

    def add_row(self, name: str, *cells: str, style: str = "") -> None:
        """A row with one cell for each column."""
        self.rows.append((name, cells, style))

    def add_section(self) -> None:
        """Draws a line below the last row."""
        self.sections.add(len(self.rows) - 1)

    def fits(self, width: int) -> bool:
        """Whether all columns stand beside the names."""
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
        table = self._empty(escape(self.first))
        for index in part:
            heading, justify = self.columns[index]
            table.add_column(escape(heading), justify=justify, overflow="fold")  # type: ignore[arg-type]
        for number, (name, cells, style) in enumerate(self.rows):
            table.add_row(
                name, *(cells[index] for index in part), style=style or None, end_section=number in self.sections
            )
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
            _, justify = self.columns[index]
            line.add_column(justify=justify, width=self._width(index), overflow="fold")  # type: ignore[arg-type]
        line.add_row(*(cells[index] for index in part))
        return Padding(line, (0, 0, 0, _INDENT))

    def _width_of_names(self) -> int:
        return _widest((self.first, *(name for name, _, _ in self.rows)))

    def _width(self, index: int) -> int:
        return _widest((escape(self.columns[index][0]), *(cells[index] for _, cells, _ in self.rows)))


def _widest(texts: Sequence[str]) -> int:
    return max(line.cell_len for text in texts for line in _lines(text))


def _lines(text: str) -> Iterator[Text]:
    yield from Text.from_markup(text).split("\n", allow_blank=True)


def new_table(title: str, first: str, *others: str) -> FigureTable:
    """A table of names on the left and figures on the right, the most important first."""
    table = FigureTable(shown(title), first)
    for heading in others:
        table.add_column(heading)
    return table


def show_table(table: FigureTable | Table) -> None:
    """Prints it: as the screen has room, whole in a file or a pipe."""
    # In a file or a pipe there is no screen whose width would matter.
    width = stdout.width if stdout.is_terminal else None
    parts: list[RenderableType] = list(table.on_screen(width)) if isinstance(table, FigureTable) else [table]
    for part in parts:
        if width is None and isinstance(part, Table):
            part.width = stdout.measure(part, options=stdout.options.update(max_width=10_000)).maximum
        stdout.print(part, soft_wrap=width is None)
        if isinstance(part, Table):
            stdout.print()


def show_note(text: str, *, style: str = "dim") -> None:
    """Prints a sentence below a table: in lines of whole words on a screen, as one line in a file or a pipe."""
    stdout.print(Text(text, style=style), soft_wrap=not stdout.is_terminal)


def percent(share: float | None) -> str:
    """One decimal: 92.4 %."""
    return UNDEFINED if share is None else f"{100 * share:.1f} %"


def count(number: int | None) -> str:
    """Three digits and a unit: 4.21 M."""
    if number is None:
        return UNDEFINED
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= size:
            value = number / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{unit}"
    return str(number)


def duration(seconds: float | None) -> str:
    """In the two largest units: 3 min 7 s."""
    if seconds is None:
        return UNDEFINED
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plain(name: str) -> str:
    """A name as it is, without markup."""
    return escape(shown(name))

"""How figures and names stand in the cells of a table."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from agridistill.cli.output import shown, stdout

UNDEFINED = "–"


def new_table(title: str, first: str, *others: str) -> Table:
    """A table of names on the left and figures on the right."""
    table = Table(title=plain(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def show_table(table: Table) -> None:
    """Prints it: folded to a screen, whole in a file or a pipe."""
    # In a file or a pipe there is no screen whose width would matter.
    if not stdout.is_terminal:
        table.width = stdout.measure(table, options=stdout.options.update(max_width=10_000)).maximum
    stdout.print(table)


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

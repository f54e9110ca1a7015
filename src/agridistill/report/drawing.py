"""How every plot looks, and what comes of one: a picture as SVG, its caption and its numbers."""

from __future__ import annotations

import html
import io
import re
import warnings
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Inches. On a phone's 350 px letters of 10 points are still 10 px high.
WIDTH = 4.9
# Beyond this a plot scrolls on a phone, or its letters of 8 points would be less than 6 px high.
WIDEST = 5.9
_FILE_NAME = re.compile(r"[^\w.-]+")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c00")
# Of different lengths, so that hundreds of series differ in one of the three.
_MARKS = "osD^vPX"
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (7, 2)))
# Of matplotlib's own keys, which its types list one by one.
STYLE: Any = {
    # Text stays text: the reader's own fonts have the letters of every script, matplotlib's has not, and is the widest.
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Plot:
    """One picture.

    Attributes:
        name: of its files.
        caption: what it shows and how to read it.
        svg: the picture, without an XML header.
        numbers: what it shows, for JSON.
        width: of the picture, in inches.
    """

    name: str
    caption: str
    svg: str
    numbers: Any
    width: float


def look(index: int) -> dict[str, Any]:
    """Colour, dash and mark of one of many series."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "marker": _MARKS[index % len(_MARKS)],
        "markersize": 4,
    }


def drawn(figure: Figure, name: str, caption: str, numbers: Any) -> Plot:
    """The figure as a plot, which speaks to screen readers and whose ids are its own."""
    held = io.StringIO()
    # The salt makes the ids within the picture its own, and the same every time.
    with rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # Letters that matplotlib's font has not are only measured with it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None})
    text = held.getvalue()
    label = html.escape(caption, quote=True)
    svg = text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return Plot(_FILE_NAME.sub("-", name), caption, svg, numbers, figure.get_figwidth())


def add_legend(figure: Figure) -> None:
    """Above the picture, from the left, in as many columns as fit."""
    names = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    if not names:
        return
    mark, letter = 0.5, 0.07  # inches of a mark and of a letter
    columns = int(figure.get_figwidth() / (mark + letter * max(map(len, names))))
    figure.legend(loc="outside upper left", ncols=min(len(names), max(1, columns)), fontsize=8)


def new_figure(width: float = WIDTH, height: float = 3.3) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()

"""Draws the plots of a report as SVG, each with its caption and its numbers."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from agridistill.report.words import short_name

# Width in inches. On a phone of 350 px, text of 10 points is 10 px high at this width.
WIDTH = 4.9
# A plot wider than this scrolls on a phone, because its text of 8 points would otherwise be less than 6 px high.
MAX_WIDTH = 5.9
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c00")
# The lengths of these lists have no common factor, so that hundreds of series look different.
_MARKERS = "osD^vPX"
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (7, 2)))
_STYLE: Any = {
    # Keep text as text: matplotlib's font does not cover every script, but the reader's fonts do.
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
_MIN_PHOTOS_IN_BIN = 10

Evidence = Mapping[str, Mapping[str, Any]]  # documents by the name of the model


@dataclass(frozen=True)
class Plot:
    """One plot of a report, with its caption and its numbers."""

    name: str  # name of its files
    caption: str
    svg: str  # without an XML header
    numbers: Any  # the data of the plot, ready for JSON
    width: float  # inches


def series_style(index: int) -> dict[str, Any]:
    """Returns arguments for matplotlib's `plot`: colour, line style and marker of the series number `index`, from 0."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 4,
    }


@rc_context(_STYLE)
def trade_off(points: Sequence[Mapping[str, Any]], *, x: str, label: str) -> Plot:
    """Draws test accuracy against a cost, such as latency, on a logarithmic axis; a line joins the Pareto front.

    Each point is a dict: "name", "accuracy" and optionally its interval "low" and "high" (0 to 1), and the cost under
    the key `x`. `label` is that of the cost's axis, with the unit.
    """
    figure, axes = _create_figure()
    front = [points[index] for index in pareto([(point[x], point["accuracy"]) for point in points])]
    accuracies = [100 * point["accuracy"] for point in front]
    axes.plot([point[x] for point in front], accuracies, color="#888888", linewidth=1, zorder=1)
    for index, point in enumerate(points):
        style = series_style(index) | {"linestyle": "none", "markersize": 7}
        accuracy = 100 * point["accuracy"]
        if "low" in point:
            errors = [[accuracy - 100 * point["low"]], [100 * point["high"] - accuracy]]
            axes.errorbar(point[x], accuracy, yerr=errors, color=style["color"], linewidth=1, capsize=2, alpha=0.6)
        axes.plot(point[x], accuracy, label=point["name"], **style)
    axes.set(xscale="log", xlabel=label, ylabel="test accuracy, %")
    costs = [point[x] for point in points]
    # The axis is wide enough for two ticks of 1, 2 and 5, even if all costs are equal.
    axes.set_xlim(min(costs) / 2.5, max(costs) * 2.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return _to_plot(
        figure,
        f"accuracy-against-{x.replace('_', '-')}",
        f"Accuracy against {label}. Models further up and to the left are better; the grey line joins the models that "
        "no other model beats in both. A bar is the 95 % interval of a single run; marks without a bar are means over "
        "seeds.",
        list(points),
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the indices of the points (cost, value) on the Pareto front (low cost, high value), sorted by cost.

    Example:
        >>> pareto([(1.0, 0.8), (2.0, 0.7), (3.0, 0.9)])
        [0, 2]
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


@rc_context(_STYLE)
def differences(budget: Mapping[str, Any], baseline: str) -> Plot | None:
    """Draws each candidate's difference in accuracy to the baseline with its interval; returns None if there is none.

    `budget` is a row of "budgets" in `compare.json`, and `baseline` the name of a candidate.
    """
    rows = [row for row in budget["rows"] if row["difference"] is not None]
    if not rows:
        return None
    figure, axes = _create_figure(height=1.2 + 0.32 * len(rows))
    colour = _COLOURS[0]
    for height, row in enumerate(reversed(rows)):
        difference = row["difference"]
        low, high = difference["points_ci95"]
        is_clear = (low > 0 or high < 0) and not difference["of_leaves_alone"]
        fill = colour if is_clear else "white"
        axes.plot([low, high], [height, height], color=colour, linewidth=1.6)
        axes.plot(difference["points"], height, "o", color=colour, markerfacecolor=fill, markersize=6)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
    axes.set(xlabel=f"test accuracy minus that of {baseline}, points", ylim=(-0.7, len(rows) - 0.3))
    return _to_plot(
        figure,
        f"differences-{budget['name']}",
        f"Difference to {baseline} on the same photos with its 95 % interval over leaves and seeds. A hollow mark "
        "shows no evidence of a difference: the interval contains zero, or there is only one seed.",
        [{"name": row["name"], **row["difference"]} for row in rows],
    )


@rc_context(_STYLE)
def learning_curves(curves: Mapping[str, Sequence[Sequence[float]]], *, name: str) -> Plot:
    """Draws validation accuracy by epoch: for each candidate the mean of its seeds, and a band from lowest to highest.

    `curves` has for each candidate one row per seed with the accuracy (0 to 1) after each epoch.
    """
    figure, axes = _create_figure()
    lowest = 100.0
    for index, (candidate, rows) in enumerate(curves.items()):
        length = min(len(row) for row in rows)
        values = 100 * np.array([row[:length] for row in rows])
        epochs, mean, style = np.arange(1, length + 1), values.mean(axis=0), series_style(index)
        axes.plot(epochs, mean, label=candidate, markevery=max(1, length // 8), **style)
        if len(rows) > 1:
            band = values.min(axis=0), values.max(axis=0)
            axes.fill_between(epochs, *band, color=style["color"], alpha=0.12, linewidth=0)
        lowest = min(lowest, float(np.percentile(mean, 15)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="validation accuracy, %", ylim=(max(0.0, lowest - 5), None))
    return _to_plot(
        figure,
        name,
        "Validation accuracy by epoch. Lines: mean over seeds; bands: lowest to highest seed. The first epochs may lie "
        "below the plot.",
        {candidate: [list(row) for row in rows] for candidate, rows in curves.items()},
    )


@rc_context(_STYLE | {"axes.grid": False})
def confusion(evaluation: Mapping[str, Any], *, name: str) -> Plot:
    """Draws a confusion matrix: numbers are photos, colours are shares of the photos of the true class.

    `evaluation` is the content of `evaluation.json`, `name` the name of the model.
    """
    classes = [short_name(label, evaluation["classes"]) for label in evaluation["classes"]]
    counts = np.array(evaluation["confusion_matrix"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.6 + 0.42 * len(classes)
    figure, axes = _create_figure(side + 0.6, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 20:  # with more classes the cells are too small for numbers
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.55 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(classes)), classes, rotation=45, rotation_mode="anchor", ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set(xlabel="answer", ylabel="truth")
    return _to_plot(
        figure,
        f"confusion-{name}",
        f"Confusion matrix of {name} on the {evaluation['split']} split: photos of each row's class by answer; "
        "the colour is the share of the row.",
        {"classes": evaluation["classes"], "confusion_matrix": evaluation["confusion_matrix"]},
    )


@rc_context(_STYLE)
def reliability(evidence: Evidence) -> Plot:
    """Draws accuracy against confidence, with a line for each model in `evidence`."""
    figure, axes = _create_figure()
    axes.plot([0, 100], [0, 100], color="black", linewidth=0.8)
    for index, (name, document) in enumerate(evidence.items()):
        bins = [one for one in document["reliability"] if one["photos"] >= _MIN_PHOTOS_IN_BIN]
        confidences, accuracies = ([100 * one[key] for one in bins] for key in ("confidence", "accuracy"))
        axes.plot(confidences, accuracies, label=name, **series_style(index))
    axes.set(xlabel="confidence of the answer, %", ylabel="share that is right, %", xlim=(0, 102), ylim=(0, 102))
    return _to_plot(
        figure,
        "reliability",
        "Reliability: of the answers given with 80 % confidence, 80 % should be right. Above the black line a model's "
        f"confidence is too low, below it too high. Bins of fewer than {_MIN_PHOTOS_IN_BIN} photos are in the numbers "
        "only.",
        _numbers(evidence, "reliability"),
    )


@rc_context(_STYLE)
def coverage(evidence: Evidence) -> Plot:
    """Draws accuracy of the answers against the share of photos answered, with a line for each model in `evidence`."""
    figure, axes = _create_figure()
    lowest = 100.0
    for index, (name, document) in enumerate(evidence.items()):
        selective, style = document["selective"], series_style(index)
        curve = [point for point in selective["curve"] if point["coverage"] >= 0.05]
        shares, accuracies = ([100 * point[key] for point in curve] for key in ("coverage", "accuracy"))
        lowest = min(lowest, *accuracies)
        axes.plot(shares, accuracies, label=name, **(style | {"marker": None}))
        if selective["accuracy"] is not None:
            threshold = 100 * selective["coverage"], 100 * selective["accuracy"]
            axes.plot(*threshold, style["marker"], color=style["color"], markersize=7)
    axes.axhline(99, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="photos that are answered, %", ylabel="answers that are right, %", ylim=(lowest - 1, 100.4))
    return _to_plot(
        figure,
        "coverage",
        "Accuracy against coverage: how accuracy rises if the model abstains on the least certain photos. A mark shows "
        "the result on the test split with the threshold that was chosen for 99 % on the validation split.",
        _numbers(evidence, "selective"),
    )


@rc_context(_STYLE)
def robustness(evidence: Evidence) -> Plot:
    """Draws accuracy against strength in a small plot for each corruption, with a line for each model in `evidence`."""
    first = next(iter(evidence.values()))["robustness"]
    rows = -(-len(first["corruptions"]) // 2)
    figure = Figure(figsize=(WIDTH, 1.5 * rows + 0.5), layout="constrained")
    grid = list(figure.subplots(rows, 2, sharey=True, squeeze=False).flat)
    for axes, corruption in zip(grid, first["corruptions"], strict=False):
        is_first = corruption is first["corruptions"][0]
        for index, (name, document) in enumerate(evidence.items()):
            results = document["robustness"]
            same = next(one for one in results["corruptions"] if one["name"] == corruption["name"])
            values = [100 * accuracy for accuracy in (results["accuracy"], *same["accuracies"])]
            axes.plot(range(len(values)), values, label=name if is_first else None, **series_style(index))
        axes.axhline(100 * first["chance"], color="black", linewidth=0.8, linestyle=":")
        axes.set_title(corruption["name"], fontsize=9)
        ticks = ["none", *(f"{value:g}" for value in corruption["strengths"])]
        axes.set_xticks(range(len(ticks)), ticks, fontsize=7)
        axes.set_ylim(0, 102)
    for unused in grid[len(first["corruptions"]) :]:
        unused.axis("off")
    figure.supylabel("test accuracy, %", fontsize=9)
    return _to_plot(
        figure,
        "robustness",
        "Accuracy under corruptions as in the field, from none to strong; the table below has the unit of each "
        "strength. The dotted line is the accuracy of always answering the most frequent class.",
        _numbers(evidence, "robustness"),
    )


def _numbers(evidence: Evidence, key: str) -> dict[str, Any]:
    return {name: document[key] for name, document in evidence.items()}


def _create_figure(width: float = WIDTH, height: float = 3.3) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _to_plot(figure: Figure, name: str, caption: str, numbers: Any) -> Plot:
    """Renders a figure, with a legend if series have labels, a label for screen readers, and ids unique in a page."""
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    if labels:
        marker, letter = 0.5, 0.07  # inches
        columns = int(figure.get_figwidth() / (marker + letter * max(map(len, labels))))
        figure.legend(loc="outside upper left", ncols=min(len(labels), max(1, columns)), fontsize=8)
    buffer = io.StringIO()
    # The salt makes ids unique within a page and reproducible.
    with rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # The warning does not matter: matplotlib uses its font only to measure the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    label = html.escape(caption, quote=True)
    svg = text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return Plot(re.sub(r"[^\w.-]+", "-", name), caption, svg, numbers, figure.get_figwidth())

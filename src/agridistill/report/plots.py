"""Plots as SVG, each with the numbers that it shows: Okabe and Ito's colours, and a mark or dash beside each."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

_FILE_NAME = re.compile(r"[^\w.-]+")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c00")
# Of different lengths, so that hundreds of series differ in one of the three.
_MARKS = "osD^vPX"
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (7, 2)))
# Of matplotlib's own keys, which its types list one by one.
_STYLE: Any = {
    "svg.fonttype": "path",
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
    """

    name: str
    caption: str
    svg: str
    numbers: Any


def _style(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "marker": _MARKS[index % len(_MARKS)],
        "markersize": 4,
    }


def _drawn(figure: Figure, name: str, caption: str, numbers: Any) -> Plot:
    held = io.StringIO()
    # The salt makes the ids within the picture its own, and the same every time.
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None})
    text = held.getvalue()
    label = html.escape(caption, quote=True)
    svg = text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return Plot(_FILE_NAME.sub("-", name), caption, svg, numbers)


def _figure(width: float = 6.4, height: float = 3.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def trade_off(points: Sequence[Mapping[str, Any]], *, x: str, label: str) -> Plot:
    """Accuracy against a cost on a logarithmic axis; a line joins those that nothing beats in both.

    Args:
        points: with "name", "accuracy", optionally "low" and "high" (0 to 1), and the cost `x`.
        x: key of the cost, its unit in its name.
        label: of the axis.
    """
    with rc_context(_STYLE):
        figure, axes = _figure()
        best = pareto([(point[x], point["accuracy"]) for point in points])
        axes.plot(
            [points[i][x] for i in best],
            [100 * points[i]["accuracy"] for i in best],
            color="#888888",
            linewidth=1,
            zorder=1,
        )
        for index, point in enumerate(points):
            style = _style(index) | {"linestyle": "none", "markersize": 7}
            if "low" in point:
                ends = [[100 * (point["accuracy"] - point["low"])], [100 * (point["high"] - point["accuracy"])]]
                axes.errorbar(
                    point[x],
                    100 * point["accuracy"],
                    yerr=ends,
                    color=style["color"],
                    linewidth=1,
                    capsize=2,
                    alpha=0.6,
                )
            axes.plot(point[x], 100 * point["accuracy"], label=point["name"], **style)
        axes.set(xscale="log", xlabel=label, ylabel="test accuracy, %")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if len(points) < 9 else ""))
        axes.tick_params(axis="x", which="minor", labelsize=8)
        figure.legend(loc="outside right upper", fontsize=8)
        return _drawn(
            figure,
            f"accuracy-against-{x.replace('_', '-')}",
            f"Accuracy against {label}. Up and to the left is better; the grey line joins what nothing else beats in "
            "both. Bars, where there is one run: its 95 % interval; other marks are means over seeds.",
            list(points),
        )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, value) that no other beats in both, by cost.

    Example:
        >>> pareto([(1.0, 0.8), (2.0, 0.7), (3.0, 0.9)])
        [0, 2]
    """
    best: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not best or points[index][1] > points[best[-1]][1]:
            best.append(index)
    return best


def differences(budget: Mapping[str, Any], baseline: str) -> Plot | None:
    """Each candidate's difference to the baseline with its interval."""
    rows = [row for row in budget["rows"] if row["difference"] is not None]
    if not rows:
        return None
    with rc_context(_STYLE):
        figure, axes = _figure(height=1.2 + 0.32 * len(rows))
        for place, row in enumerate(reversed(rows)):
            low, high = row["difference"]["points_ci95"]
            sure = (low > 0 or high < 0) and not row["difference"]["of_leaves_alone"]
            axes.plot([low, high], [place, place], color=_COLOURS[0], linewidth=1.6)
            axes.plot(
                row["difference"]["points"],
                place,
                "o",
                color=_COLOURS[0],
                markerfacecolor=_COLOURS[0] if sure else "white",
                markersize=6,
            )
        axes.axvline(0, color="black", linewidth=1)
        axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
        axes.set(xlabel=f"test accuracy minus that of {baseline}, points", ylim=(-0.7, len(rows) - 0.3))
        return _drawn(
            figure,
            f"differences-{budget['name']}",
            f"Difference to {baseline} on the same photos with its 95 % interval over leaves and seeds. A hollow mark: "
            "nothing is shown either way, because the interval holds zero, or because one seed is too few.",
            [{"name": row["name"], **row["difference"]} for row in rows],
        )


def learning_curves(curves: Mapping[str, Sequence[Sequence[float]]], *, name: str) -> Plot:
    """Validation accuracy by epoch: the mean over seeds, and between the lowest and the highest seed a band.

    Args:
        curves: for each candidate one row of accuracies (0 to 1) a seed.
        name: of the plot.
    """
    with rc_context(_STYLE):
        figure, axes = _figure()
        lowest = 100.0
        for index, (candidate, rows) in enumerate(curves.items()):
            length = min(len(row) for row in rows)
            values = 100 * np.array([row[:length] for row in rows])
            epochs = np.arange(1, length + 1)
            mean = values.mean(axis=0)
            axes.plot(epochs, mean, label=candidate, markevery=max(1, length // 8), **_style(index))
            if len(rows) > 1:
                axes.fill_between(
                    epochs,
                    values.min(axis=0),
                    values.max(axis=0),
                    color=_style(index)["color"],
                    alpha=0.12,
                    linewidth=0,
                )
            lowest = min(lowest, float(np.percentile(mean, 15)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel="validation accuracy, %", ylim=(max(0.0, lowest - 5), None))
        figure.legend(loc="outside right upper", fontsize=8)
        return _drawn(
            figure,
            name,
            "Validation accuracy by epoch. Lines: mean over seeds; bands: lowest to highest seed. The first epochs may "
            "lie below the picture.",
            {candidate: [list(row) for row in rows] for candidate, rows in curves.items()},
        )


def confusion(evaluation: Mapping[str, Any], *, name: str) -> Plot:
    """Confusion matrix in shares of the truth; counts stand in the cells."""
    classes = [short_name(label, evaluation["classes"]) for label in evaluation["classes"]]
    counts = np.array(evaluation["confusion_matrix"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with rc_context(_STYLE | {"axes.grid": False}):
        side = 2.6 + 0.42 * len(classes)
        figure, axes = _figure(side + 0.6, side)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if len(classes) <= 20:
            for row, column in np.argwhere(counts > 0):
                colour = "white" if shares[row, column] > 0.55 else "black"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
        axes.set(xlabel="answer", ylabel="truth")
        return _drawn(
            figure,
            f"confusion-{name}",
            f"Confusion matrix of {name} on the {evaluation['split']} split: photos of each row's class by answer; "
            "the colour is the share of the row.",
            {"classes": evaluation["classes"], "confusion_matrix": evaluation["confusion_matrix"]},
        )


def short_name(label: str, labels: Sequence[str]) -> str:
    """A class name without what all of them start with, spaces for underscores.

    Example:
        >>> short_name("Tomato___Late_blight", ["Tomato___Late_blight", "Tomato___healthy"])
        'Late blight'
    """
    shared = 0
    if len(labels) > 1 and all("___" in other for other in labels):
        start = label.split("___", 1)[0] + "___"
        shared = len(start) if all(other.startswith(start) for other in labels) else 0
    words = label[shared:].replace("_", " ").strip()
    return words if len(words) <= 28 else words[:27] + "…"


def reliability(evidence: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Accuracy against confidence for several models."""
    with rc_context(_STYLE):
        figure, axes = _figure(width=5.6)
        axes.plot([0, 100], [0, 100], color="black", linewidth=0.8)
        for index, (name, document) in enumerate(evidence.items()):
            bins = document["reliability"]
            axes.plot(
                [100 * one["confidence"] for one in bins],
                [100 * one["accuracy"] for one in bins],
                label=name,
                **_style(index),
            )
        axes.set(xlabel="confidence of the answer, %", ylabel="share that is right, %", xlim=(0, 102), ylim=(0, 102))
        figure.legend(loc="outside right upper", fontsize=8)
        return _drawn(
            figure,
            "reliability",
            "Reliability: of the answers given with 80 % confidence, 80 % should be right. Above the black line a "
            "model is too modest, below it too sure.",
            {name: document["reliability"] for name, document in evidence.items()},
        )


def coverage(evidence: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Accuracy of the answers against the share of photos that are answered."""
    with rc_context(_STYLE):
        figure, axes = _figure(width=5.6)
        lowest = 100.0
        for index, (name, document) in enumerate(evidence.items()):
            found = document["selective"]
            curve = [point for point in found["curve"] if point["coverage"] >= 0.05]
            style = _style(index)
            accuracies = [100 * point["accuracy"] for point in curve]
            lowest = min(lowest, *accuracies)
            axes.plot(
                [100 * point["coverage"] for point in curve], accuracies, label=name, color=style["color"],
                linestyle=style["linestyle"],
            )  # fmt: skip
            if found["accuracy"] is not None:
                axes.plot(
                    100 * found["coverage"],
                    100 * found["accuracy"],
                    style["marker"],
                    color=style["color"],
                    markersize=7,
                )
        axes.axhline(99, color="black", linewidth=0.8, linestyle=":")
        axes.set(xlabel="photos that are answered, %", ylabel="answers that are right, %", ylim=(lowest - 1, 100.4))
        figure.legend(loc="outside right upper", fontsize=8)
        return _drawn(
            figure,
            "coverage",
            "Accuracy against coverage: what is gained where the model abstains on what it is least sure of. Marks: "
            "the threshold for 99 %, found on the validation split, as it does on the test split.",
            {name: document["selective"] for name, document in evidence.items()},
        )


def robustness(evidence: Mapping[str, Mapping[str, Any]]) -> Plot:
    """One small plot for each corruption."""
    first = next(iter(evidence.values()))["robustness"]
    names = [one["name"] for one in first["corruptions"]]
    columns = 3
    with rc_context(_STYLE):
        rows = -(-len(names) // columns)
        figure = Figure(figsize=(7.2, 1.75 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for place, corruption in enumerate(names):
            axes = grid[place // columns][place % columns]
            strengths: Sequence[float] = ()
            for index, (name, document) in enumerate(evidence.items()):
                found = document["robustness"]
                one = next(one for one in found["corruptions"] if one["name"] == corruption)
                strengths = one["strengths"]
                values = [100 * found["accuracy"], *(100 * accuracy for accuracy in one["accuracies"])]
                axes.plot(range(len(values)), values, label=name if place == 0 else None, **_style(index))
            axes.axhline(100 * first["chance"], color="black", linewidth=0.8, linestyle=":")
            axes.set_title(corruption, fontsize=9)
            axes.set_xticks(range(len(strengths) + 1), ["none", *(f"{value:g}" for value in strengths)], fontsize=7)
            axes.set_ylim(0, 102)
        for spare in range(len(names), rows * columns):
            grid[spare // columns][spare % columns].axis("off")
        figure.supylabel("test accuracy, %", fontsize=9)
        figure.legend(loc="outside upper center", ncols=len(evidence), fontsize=8)
        return _drawn(
            figure,
            "robustness",
            "Accuracy under what the field does to a photo, from as it is to strong; the unit of each strength stands "
            "in the table below. Dotted: the most frequent class.",
            {name: document["robustness"] for name, document in evidence.items()},
        )

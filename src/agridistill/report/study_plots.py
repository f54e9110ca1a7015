"""Plots of many models: trade-offs, differences, learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from agridistill.report.drawing import STYLE, Plot, add_legend, drawn, look, new_figure


def trade_off(points: Sequence[Mapping[str, Any]], *, x: str, label: str) -> Plot:
    """Accuracy against a cost on a logarithmic axis; a line joins those that nothing beats in both.

    Args:
        points: with "name", "accuracy", optionally "low" and "high" (0 to 1), and the cost `x`.
        x: key of the cost, its unit in its name.
        label: of the axis.
    """
    with rc_context(STYLE):
        figure, axes = new_figure()
        best = pareto([(point[x], point["accuracy"]) for point in points])
        axes.plot(
            [points[i][x] for i in best],
            [100 * points[i]["accuracy"] for i in best],
            color="#888888",
            linewidth=1,
            zorder=1,
        )
        for index, point in enumerate(points):
            style = look(index) | {"linestyle": "none", "markersize": 7}
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
        costs = [point[x] for point in points]
        # So wide that two ticks of 1, 2 and 5 are in it, where all costs are the same, too.
        axes.set_xlim(min(costs) / 2.5, max(costs) * 2.5)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        add_legend(figure)
        return drawn(
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
    with rc_context(STYLE):
        figure, axes = new_figure(height=1.2 + 0.32 * len(rows))
        for place, row in enumerate(reversed(rows)):
            low, high = row["difference"]["points_ci95"]
            sure = (low > 0 or high < 0) and not row["difference"]["of_leaves_alone"]
            axes.plot([low, high], [place, place], color=look(0)["color"], linewidth=1.6)
            axes.plot(
                row["difference"]["points"],
                place,
                "o",
                color=look(0)["color"],
                markerfacecolor=look(0)["color"] if sure else "white",
                markersize=6,
            )
        axes.axvline(0, color="black", linewidth=1)
        axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
        axes.set(xlabel=f"test accuracy minus that of {baseline}, points", ylim=(-0.7, len(rows) - 0.3))
        return drawn(
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
    with rc_context(STYLE):
        figure, axes = new_figure()
        lowest = 100.0
        for index, (candidate, rows) in enumerate(curves.items()):
            length = min(len(row) for row in rows)
            values = 100 * np.array([row[:length] for row in rows])
            epochs = np.arange(1, length + 1)
            mean = values.mean(axis=0)
            axes.plot(epochs, mean, label=candidate, markevery=max(1, length // 8), **look(index))
            if len(rows) > 1:
                axes.fill_between(
                    epochs,
                    values.min(axis=0),
                    values.max(axis=0),
                    color=look(index)["color"],
                    alpha=0.12,
                    linewidth=0,
                )
            lowest = min(lowest, float(np.percentile(mean, 15)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel="validation accuracy, %", ylim=(max(0.0, lowest - 5), None))
        add_legend(figure)
        return drawn(
            figure,
            name,
            "Validation accuracy by epoch. Lines: mean over seeds; bands: lowest to highest seed. The first epochs may "
            "lie below the picture.",
            {candidate: [list(row) for row in rows] for candidate, rows in curves.items()},
        )

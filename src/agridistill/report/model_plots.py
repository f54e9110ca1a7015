"""Plots of single models: confusions, reliability, coverage, robustness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from agridistill.report.drawing import STYLE, WIDTH, Plot, add_legend, drawn, look, new_figure
from agridistill.report.words import plain_name

_FEWEST_IN_A_BIN = 10


def confusion(evaluation: Mapping[str, Any], *, name: str) -> Plot:
    """Confusion matrix in shares of the truth; counts stand in the cells."""
    classes = [short_name(label, evaluation["classes"]) for label in evaluation["classes"]]
    counts = np.array(evaluation["confusion_matrix"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with rc_context(STYLE | {"axes.grid": False}):
        side = 2.6 + 0.42 * len(classes)
        figure, axes = new_figure(side + 0.6, side)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if len(classes) <= 20:
            for row, column in np.argwhere(counts > 0):
                colour = "white" if shares[row, column] > 0.55 else "black"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(classes)), classes, rotation=45, rotation_mode="anchor", ha="right", fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
        axes.set(xlabel="answer", ylabel="truth")
        return drawn(
            figure,
            f"confusion-{name}",
            f"Confusion matrix of {name} on the {evaluation['split']} split: photos of each row's class by answer; "
            "the colour is the share of the row.",
            {"classes": evaluation["classes"], "confusion_matrix": evaluation["confusion_matrix"]},
        )


def short_name(label: str, labels: Sequence[str]) -> str:
    """A plain name of at most 28 letters."""
    words = plain_name(label, labels)
    return words if len(words) <= 28 else words[:27] + "…"


def reliability(evidence: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Accuracy against confidence for several models."""
    with rc_context(STYLE):
        figure, axes = new_figure()
        axes.plot([0, 100], [0, 100], color="black", linewidth=0.8)
        for index, (name, document) in enumerate(evidence.items()):
            bins = [one for one in document["reliability"] if one["photos"] >= _FEWEST_IN_A_BIN]
            axes.plot(
                [100 * one["confidence"] for one in bins],
                [100 * one["accuracy"] for one in bins],
                label=name,
                **look(index),
            )
        axes.set(xlabel="confidence of the answer, %", ylabel="share that is right, %", xlim=(0, 102), ylim=(0, 102))
        add_legend(figure)
        return drawn(
            figure,
            "reliability",
            "Reliability: of the answers given with 80 % confidence, 80 % should be right. Above the black line a "
            f"model is too modest, below it too sure. Bins of fewer than {_FEWEST_IN_A_BIN} photos are "
            "in the numbers only.",
            {name: document["reliability"] for name, document in evidence.items()},
        )


def coverage(evidence: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Accuracy of the answers against the share of photos that are answered."""
    with rc_context(STYLE):
        figure, axes = new_figure()
        lowest = 100.0
        for index, (name, document) in enumerate(evidence.items()):
            found = document["selective"]
            curve = [point for point in found["curve"] if point["coverage"] >= 0.05]
            style = look(index)
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
        add_legend(figure)
        return drawn(
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
    columns = 2
    with rc_context(STYLE):
        rows = -(-len(names) // columns)
        figure = Figure(figsize=(WIDTH, 1.5 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for place, corruption in enumerate(names):
            axes = grid[place // columns][place % columns]
            strengths: Sequence[float] = ()
            for index, (name, document) in enumerate(evidence.items()):
                found = document["robustness"]
                one = next(one for one in found["corruptions"] if one["name"] == corruption)
                strengths = one["strengths"]
                values = [100 * found["accuracy"], *(100 * accuracy for accuracy in one["accuracies"])]
                axes.plot(range(len(values)), values, label=name if place == 0 else None, **look(index))
            axes.axhline(100 * first["chance"], color="black", linewidth=0.8, linestyle=":")
            axes.set_title(corruption, fontsize=9)
            axes.set_xticks(range(len(strengths) + 1), ["none", *(f"{value:g}" for value in strengths)], fontsize=7)
            axes.set_ylim(0, 102)
        for spare in range(len(names), rows * columns):
            grid[spare // columns][spare % columns].axis("off")
        figure.supylabel("test accuracy, %", fontsize=9)
        add_legend(figure)
        return drawn(
            figure,
            "robustness",
            "Accuracy under what the field does to a photo, from as it is to strong; the unit of each strength stands "
            "in the table below. Dotted: the most frequent class.",
            {name: document["robustness"] for name, document in evidence.items()},
        )

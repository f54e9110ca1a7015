"""Results in sentences that claim no more than their intervals, and terms in plain words."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

_SHORT_NAME = 28
# PlantVillage's names, and nested class folders.
_SEPARATORS = ("___", "/")


def study_summary(study: Mapping[str, Any]) -> list[str]:
    """A sentence or two on each budget, and on the teacher."""
    lines = []
    for budget in study["budgets"]:
        rows = {row["name"]: row for row in budget["rows"]}
        best, baseline = rows[budget["best"]], rows.get(study["baseline"])
        line = (
            f"With {100 * budget['labels']:g} % of the labels and {budget['epochs']} epochs, {best['name']} is the "
            f"best method on the validation split; on the test split it reaches {_mean_accuracy(best)}."
        )
        if baseline is not None and best["difference"] is not None:
            line += f" {study['baseline']} reaches {_mean_accuracy(baseline)}. {verdict(best, study['baseline'])}"
        lines.append(line)
    teacher = study["teacher"]
    if teacher is not None:
        labels = "" if teacher["labels"] is None else f"; it learnt from {100 * teacher['labels']:g} % of the labels"
        lines.append(
            f"The teacher of all budgets, {teacher['model']}, reaches {100 * teacher['accuracy']:.1f} % "
            f"({_interval(teacher)}) with {teacher['parameters'] / 1e6:.1f} M parameters{labels}."
        )
        if teacher["test_photos_learnt"]:
            lines.append(
                f"The teacher had learnt {teacher['test_photos_learnt']:,} of the {study['test_photos']:,} test "
                "photos: its figures and those of its students are too high."
            )
    return lines


def verdict(row: Mapping[str, Any], baseline: str) -> str:
    """What the difference of one candidate to the baseline shows.

    Example:
        >>> row = {"name": "kd", "difference": {"points": 0.4, "points_ci95": [-1.5, 2.7], "of_leaves_alone": False}}
        >>> verdict(row, "ce")
        'The difference of +0.4 points (95 %: -1.5 to +2.7) contains zero: there is no evidence that kd and ce differ.'
    """
    difference = row["difference"]
    low, high = difference["points_ci95"]
    start = f"The difference of {difference['points']:+.1f} points (95 %: {low:+.1f} to {high:+.1f})"
    if difference["of_leaves_alone"]:
        return f"{start} is of one seed: it may be chance in the training, and shows nothing by itself."
    if low > 0:
        return f"{start} is above zero: {row['name']} is better than {baseline} here."
    if high < 0:
        return f"{start} is below zero: {row['name']} is worse than {baseline} here."
    return f"{start} contains zero: there is no evidence that {row['name']} and {baseline} differ."


def model_summary(name: str, evaluation: Mapping[str, Any]) -> list[str]:
    """Sentences on the accuracy of one model."""
    lines = [
        f"{name} ({evaluation['model']}) recognises {100 * evaluation['accuracy']:.1f} % of "
        f"{evaluation['photos']:,} photos of {evaluation['leaves']:,} leaves of the {evaluation['split']} split "
        f"(95 %: {_interval(evaluation)})."
    ]
    scored = [scores for scores in evaluation["per_class"] if scores["f1"] is not None]
    if scored:
        worst = min(scored, key=lambda scores: float(scores["f1"]))
        weakest = plain_name(worst["class"], evaluation["classes"])
        lines.append(f"It is weakest on {weakest} (F1 {worst['f1']:.2f} over {worst['photos']} photos).")
    return lines


def evidence_summary(name: str, evidence: Mapping[str, Any]) -> list[str]:
    """Sentences on robustness, the ground, and abstention of one model."""
    robust, selective = evidence["robustness"], evidence["selective"]
    hardest = min(robust["corruptions"], key=lambda one: float(one["accuracies"][1]))
    lines = [
        f"{name}: {100 * robust['mean_corrupted_accuracy']:.0f} % on average over all corruptions, where the same "
        f"{robust['photos']:,} photos without corruption give {100 * robust['accuracy']:.0f} %; the hardest is "
        f"“{hardest['name']}”."
    ]
    if robust["leaf_masked_accuracy"] is not None:
        low, high = robust["leaf_masked_ci95"]
        line = (
            f"{name}: with the leaf masked it reaches {100 * robust['leaf_masked_accuracy']:.0f} % ({100 * low:.0f} to "
            f"{100 * high:.0f}) of {robust['masked_photos']:,} photos; naming the most frequent class reaches "
            f"{100 * robust['chance']:.0f} %."
        )
        if low > robust["chance"]:
            line += " What is above that is read off the ground, or off the outline that the mask leaves."
        lines.append(line)
    else:
        lines.append(
            f"{name}: whether it reads answers off the ground is not known. That needs photos of one leaf on a plain "
            f"ground, where the leaf can be masked: {robust['masked_photos']:,} of {robust['photos']:,} photos here, "
            "and at least half are needed."
        )
    if selective["accuracy"] is not None and selective["coverage"]:
        lines.append(
            f"{name} answers {100 * selective['coverage']:.0f} % of the photos where it abstains below "
            f"{selective['threshold']:.2f}, the threshold for {100 * selective['wanted_accuracy']:g} % on the "
            f"validation split; {100 * selective['accuracy']:.1f} % of those answers are right."
        )
    return lines


def _mean_accuracy(row: Mapping[str, Any]) -> str:
    mean, deviation = 100 * row["accuracy_mean"], row["accuracy_sd"]
    if deviation is None:
        return f"{mean:.1f} % (one seed)"
    return f"{mean:.1f} % (standard deviation {100 * deviation:.1f} over {len(row['seeds'])} seeds)"


def _interval(figures: Mapping[str, Any]) -> str:
    low, high = figures["accuracy_ci95"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def plain_name(label: str, labels: Sequence[str]) -> str:
    """A class name without the prefix of all labels, spaces for underscores.

    Example:
        >>> plain_name("Tomato___Late_blight", ["Tomato___Late_blight", "Tomato___healthy"])
        'Late blight'
        >>> plain_name("Tomato/Late_blight", ["Potato/healthy", "Tomato/Late_blight"])
        'Tomato: Late blight'
    """
    prefix = ""
    for separator in _SEPARATORS:
        start = label.split(separator, 1)[0] + separator
        if len(labels) > 1 and all(other.startswith(start) for other in labels):
            prefix = start
    return label.removeprefix(prefix).replace("/", ": ").replace("_", " ").strip()


def short_name(label: str, labels: Sequence[str]) -> str:
    """`plain_name`, cut to 28 letters."""
    name = plain_name(label, labels)
    return name if len(name) <= _SHORT_NAME else name[: _SHORT_NAME - 1] + "…"


def glossary(body: str) -> list[tuple[str, str]]:
    """The terms of `templates/glossary.toml` that occur in a page, each with its meaning.

    Args:
        body: HTML of the page.

    Example:
        >>> [term for term, _ in glossary("<p>It has 2 M parameters and an F1 of 0.8.</p>")]
        ['F1', 'parameters']
    """
    known = tomllib.loads(files("agridistill.report").joinpath("templates/glossary.toml").read_text(encoding="utf-8"))
    text = re.sub(r"<[^>]*>", " ", re.sub(r"<svg.*?</svg>", "", body, flags=re.DOTALL))

    def occurs(term: str) -> bool:
        words = re.escape(known["found_by"].get(term, term))
        return re.search(rf"(?<!\w){words}", text, re.IGNORECASE) is not None

    terms = [(term, meaning) for term, meaning in known["terms"].items() if occurs(term)]
    return terms + [(name, meaning) for name, meaning in known["methods"].items() if f"<td>{name}</td>" in body]

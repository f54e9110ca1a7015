"""What the figures say, in sentences that are no stronger than their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def study_summary(study: Mapping[str, Any]) -> list[str]:
    """A few sentences on each budget, and on the teacher."""
    lines = []
    for budget in study["budgets"]:
        rows = {row["name"]: row for row in budget["rows"]}
        best, baseline = rows[budget["best"]], rows.get(study["baseline"])
        line = (
            f"With {100 * budget['labels']:g} % of the labels and {budget['epochs']} epochs, {best['name']} is the "
            f"best method on the validation split; on the test split it reaches {_mean(best)}."
        )
        if baseline is not None and best["difference"] is not None:
            line += f" {study['baseline']} reaches {_mean(baseline)}. {verdict(best, study['baseline'])}"
        lines.append(line)
    teacher = study["teacher"]
    if teacher is not None:
        low, high = (f"{100 * end:.1f}" for end in teacher["accuracy_ci95"])
        labels = "" if teacher["labels"] is None else f"; it learnt from {100 * teacher['labels']:g} % of the labels"
        lines.append(
            f"The teacher of all budgets, {teacher['model']}, reaches {100 * teacher['accuracy']:.1f} % ({low} to "
            f"{high}) with {teacher['parameters'] / 1e6:.1f} M parameters{labels}."
        )
        if teacher["test_photos_learnt"]:
            lines.append(
                f"The teacher had learnt {teacher['test_photos_learnt']:,} of the {study['test_photos']:,} test "
                "photos: its figures and those of its students are too high."
            )
    return lines


def verdict(row: Mapping[str, Any], baseline: str) -> str:
    """What the difference of one candidate to the baseline is worth.

    Example:
        >>> row = {"name": "kd", "difference": {"points": 0.4, "points_ci95": [-1.5, 2.7], "of_leaves_alone": False}}
        >>> verdict(row, "ce")
        'The difference of +0.4 points (95 %: -1.5 to +2.7) holds zero: it is not shown that kd and ce differ.'
    """
    found = row["difference"]
    low, high = found["points_ci95"]
    told = f"The difference of {found['points']:+.1f} points (95 %: {low:+.1f} to {high:+.1f})"
    if found["of_leaves_alone"]:
        return f"{told} is of one seed: it may be chance in the training, and shows nothing by itself."
    if low > 0:
        return f"{told} is above zero: {row['name']} is better than {baseline} here."
    if high < 0:
        return f"{told} is below zero: {row['name']} is worse than {baseline} here."
    return f"{told} holds zero: it is not shown that {row['name']} and {baseline} differ."


def model_summary(name: str, evaluation: Mapping[str, Any]) -> list[str]:
    """Sentences on one model."""
    low, high = (f"{100 * end:.1f}" for end in evaluation["accuracy_ci95"])
    lines = [
        (
            f"{name} ({evaluation['model']}) recognises {100 * evaluation['accuracy']:.1f} % of "
            f"{evaluation['photos']:,} photos of {evaluation['leaves']:,} leaves of the {evaluation['split']} split "
            f"(95 %: {low} to {high})."
        )
    ]
    scored = [scores for scores in evaluation["per_class"] if scores["f1"] is not None]
    if scored:
        worst = min(scored, key=lambda scores: float(scores["f1"]))
        name = plain_name(worst["class"], evaluation["classes"])
        lines.append(f"It is weakest on {name} (F1 {worst['f1']:.2f} over {worst['photos']} photos).")
    return lines


def evidence_summary(name: str, evidence: Mapping[str, Any]) -> list[str]:
    """Sentences on robustness, the ground, and abstention of one model."""
    robust, selective = evidence["robustness"], evidence["selective"]
    hardest = min(robust["corruptions"], key=lambda one: float(one["accuracies"][1]))
    chance = robust["chance"]
    lines = [
        (
            f"{name}: {100 * robust['mean_corrupted_accuracy']:.0f} % on average over all corruptions, where the same "
            f"{robust['photos']:,} photos as they are give {100 * robust['accuracy']:.0f} %; it suffers most from "
            f"“{hardest['name']}”."
        )
    ]
    if robust["leaf_masked_accuracy"] is not None:
        low, high = robust["leaf_masked_ci95"]
        line = (
            f"{name}: with the leaf masked it reaches {100 * robust['leaf_masked_accuracy']:.0f} % ({100 * low:.0f} to "
            f"{100 * high:.0f}) of {robust['masked_photos']:,} photos; naming the most frequent class reaches "
            f"{100 * chance:.0f} %."
        )
        if low > chance:
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


def _mean(row: Mapping[str, Any]) -> str:
    mean, spread = 100 * row["accuracy_mean"], row["accuracy_sd"]
    seeds = len(row["seeds"])
    if spread is None:
        return f"{mean:.1f} % (one seed)"
    return f"{mean:.1f} % (standard deviation {100 * spread:.1f} over {seeds} seeds)"


def plain_name(label: str, labels: Sequence[str]) -> str:
    """A class name without what all of them start with, spaces for underscores.

    Example:
        >>> plain_name("Tomato___Late_blight", ["Tomato___Late_blight", "Tomato___healthy"])
        'Late blight'
        >>> plain_name("Tomato/Late_blight", ["Potato/healthy", "Tomato/Late_blight"])
        'Tomato: Late blight'
    """
    shared = 0
    # Of PlantVillage's names, and of nested class folders.
    for sign in ("___", "/"):
        if len(labels) > 1 and all(sign in other for other in labels):
            start = label.split(sign, 1)[0] + sign
            shared = len(start) if all(other.startswith(start) for other in labels) else 0
    return label[shared:].replace("/", ": ").replace("_", " ").strip()

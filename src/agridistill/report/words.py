"""Writes results as sentences that claim no more than their intervals show, and explains the terms of a report."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

_SHORT_NAME = 28
# "___" is in PlantVillage's class names, "/" in those of nested class folders.
_SEPARATORS = ("___", "/")


def study_summary(study: Mapping[str, Any]) -> list[str]:
    """Returns sentences about each budget and the teacher of a study; `study` is the content of `compare.json`."""
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
        lines.append(
            f"The teacher of all budgets, {teacher['model']}, reaches {100 * teacher['accuracy']:.1f} % "
            f"({_interval(teacher)}) with {teacher['parameters'] / 1e6:.1f} M parameters; it learnt from "
            f"{100 * teacher['labels']:g} % of the labels."
        )
        if teacher["test_photos_learnt"]:
            lines.append(
                f"The teacher had learnt from {teacher['test_photos_learnt']:,} of the {study['test_photos']:,} test "
                "photos: its figures and those of its students are too high."
            )
    return lines


def verdict(row: Mapping[str, Any], baseline: str) -> str:
    """Returns a sentence that says whether a candidate is better than the baseline, or that this is not known.

    `row` is the candidate's row in `compare.json`, and `baseline` the name of the baseline.

    Example:
        >>> row = {"name": "kd", "difference": {"points": 0.4, "points_ci95": [-1.5, 2.7], "of_leaves_alone": False}}
        >>> verdict(row, "ce")
        'The difference of +0.4 points (95 %: -1.5 to +2.7) contains zero: there is no evidence that kd and ce differ.'
    """
    difference = row["difference"]
    low, high = difference["points_ci95"]
    start = f"The difference of {difference['points']:+.1f} points (95 %: {low:+.1f} to {high:+.1f})"
    if difference["of_leaves_alone"]:
        return f"{start} comes from one seed: it may be chance in the training, so it is no evidence."
    if low > 0:
        return f"{start} is above zero: {row['name']} is better than {baseline} here."
    if high < 0:
        return f"{start} is below zero: {row['name']} is worse than {baseline} here."
    return f"{start} contains zero: there is no evidence that {row['name']} and {baseline} differ."


def model_summary(name: str, evaluation: Mapping[str, Any]) -> list[str]:
    """Returns sentences about the accuracy of model `name`; `evaluation` is the content of its `evaluation.json`."""
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
    """Returns sentences about the model `name`: its robustness, its use of the background, and its abstention.

    `evidence` is the content of `evidence/NAME.json`.
    """
    robust, selective = evidence["robustness"], evidence["selective"]
    hardest = min(robust["corruptions"], key=lambda one: float(one["accuracies"][1]))
    lines = [
        f"{name} reaches {100 * robust['mean_corrupted_accuracy']:.0f} % on average over all corruptions, and "
        f"{100 * robust['accuracy']:.0f} % on the same {robust['photos']:,} photos without corruption; the hardest "
        f"corruption is “{hardest['name']}”."
    ]
    if robust["leaf_masked_accuracy"] is not None:
        low, high = robust["leaf_masked_ci95"]
        line = (
            f"{name}: with the leaf masked it reaches {100 * robust['leaf_masked_accuracy']:.0f} % ({100 * low:.0f} to "
            f"{100 * high:.0f}) of {robust['masked_photos']:,} photos; naming the most frequent class reaches "
            f"{100 * robust['chance']:.0f} %."
        )
        if low > robust["chance"]:
            line += " That is better than naming one class, so it uses the ground, or the outline of the mask."
        lines.append(line)
    else:
        lines.append(
            f"It is not known whether {name} uses the ground for its answers. Measuring it needs photos of one leaf on "
            f"a plain ground, in which the leaf can be masked: these are {robust['masked_photos']:,} of "
            f"{robust['photos']:,} photos, and at least half are needed."
        )
    if selective["accuracy"] is not None and selective["coverage"]:
        wanted, reached = selective["wanted_accuracy"], selective["val_accuracy"]
        threshold = (
            f"the threshold for {100 * wanted:g} % right answers on the validation split"
            if reached >= wanted
            else f"the best threshold: on the validation split {100 * reached:.1f} % of the answers are right, instead "
            f"of {100 * wanted:g} %"
        )
        lines.append(
            f"{name} answers {100 * selective['coverage']:.0f} % of the photos if it abstains below a confidence of "
            f"{selective['threshold']:.2f}, {threshold}; {100 * selective['accuracy']:.1f} % of the answers are right."
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
    """Makes a class name readable: removes the prefix that all `labels` share, and turns underscores into spaces.

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
    """Cuts a `plain_name` to 28 characters."""
    name = plain_name(label, labels)
    return name if len(name) <= _SHORT_NAME else name[: _SHORT_NAME - 1] + "…"


def glossary(body: str) -> list[tuple[str, str]]:
    """Returns the terms of `templates/glossary.toml` that occur in the HTML `body` of a page, each with its meaning.

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

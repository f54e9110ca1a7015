"""The terms of a report in plain words."""

from __future__ import annotations

import re

_TERMS = {
    "accuracy": "Share of the photos that the model names rightly.",
    "points": "Percentage points: from 80 % to 84 % are 4 points.",
    "95 % interval": (
        "If the test were done again with other photos of the same kind, the figure would lie in this range 95 times "
        "of 100. In tables it stands under “95 %”. Few photos give a wide range."
    ),
    "test split": "Photos set aside at the start. No setting is chosen with them; they only measure the end result.",
    "validation split": "Photos set aside for choosing: the best epoch, the best method, the threshold.",
    "leaf-disjoint": (
        "All photos of one leaf lie in one split, so that no model is tested on a leaf that it has learnt. Each report "
        "counts photos and leaves, because photos of one leaf are alike."
    ),
    "precision": "Of the photos that the model gives this class, the share that is of this class.",
    "recall": "Of the photos of this class, the share that the model finds.",
    "F1": "One number for precision and recall, 0 to 1: high only where both are high.",
    "macro-F1": "The mean of F1 over the classes: a rare class counts as much as a frequent one.",
    "NLL": (
        "Negative log-likelihood: how surprised the model is by the true class. Lower is better; sure and wrong costs "
        "most. In nats, its unit."
    ),
    "calibration error": (
        "How far the confidence is from the truth, on average: 5 % where answers given with 85 % confidence are right "
        "in 80 %."
    ),
    "confidence": "The model's own probability for its answer.",
    "confusion matrix": "A table of what was answered for photos of each class. Right answers are on the diagonal.",
    "coverage": "Share of the photos that the model answers where it may abstain.",
    "threshold": "The confidence below which the model abstains: it asks for another photo instead of an answer.",
    "corruption": "A change that photos meet in the field, such as blur, noise or shade, made by computation.",
    "masked": "A part of the photo painted over in one colour: the leaf or the ground.",
    "parameters": "The numbers that a model has learnt. With the precision they make the size of its file.",
    "MACs": "Multiply-accumulate operations for one photo: how much computation one answer takes.",
    "latency": "Time for one photo on the machine named.",
    "int8": "A model stored in whole numbers of 8 bits: a quarter of the size of fp32, and mostly faster.",
    "fp32": "A model stored in floating-point numbers of 32 bits, as it was trained.",
    "epoch": "One pass over all training photos.",
    "seed": "The start of the random numbers. Runs that differ in the seed alone show how much is chance.",
    "standard deviation": "How far the runs of different seeds lie from their mean, typically.",
    "bootstrap": "Computing the interval by drawing the tested leaves again and again, with repetition.",
    "McNemar": "A test of whether two models differ, from the photos that only one of them names rightly.",
    "p =": (
        "p-value: how often a difference this large would occur by chance if the models were equally good. "
        "Below 0.05 is usually taken as a sign that they are not."
    ),
    "teacher": "The large model whose answers a small one, the student, learns from.",
    "student": "The small model for the device.",
    "attention": "Where in the photo the network's features are strong: what it looks at, roughly.",
    "ce": "Training on the labels alone (cross-entropy), without a teacher.",
    "kd": "Distillation of logits: the student learns the teacher's probabilities as well as the labels.",
    "kd-std": "kd with the probabilities of both brought to one scale first.",
    "at": "Attention transfer: the student learns to look where the teacher looks.",
    "hybrid": "Logits and attention of the teacher at once.",
    "fitnet": "The student learns the teacher's features first, then its logits and the labels.",
    "dkd": "Distillation of logits in two parts: of the true class, and of the others among each other.",
    "dist": "Distillation of the relations between the teacher's probabilities instead of their values.",
}
# Names of methods are terms where they are names in a table, not where they are words of a sentence.
_METHODS = ("ce", "kd", "kd-std", "at", "hybrid", "fitnet", "dkd", "dist")


def glossary(body: str) -> list[tuple[str, str]]:
    """The terms that occur in a page, each with its meaning in plain words.

    Args:
        body: HTML of the page.

    Example:
        >>> [term for term, _ in glossary("<p>It has 2 M parameters and an F1 of 0.8.</p>")]
        ['F1', 'parameters']
    """
    without_pictures = re.sub(r"<svg.*?</svg>", "", body, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", " ", without_pictures)
    return [(term.removesuffix(" ="), meaning) for term, meaning in _TERMS.items() if _occurs(term, text, body)]


def _occurs(term: str, text: str, body: str) -> bool:
    if term in _METHODS:
        return f"<td>{term}</td>" in body
    if term == "leaf-disjoint":
        return "leaves" in text
    if term == "95 % interval":
        return "95 %" in text
    return re.search(rf"(?<!\w){re.escape(term)}", text, re.IGNORECASE) is not None

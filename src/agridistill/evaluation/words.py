"""Figures of an evaluation in words, as verdict and advice need them."""

from __future__ import annotations

from collections.abc import Sequence

from agridistill.evaluation.result import EvaluationResult


def chance_accuracy(result: EvaluationResult) -> float:
    """Accuracy that needs no learning: of guessing, or of naming the largest class for every photo."""
    return max(1 / len(result.classes), max(scores.photos for scores in result.per_class) / result.photos)


def chance_words(result: EvaluationResult) -> str:
    """What the model must be better than, with its accuracy."""
    largest = max(result.per_class, key=lambda scores: scores.photos)
    share = largest.photos / result.photos
    # Where all classes have about as many photos, guessing is the plainer word.
    if share <= 1.2 / len(result.classes):
        return f"chance ({percent(max(share, 1 / len(result.classes)))})"
    return f"naming '{largest.name}' for every photo ({percent(share)})"


def named_photos(result: EvaluationResult) -> list[int]:
    """How many photos each class was named for."""
    return [sum(row[column] for row in result.confusion_matrix) for column in range(len(result.classes))]


def photos_noun(result: EvaluationResult) -> str:
    """What the photos of a split are to the model."""
    names = {"test": "new photos", "val": "validation photos", "train": "the photos that it learnt from"}
    return names.get(result.split, "these photos")


def percent(share: float) -> str:
    """Whole percents with their sign; see `number`."""
    return f"{number(share)} %"


def number(share: float) -> str:
    """Whole percents; one or two more digits where rounding would make all or none of it."""
    for digits in (0, 1, 2):
        text = f"{100 * share:.{digits}f}"
        if share in (0.0, 1.0) or 0 < float(text) < 100:
            return text
    return text


def count(amount: int, noun: str) -> str:
    """An amount of things: 1 photo, 2 leaves."""
    plural = "leaves" if noun == "leaf" else f"{noun}s"
    return f"{amount:,} {noun if amount == 1 else plural}"


def quoted(names: Sequence[str]) -> str:
    """Names for a sentence: 'a', 'b' and 'c'."""
    return join([f"'{name}'" for name in names])


def them(names: Sequence[str]) -> str:
    """The pronoun for so many names."""
    return "it" if len(names) == 1 else "them"


def join(parts: Sequence[str]) -> str:
    """Parts of a sentence: a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

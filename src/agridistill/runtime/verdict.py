"""What a model says of one photo, as a verdict and in words: the same for `predict`, a run, an artefact and `watch`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Verdict = Literal["answer", "unsure", "unfamiliar", "unusable"]
"""answer: above the threshold. unsure: below it. unfamiliar: unlike the training photos. unusable: failed the quality
gate: no model should be asked."""

UNFAMILIAR = "unlike the photos that the model learnt from"


def plain_label(label: str) -> str:
    """A class name in words.

    Example:
        >>> plain_label("Tomato___Late_blight")
        'Tomato: Late blight'
        >>> plain_label("Tomato/Late_blight")
        'Tomato: Late blight'
        >>> plain_label("leaf_mold")
        'leaf mold'
    """
    parts = [" ".join(part.replace("_", " ").split()) for part in re.split("___|/", label)]
    return ": ".join(part for part in parts if part) or label


def verdict_of(problem: str, *, unfamiliar: bool, abstained: bool) -> Verdict:
    """The verdict on a photo.

    Args:
        problem: what the quality gate found; "" where it found nothing.
        unfamiliar: the photo is unlike the training photos, so that its probabilities mean nothing.
        abstained: the probability is below the model's threshold.
    """
    if problem:
        return "unusable"
    if unfamiliar:
        return "unfamiliar"
    return "unsure" if abstained else "answer"


def unsure_reason(probability: float, threshold: float) -> str:
    """Why a probability below the model's threshold is no answer."""
    return f"probability {probability:.2f}, answers need {threshold:.2f}"


def verdict_words(verdict: Verdict, reason: str, top: Sequence[tuple[str, float]]) -> str:
    """A verdict as people read it.

    Args:
        verdict: on the photo.
        reason: in words, why it is no answer.
        top: the most probable classes with their probabilities, best first.

    Example:
        >>> verdict_words("answer", "", [("Late_blight", 0.931)])
        'Late blight 93 %'
        >>> verdict_words("unsure", "probability 0.41, answers need 0.60", [("Late_blight", 0.41), ("healthy", 0.3)])
        'unsure (Late blight 41 %, healthy 30 %)'
        >>> verdict_words("unusable", "too dark", [])
        'unusable: too dark'
    """
    classes = ", ".join(f"{plain_label(label)} {percent_words(probability)}" for label, probability in top)
    if verdict == "answer":
        return classes
    if verdict == "unsure":
        return f"unsure ({classes})"
    if verdict == "unusable":
        return f"unusable: {reason}"
    return f"unfamiliar: {reason} ({classes})"


def percent_words(probability: float) -> str:
    """A probability in whole per cent; never 0 % or 100 %, because no model is certain.

    Example:
        >>> percent_words(0.931), percent_words(0.9999), percent_words(0.001)
        ('93 %', 'over 99 %', 'under 1 %')
    """
    if probability >= 0.995:
        return "over 99 %"
    return "under 1 %" if probability < 0.005 else f"{100 * probability:.0f} %"

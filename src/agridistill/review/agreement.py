"""How far reviewers agree, and the choices on which all of them do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from agridistill.review.record import Choice, Judgements


def cohens_kappa(first: Sequence[object], second: Sequence[object]) -> float | None:
    """Computes how far two reviewers agree beyond chance: 1 for always, 0 for as often as by chance.

    Args:
        first: the choices of one reviewer, at least one.
        second: the choices of the other one on the same photos.

    Returns:
        Cohen's kappa, -1 to 1; None if it is undefined, because both made one and the same choice on all photos.

    Source: Cohen 1960, A coefficient of agreement for nominal scales.

    Example:
        >>> cohens_kappa(["rust", "rust", "healthy", "healthy"], ["rust", "healthy", "healthy", "healthy"])
        0.5
    """
    photos = len(first)
    observed = sum(one == other for one, other in zip(first, second, strict=True)) / photos
    counts, others = Counter(first), Counter(second)
    expected = sum(counts[choice] * others[choice] for choice in counts) / photos**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


@dataclass(frozen=True)
class Agreement:
    """How far two reviewers agree on the photos that both have judged."""

    reviewers: tuple[str, str]
    photos: int  # number of photos that both have judged
    agreed: int  # number of photos on which they agree
    kappa: float | None  # see `cohens_kappa`; None if undefined, also without common photos

    def to_json(self) -> dict[str, Any]:
        """Returns the agreement as a dict that `json.dumps` accepts."""
        return asdict(self)


def agreements(judgements: Judgements) -> list[Agreement]:
    """Compares each pair of reviewers."""
    found = []
    for pair in combinations(judgements.reviewers, 2):
        first, second = (judgements.of(name) for name in pair)
        common = [photo for photo in first if photo in second]
        choices = [first[photo] for photo in common], [second[photo] for photo in common]
        agreed = sum(one == other for one, other in zip(*choices, strict=True))
        found.append(Agreement(pair, len(common), agreed, cohens_kappa(*choices) if common else None))
    return found


def settled(judgements: Judgements) -> tuple[dict[str, Choice], dict[str, dict[str, Choice]]]:
    """Separates the photos on which all their reviewers agree from the disputed ones.

    Returns:
        Photo -> choice for the agreed photos, and photo -> reviewer -> choice for the disputed ones.
    """
    agreed: dict[str, Choice] = {}
    disputed: dict[str, dict[str, Choice]] = {}
    for photo, actions in judgements.by_photo().items():
        choices = {reviewer: action.choice for reviewer, action in actions.items()}
        if len(set(choices.values())) == 1:
            agreed[photo] = next(iter(choices.values()))
        else:
            disputed[photo] = choices
    return agreed, disputed

"""Agreement of reviewers, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from agridistill.review import LABEL, Action, Agreement, Choice, Judgements, agreements, cohens_kappa, settled

CLASSES = ["rust", "healthy", "mildew", "several"]


def said(reviewer: str, **labels: str) -> list[Action]:
    return [Action("t", reviewer, LABEL, label, f"{photo}.jpg") for photo, label in labels.items()]


@pytest.mark.parametrize("seed", range(20))
def test_kappa_is_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.choice(CLASSES[: 2 + seed % 3], 5 + 7 * seed)
    second = np.where(rng.random(len(first)) < 0.6, first, rng.choice(CLASSES, len(first)))
    assert cohens_kappa(first.tolist(), second.tolist()) == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


def test_kappa_at_its_limits() -> None:
    assert cohens_kappa(["rust", "healthy"], ["rust", "healthy"]) == 1
    assert cohens_kappa(["rust", "healthy"], ["healthy", "rust"]) == -1
    assert cohens_kappa(["rust", "rust", "healthy", "healthy"], ["rust", "healthy", "rust", "healthy"]) == 0
    # Both would always agree, also by chance.
    assert cohens_kappa(["rust", "rust"], ["rust", "rust"]) is None


def test_pairs_are_compared_on_their_common_photos() -> None:
    judgements = Judgements(
        [
            *said("anna", a="rust", b="rust", c="healthy"),
            *said("ben", b="rust", c="rust", d="rust"),
            *said("cem", x="rust"),
        ]
    )
    assert agreements(judgements) == [
        Agreement(("anna", "ben"), 2, 1, 0.0),
        Agreement(("anna", "cem"), 0, 0, None),
        Agreement(("ben", "cem"), 0, 0, None),
    ]


def test_only_photos_on_which_all_agree_are_settled() -> None:
    judgements = Judgements(
        [*said("anna", a="rust", b="rust", c="rust"), *said("ben", a="rust", b="healthy"), *said("cem", a="rust")]
    )
    agreed, disputed = settled(judgements)
    assert agreed == {"a.jpg": Choice(LABEL, "rust"), "c.jpg": Choice(LABEL, "rust")}
    assert disputed == {"b.jpg": {"anna": Choice(LABEL, "rust"), "ben": Choice(LABEL, "healthy")}}

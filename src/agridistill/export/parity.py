"""Compares an exported model ("artefact") with the network that it was made from, and decides if it is good enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

from agridistill.evaluation.calibration import FEW_PHOTOS

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Parity:
    """How an exported model ("artefact") differs from the network that it was made from, on the same photos."""

    photos: int  # number of validation photos; both accuracies are measured on them
    top1_agreement: float  # share of the compared photos for which both predict the same class, 0 to 1
    largest_logit_difference: float  # absolute, over all compared photos and classes
    accuracy: float  # of the artefact, 0 to 1
    network_accuracy: float  # 0 to 1
    compared_photos: int  # number of photos with an agreement: the validation photos, and others if these are few
    newly_wrong: int  # number of validation photos that only the network classifies correctly
    newly_right: int  # number of validation photos that only the artefact classifies correctly

    @property
    def lost_points(self) -> float:
        """The artefact's loss of accuracy in percentage points; negative if it is more accurate than the network."""
        return 100 * (self.network_accuracy - self.accuracy)


@dataclass(frozen=True)
class Gate:
    """How much an exported model may differ from its network; `export` refuses one that differs more."""

    top1_agreement: float  # smallest share of photos for which both predict the same class, 0 to 1
    lost_points: float  # largest loss of accuracy, in percentage points

    def failures(self, parity: Parity) -> list[str]:
        """Returns one phrase for each limit that `parity` breaks; an empty list if it breaks none."""
        failures = []
        if parity.top1_agreement < self.top1_agreement:
            failures.append(
                f"a top-1 agreement of {parity.top1_agreement:.3f} (at least {self.top1_agreement} is required)"
            )
        if parity.lost_points > self.lost_points and _is_no_chance(parity, self.lost_points):
            failures.append(f"{parity.lost_points:.2f} points less accuracy (at most {self.lost_points} are allowed)")
        return failures


GATES = {"fp32": Gate(top1_agreement=0.995, lost_points=0.2), "int8": Gate(top1_agreement=0.95, lost_points=1.0)}
"""The limits for each precision: fp32 differs only in the order of sums, int8 rounds every value."""


def compare(network: NDArray[Any], artefact: NDArray[Any], target: NDArray[np.int64]) -> Parity:
    """Compares the logits `(N, K)` of a network and of its exported model on the same N photos.

    `target` has the labels `(M,)` of the first M photos; accuracies are measured on these, agreement on all N.
    """
    answered, expected = artefact.argmax(1), network.argmax(1)
    right, was_right = (named[: len(target)] == target for named in (answered, expected))
    return Parity(
        photos=len(target),
        top1_agreement=float((answered == expected).mean()),
        largest_logit_difference=float(np.abs(artefact - network).max()),
        accuracy=float(right.mean()),
        network_accuracy=float(was_right.mean()),
        compared_photos=len(answered),
        newly_wrong=int((was_right & ~right).sum()),
        newly_right=int((right & ~was_right).sum()),
    )


def _is_no_chance(parity: Parity, allowed_points: float) -> bool:
    """Returns whether the loss of accuracy in `parity` is too large to be chance if the true loss is `allowed_points`.

    With at least 200 photos every loss counts. With fewer, one photo is more than half a percentage point, so an exact
    one-sided test decides: McNemar's (1947) with the allowed loss as its margin. It uses the discordant photos, those
    that only one of the two models classifies correctly. At the margin, the artefact is wrong on a share of
    (1 + allowed loss / discordant share) / 2 of them. The loss counts if this many errors or more have a probability
    below 5 %; four lost photos or fewer never count.
    """
    discordant = parity.newly_wrong + parity.newly_right
    if parity.photos >= FEW_PHOTOS or not discordant:
        return True
    margin = max(allowed_points, 0.0) / 100 * parity.photos / discordant
    share = min(1.0, (1 + margin) / 2)
    return float(bdtrc(parity.newly_wrong - 1, discordant, share)) < _SIGNIFICANT

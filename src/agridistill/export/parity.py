"""Whether an artefact says what its network says."""

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
    """An artefact beside the network that it was made from, on the same photos.

    Attributes:
        photos: validation photos, of which the accuracies are.
        top1_agreement: share of the compared photos on which both name the same class, 0 to 1.
        largest_logit_difference: over all compared photos and classes.
        accuracy: of the artefact.
        network_accuracy: of the network.
        compared_photos: of which the agreement is: the validation photos, and others where these are few.
        newly_wrong: validation photos that the network names rightly and the artefact wrongly.
        newly_right: the other way round.
    """

    photos: int
    top1_agreement: float
    largest_logit_difference: float
    accuracy: float
    network_accuracy: float
    compared_photos: int
    newly_wrong: int
    newly_right: int

    @property
    def lost_points(self) -> float:
        """Accuracy that the artefact lost, in percentage points; negative where it gained."""
        return 100 * (self.network_accuracy - self.accuracy)


@dataclass(frozen=True)
class Gate:
    """What an artefact must reach to be written.

    Attributes:
        top1_agreement: at least, 0 to 1.
        lost_points: at most, in percentage points.
    """

    top1_agreement: float
    lost_points: float

    def failures(self, parity: Parity) -> list[str]:
        """What does not hold, in words."""
        failures = []
        if parity.top1_agreement < self.top1_agreement:
            failures.append(f"top-1 agreement {parity.top1_agreement:.3f}, at least {self.top1_agreement} expected")
        if parity.lost_points > self.lost_points and _is_no_chance(parity, self.lost_points):
            failures.append(f"{parity.lost_points:.2f} points of accuracy lost, at most {self.lost_points} expected")
        return failures


GATES = {"fp32": Gate(top1_agreement=0.995, lost_points=0.2), "int8": Gate(top1_agreement=0.95, lost_points=1.0)}
"""By precision. fp32 only sums in another order; int8 rounds."""


def compare(network: NDArray[Any], artefact: NDArray[Any], target: NDArray[np.int64]) -> Parity:
    """Parity of two sets of logits `(N, K)` on photos of which the first M have the labels `target` `(M,)`.

    Accuracy is of the labelled photos, agreement of all: it asks for no labels.
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
    """Whether so large a loss is hardly met where the true one is `allowed_points`.

    From 200 photos on the loss is taken as it is. Below, one photo is more than half a point: an exact one-sided test,
    McNemar's (1947) with the allowed loss for its margin. Of the photos on which only one of both is right, the share
    that the artefact has wrong is (1 + allowed loss / discordant share) / 2 at the margin; the loss counts where so
    many wrong ones have a probability under 5 %. Four lost photos or fewer never fail.
    """
    discordant = parity.newly_wrong + parity.newly_right
    if parity.photos >= FEW_PHOTOS or not discordant:
        return True
    margin = max(allowed_points, 0.0) / 100 * parity.photos / discordant
    share = min(1.0, (1 + margin) / 2)
    return float(bdtrc(parity.newly_wrong - 1, discordant, share)) < _SIGNIFICANT

"""Whether an artefact says what its network says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Parity:
    """An artefact beside the network that it was made from, on the same photos.

    Attributes:
        photos: how many.
        top1_agreement: share of the photos on which both name the same class, 0 to 1.
        largest_logit_difference: over all photos and classes.
        accuracy: of the artefact.
        network_accuracy: of the network.
    """

    photos: int
    top1_agreement: float
    largest_logit_difference: float
    accuracy: float
    network_accuracy: float

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
        told = []
        if parity.top1_agreement < self.top1_agreement:
            told.append(f"top-1 agreement {parity.top1_agreement:.3f}, at least {self.top1_agreement} expected")
        if parity.lost_points > self.lost_points:
            told.append(f"{parity.lost_points:.2f} points of accuracy lost, at most {self.lost_points} expected")
        return told


GATES = {"fp32": Gate(top1_agreement=0.995, lost_points=0.2), "int8": Gate(top1_agreement=0.95, lost_points=1.0)}
"""By precision. fp32 only sums in another order; int8 rounds."""


def compare(network: NDArray[Any], artefact: NDArray[Any], target: NDArray[np.int64]) -> Parity:
    """Parity of two sets of logits `(N, K)` on photos with the labels `target` `(N,)`."""
    said, expected = artefact.argmax(1), network.argmax(1)
    return Parity(
        photos=len(target),
        top1_agreement=float((said == expected).mean()),
        largest_logit_difference=float(np.abs(artefact - network).max()),
        accuracy=float((said == target).mean()),
        network_accuracy=float((expected == target).mean()),
    )

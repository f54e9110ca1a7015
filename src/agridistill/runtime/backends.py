"""Backend: the seam between a model file's engine and everything that asks it for class scores."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from agridistill.errors import ModelError
from agridistill.manifest import ModelManifest
from agridistill.preprocess import Pixels


class Backend(Protocol):
    """A model that is ready to run."""

    @property
    def manifest(self) -> ModelManifest:
        """The contract that the model ships with."""
        ...

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Class scores; mean and standard deviation are applied inside.

        Args:
            pixels: `(N, S, S, 3)` uint8, RGB, as `preprocess.to_pixels` makes them.

        Returns:
            `(N, K)` float32 in the order of `manifest.classes`.
        """
        ...


@runtime_checkable
class AttentiveBackend(Protocol):
    """A model that gives maps of where it looks, as a run folder's network does; exported files give logits alone."""

    def attention(self, pixels: Pixels) -> NDArray[np.float32]:
        """Attention maps.

        Args:
            pixels: as for `Backend.logits`.

        Returns:
            `(N, H, W)` float32, at least 0.

        Raises:
            ModelError: the network has no stage that keeps height and width.
        """
        ...


def checked_logits(backend: Backend, pixels: Pixels) -> NDArray[np.float32]:
    """The backend's logits, after their shape and values were checked.

    Args:
        pixels: `(N, S, S, 3)` uint8.

    Returns:
        `(N, K)` float32, finite.

    Raises:
        ModelError: another number of classes than the manifest's, or NaN or infinity.
    """
    logits = np.asarray(backend.logits(pixels), np.float32)
    shape = (len(pixels), len(backend.manifest.classes))
    if logits.shape != shape:
        raise ModelError(f"logits of shape {shape}", str(logits.shape), "check that manifest and model belong together")
    if not np.isfinite(logits).all():
        raise ModelError("finite logits", "NaN or infinity from the model", "train or export it again")
    return logits

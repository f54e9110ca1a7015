"""Photos that another model decided on in an earlier life of the agent: their answers stand, and people know it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from agridistill.edge.words import number_of

logger = logging.getLogger(__name__)


class EarlierModels:
    """Counts the photos of the source that another model decided on.

    Args:
        decided_by: the model of a photo by its identity: first 12 digits of its sha256, "" where unknown, None for a
            photo that was not decided on.
        current: the model that runs now.
    """

    def __init__(self, decided_by: Callable[[str], str | None], current: Callable[[], str]) -> None:
        self._decided_by, self._current = decided_by, current
        self._photos = Counter[str]()
        self._before = 0
        self._told = False

    def seen(self, identity: str) -> bool:
        """Whether a photo was decided on, by whichever model."""
        model = self._decided_by(identity)
        if model and model != self._current():
            self._photos[model] += 1
        return model is not None

    def idle(self) -> None:
        """No photo waits: writes the number to the log, once, when it no longer grows."""
        photos = self._photos.total()
        if photos and photos == self._before and not self._told:
            self._told = True
            logger.warning(
                "%s here decided on by another model before (%s): those answers stand; "
                "to have this model decide on them, name a new folder with --state",
                number_of(photos, "photo"),
                ", ".join(sorted(self._photos)),
            )
        self._before = photos

"""Which plots a broker holds retained messages of, so that those of a plot that is gone are cleared."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection
from pathlib import Path

from agridistill.edge.words import sendable
from agridistill.storage import write_json

logger = logging.getLogger(__name__)

# Home Assistant may be away when a plot goes: it reads the retained description later.
_CLEARED_S = 7 * 86_400.0


class PublishedPlots:
    """Remembers over restarts which plots were published.

    Args:
        file: where; a damaged one counts as empty.

    Attributes:
        is_known: whether any was published before.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.is_known = file.exists()
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            self._gone_s = {str(plot): None if at is None else float(at) for plot, at in dict(found).items()}
        except (OSError, ValueError, TypeError):
            self._gone_s = {}

    def update(self, plots: Collection[str], *, forget: bool = True, now_s: float | None = None) -> list[str]:
        """Takes the plots that there are now, on the disk before they are published.

        Args:
            plots: their names.
            forget: those that were cleared long ago; only while the broker takes what is cleared.
            now_s: seconds since 1970.

        Returns:
            Plots that were published and are gone.
        """
        now_s = time.time() if now_s is None else now_s
        after = dict(self._gone_s) | dict.fromkeys(plots)
        for plot, gone_s in list(after.items()):
            if plot in plots:
                continue
            if gone_s is None:
                after[plot] = now_s
            elif forget and now_s - gone_s > _CLEARED_S:
                del after[plot]
        if after != self._gone_s:
            self._gone_s = after
            try:
                write_json(self._file, after)
            except OSError as error:
                logger.info("the list of published plots cannot be written: %s", error)
        return [plot for plot, gone_s in after.items() if gone_s is not None]


def plot_folders(photos: Path | None) -> frozenset[str] | None:
    """The names in the watched folder, of which some are plots; None where a plot may be there all the same.

    Args:
        photos: the watched folder; None for a camera. An empty one may be a disk that is not there.
    """
    if photos is None:
        return None
    try:
        return frozenset(sendable(path.name) for path in photos.iterdir()) or None
    except OSError:
        return None

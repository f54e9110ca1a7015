"""One photo under several labels: what a network cannot learn, and what makes a folder doubtful."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from agridistill.errors import DataError

logger = logging.getLogger(__name__)

# As of unreadable photos. A wrong copy here and there is no harm; where one photo in twenty has two labels, a folder
# was copied into another one, or its photos show several conditions each, which no classifier of one label learns.
MAX_CONFLICT_SHARE = 0.05

Groups = Sequence[Sequence[str]]


def conflicting_groups(groups: Iterable[Sequence[str]], label_of: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    """Those groups of copies of one photo that stand under several labels.

    Args:
        groups: paths of copies of one photo.
        label_of: of each path.
    """
    return tuple(tuple(group) for group in groups if len({label_of[path] for path in group}) > 1)


def first_pair(group: Sequence[str], label_of: Mapping[str, int]) -> tuple[str, str]:
    """Two photos of a conflicting group that have different labels."""
    first = group[0]
    return first, next(path for path in group if label_of[path] != label_of[first])


def require_few_conflicts(
    conflicting: Groups, label_of: Mapping[str, int], root: Path, *, most: float = MAX_CONFLICT_SHARE, option: str
) -> None:
    """Warns of photos under several labels, and refuses a folder in which they are many.

    Args:
        conflicting: of `conflicting_groups`.
        label_of: of each readable photo.
        root: the data folder.
        most: share of the photos, 0 to 1.
        option: that raises it, for the error.

    Raises:
        DataError: more than `most` of the photos.
    """
    if not conflicting:
        return
    photos = sum(len(group) for group in conflicting)
    share = photos / len(label_of)
    first, second = first_pair(conflicting[0], label_of)
    found = (
        f"{photos:,} of {len(label_of):,} photos have copies under other labels (also flipped, turned, scaled or "
        "saved again)"
    )
    if share > most:
        raise DataError(
            f"each photo under one label, or at most {most:.0%} of them under several",
            f"'{root}', in which {found}, the first '{first}' and '{second}'",
            f"remove the wrong copies ('agridistill data check {root} --json' names all), "
            f"or pass {option} if they are meant",
        )
    logger.warning("%s, the first '%s' and '%s': see all with agridistill data check", found, first, second)

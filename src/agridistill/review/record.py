"""The record of a review, a CSV file to which a line for each action is appended; and how far its reviewers agree."""

from __future__ import annotations

import csv
import errno
import io
import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import IO, NamedTuple

from agridistill.errors import RunError
from agridistill.storage import csv_text, only_one, require_result_file, sync_folder

logger = logging.getLogger(__name__)

LABEL, UNDO = "label", "undo"
SPECIAL = ("several", "not a leaf", "cannot tell")
"""Verdicts on a photo that gets no label."""
COLUMNS = ("time", "reviewer", "verdict", "label", "photo")
HEADER = ",".join(COLUMNS) + "\n"
_LONGEST_LINE_BYTES = 65_536


class Choice(NamedTuple):
    """What a reviewer says about a photo: a class, or one of the `SPECIAL` verdicts."""

    verdict: str  # `LABEL` or one of `SPECIAL`
    label: str = ""  # the class; "" for a special verdict

    @property
    def words(self) -> str:
        """The class, or the special verdict."""
        return self.label if self.verdict == LABEL else self.verdict


class Action(NamedTuple):
    """A line of the record; "undo" takes back the last action of this reviewer on this photo."""

    time: str  # ISO 8601, UTC
    reviewer: str
    verdict: str  # `LABEL`, one of `SPECIAL`, or `UNDO`
    label: str
    photo: str  # path relative to the folder, with forward slashes

    @property
    def choice(self) -> Choice:
        """What the action says about the photo."""
        return Choice(self.verdict, self.label)


def now() -> str:
    """Returns the time for an action, to the second."""
    return moment(time.time())


def moment(seconds: float) -> str:
    """Returns a time since 1970 in seconds as the time of an action."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Judgements:
    """What each reviewer says about each photo after a sequence of actions; a later choice replaces an earlier one."""

    def __init__(self, actions: Iterable[Action] = ()) -> None:
        self._valid: defaultdict[str, list[Action]] = defaultdict(list)
        for action in actions:
            self.add(action)

    def add(self, action: Action) -> None:
        """Adds the next action."""
        valid = self._valid[action.reviewer]
        if action.verdict != UNDO:
            valid.append(action)
            return
        at = next((at for at in reversed(range(len(valid))) if valid[at].photo == action.photo), None)
        if at is not None:
            del valid[at]

    @property
    def reviewers(self) -> list[str]:
        """The sorted names of all reviewers with a choice."""
        return sorted(name for name, valid in self._valid.items() if valid)

    def of(self, reviewer: str) -> dict[str, Choice]:
        """Returns photo -> choice of a reviewer, in the order of the choices."""
        return {action.photo: action.choice for action in self._valid.get(reviewer, ())}

    def valid(self, reviewer: str) -> Sequence[Action]:
        """Returns the actions of a reviewer that were not undone."""
        return self._valid.get(reviewer, ())

    def by_photo(self) -> dict[str, dict[str, Action]]:
        """Returns photo -> reviewer -> last action, sorted by photo."""
        found: defaultdict[str, dict[str, Action]] = defaultdict(dict)
        for reviewer in self.reviewers:
            for action in self._valid[reviewer]:
                found[action.photo][reviewer] = action
        return dict(sorted(found.items()))


class ReviewLog:
    """The CSV file of a review, to which several processes may append.

    Each line is on the disk before `append` returns. A process that is killed may leave an incomplete last line, which
    was never confirmed to anyone: `read` leaves it out, and the next `append` removes it.

    Raises:
        RunError: the file cannot be written, or is not a record of a review.
    """

    def __init__(self, path: Path) -> None:
        # A process that is killed while it creates the file leaves a part of the header.
        if not (path.is_file() and path.stat().st_size < len(HEADER) and HEADER.startswith(_start(path))):
            require_result_file(path, header=HEADER.rstrip())
        self.path = path
        self._is_there = path.exists()

    def read(self) -> list[Action]:
        """Returns all actions in order; a warning reports lines that are left out.

        A RunError reports quotes without an end, or a line of more than 128 kB, which hide other lines.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            logger.warning("'%s': left out the incomplete last line of a stopped process", self.path)
        text = whole.decode("utf-8", "surrogateescape")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        actions: list[Action] = []
        wrong: list[int] = []
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                # The lines after a quote without its end look like a part of the text in quotes.
                got = f"line {reader.line_num} ({error})"
                raise RunError(f"a whole record of a review in '{self.path}'", got, "correct or remove it") from None
            if cells is None:
                break
            if reader.line_num == 1 or not cells:
                continue
            if len(cells) == len(COLUMNS) and cells[2] in (LABEL, UNDO, *SPECIAL) and cells[4]:
                actions.append(Action(*cells))
            else:
                wrong.append(reader.line_num)
        if wrong:
            logger.warning("'%s': left out %d lines that are no actions, the first %d", self.path, len(wrong), wrong[0])
        return actions

    def append(self, actions: Sequence[Action]) -> None:
        """Writes actions to the end of the file and waits until they are on the disk.

        If it is full or cannot be written, the record is as before, and the error an OSError.
        """
        content = csv_text(actions).encode("utf-8", "surrogateescape")
        is_new = not self.path.exists()
        if is_new and self._is_there:  # a stick that was taken out: a new record in its place would hide under it
            raise FileNotFoundError(errno.ENOENT, "its folder is away, bring it back")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with only_one(self.path, "record of the review", wait=True), self.path.open("r+b") as file:
            end = _whole_end(file)
            file.truncate(end)
            file.seek(end)
            try:
                file.write((b"" if end else HEADER.encode()) + content)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
        self._is_there = True
        if is_new:
            sync_folder(self.path.parent)


def _start(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def _whole_end(file: IO[bytes]) -> int:
    """Returns the position after the last complete line."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _LONGEST_LINE_BYTES)
    file.seek(start)
    return start + file.read().rfind(b"\n") + 1


def cohens_kappa(first: Sequence[object], second: Sequence[object]) -> float | None:
    """Computes how far two reviewers agree beyond chance: 1 for always, 0 for as often as by chance.

    `first` and `second` are their choices on the same photos, at least one. The result is -1 to 1, or None if it is
    undefined, because both made one and the same choice on all photos.

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


class Agreement(NamedTuple):
    """How far two reviewers agree on the photos that both have judged."""

    reviewers: tuple[str, str]
    photos: int  # number of photos that both have judged
    agreed: int  # number of photos on which they agree
    kappa: float | None  # see `cohens_kappa`; None if undefined, also without common photos


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
    """Returns photo -> choice where all reviewers agree, and photo -> reviewer -> choice for the disputed photos."""
    agreed: dict[str, Choice] = {}
    disputed: dict[str, dict[str, Choice]] = {}
    for photo, actions in judgements.by_photo().items():
        choices = {reviewer: action.choice for reviewer, action in actions.items()}
        if len(set(choices.values())) == 1:
            agreed[photo] = next(iter(choices.values()))
        else:
            disputed[photo] = choices
    return agreed, disputed

"""Every failure that a user can cause or cure.

::

    AgriDistillError            exit code 2, one line: expected, got, remedy
    ├── DataError               a folder, its labels, its splits
    │   ├── PhotoError          one photo that cannot be read (it is left out, the rest goes on)
    │   └── FetchError          a download or an archive that cannot be trusted
    ├── ConfigError             a recipe, a key, a value
    ├── ModelError              a model name, weights, a manifest, a class list
    ├── RunError                a run folder: taken, unfinished, of another recipe
    │   └── PeerError           an error of another process of the run, which reports it
    ├── OutboxError             messages that cannot be kept or read: the disk, or another version
    ├── EdgeError               a source, a rule, an update, the agent's state
    └── MissingExtraError       an optional part of AgriDistill that is not installed

Two packages tell more apart by subclasses: `edge.sources` a source that is away from one that has ended, `preprocess`
a photo that the system refuses for now from a damaged one.

Anything else that escapes is a defect of AgriDistill and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class AgriDistillError(Exception):
    """A failure in one line.

    Args:
        expected: what would have been right ("a folder of class folders").
        got: what came instead ("'/data/x', which does not exist").
        remedy: what to do now ("check the path").
    """

    def __init__(self, expected: str, got: str, remedy: str) -> None:
        super().__init__(expected, got, remedy)
        self.expected = _one_line(expected)
        self.got = _one_line(got)
        self.remedy = _one_line(remedy)

    def __str__(self) -> str:
        return f"expected {self.expected}; got {self.got}; {self.remedy}"


class DataError(AgriDistillError):
    """A folder, its labels or its splits cannot be used."""


class PhotoError(DataError):
    """One photo cannot be read."""


class FetchError(DataError):
    """A download or an archive cannot be trusted or reached."""


class ConfigError(AgriDistillError):
    """A recipe, a key or a value is wrong."""


class ModelError(AgriDistillError):
    """A model name, weights, a manifest or a class list is wrong."""


class RunError(AgriDistillError):
    """A run folder is taken, unfinished or belongs to another recipe."""


class PeerError(RunError):
    """Another process of this run failed and reports it; this one ends without a message."""


class OutboxError(AgriDistillError):
    """Messages cannot be kept or read."""


class EdgeError(AgriDistillError):
    """A source, a rule, an update or the agent's state cannot be used."""


class MissingExtraError(AgriDistillError):
    """An optional part of AgriDistill is not installed."""


@contextmanager
def needs_extra(needed: str = "the training part of AgriDistill", extra: str = "train") -> Iterator[None]:
    """Around imports of what an extra holds.

    Raises:
        MissingExtraError: a library of the extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(needed, f"no module '{error.name}'", f"pip install 'agridistill[{extra}]'") from None


def nearest(word: str, known: Iterable[str], *, count: int = 1) -> str:
    """Names the known words nearest to a mistyped one, or all of them where none is near.

    Example:
        >>> nearest("epoch", ["epochs", "lr"])
        "did you mean 'epochs'?"
    """
    choices = list(known)
    close = difflib.get_close_matches(word, choices, n=count, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"'{name}'" for name in close) + "?"
    return "known: " + ", ".join(choices[:20]) + (", …" if len(choices) > 20 else "")


def _one_line(text: str) -> str:
    return " ".join(str(text).split())

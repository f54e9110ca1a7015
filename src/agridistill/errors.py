"""The exceptions for all failures that a user can cause or fix.

::

    AgriDistillError            exit code 2, one line: expected, got, remedy
    ├── DataError               a folder, its labels or its splits cannot be used
    │   ├── PhotoError          one photo cannot be read (it is left out, the work continues without it)
    │   └── FetchError          a download or an archive cannot be trusted or reached
    ├── ConfigError             a recipe, a key or a value is wrong
    ├── ModelError              a model name, weights, a manifest or a class list is wrong
    ├── RunError                a run folder is in use, unfinished or belongs to another recipe
    │   └── PeerError           another process of the run failed and reports the error itself
    ├── OutboxError             messages cannot be stored or read, such as on a full disk
    ├── EdgeError               a source, a rule, an update or the agent's state cannot be used
    └── MissingExtraError       an optional part of AgriDistill is not installed

Two packages define further subclasses: `edge.sources` separates a source that is temporarily unreachable from one that
has ended, `preprocess` separates a photo that the system cannot open now from a damaged one.

Any other exception that reaches the user is a defect of AgriDistill and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class AgriDistillError(Exception):
    """The base of all errors; its text is one line: what was expected, what came instead and what to do.

    Args:
        expected: what would have been right ("a folder of class folders").
        got: what came instead ("'/data/x', which does not exist").
        remedy: what the user can do now ("check the path").
    """

    def __init__(self, expected: str, got: str, remedy: str) -> None:
        super().__init__(expected, got, remedy)
        self.expected = _one_line(expected)
        self.got = _one_line(got)
        self.remedy = _one_line(remedy)

    def __str__(self) -> str:
        return f"expected {self.expected}; got {self.got}; {self.remedy}"


class DataError(AgriDistillError):
    """A data folder, its labels or its splits cannot be used."""


class PhotoError(DataError):
    """One photo cannot be read; callers leave it out and continue with the others."""


class FetchError(DataError):
    """A data set cannot be downloaded, or its archive has a wrong checksum or unsafe content."""


class ConfigError(AgriDistillError):
    """A recipe, a key or a value is wrong."""


class ModelError(AgriDistillError):
    """A model name, weights, a manifest or a class list is wrong."""


class RunError(AgriDistillError):
    """A run folder is in use, unfinished or belongs to another recipe."""


class PeerError(RunError):
    """Another process of a distributed run failed and reports the error; this process ends without a message."""


class OutboxError(AgriDistillError):
    """The device agent cannot store or read messages that wait to be sent (the "outbox")."""


class EdgeError(AgriDistillError):
    """The device agent cannot use a photo source, an alert rule, a model update or its stored state."""


class MissingExtraError(AgriDistillError):
    """A library that an optional part of AgriDistill needs is not installed."""


@contextmanager
def needs_extra(needed: str = "the training part of AgriDistill", extra: str = "train") -> Iterator[None]:
    """Turns a failed import in its block into a MissingExtraError that names the extra to install.

    `needed` says what the imports are for. `extra` may be several extras, such as "train,export".
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(needed, f"no module '{error.name}'", f"pip install 'agridistill[{extra}]'") from None


def nearest(word: str, known: Iterable[str], *, count: int = 1) -> str:
    """Returns a remedy that names the known words most similar to a mistyped one, or lists them if none is similar.

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

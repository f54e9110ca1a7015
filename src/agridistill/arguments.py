"""Checks the arguments of public Python functions before any work starts.

Each `require_` function raises a `ConfigError` that names the argument if its value has a wrong type or range.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agridistill.errors import ConfigError, nearest

_LONGEST = 60
_THREADS_ON_A_CORE = 4


def described(value: object) -> str:
    """Describes a wrong value in a few words, for the `got` of an error.

    Example:
        >>> described(3), described(None), described(["a.jpg", "b.jpg"])
        ('3 (int)', 'None', 'a list of 2')
    """
    kind = type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if value is None:
        return "None"
    if shape is not None and dtype is not None:
        return f"an array of shape {tuple(shape)} and dtype {dtype}"
    if isinstance(value, str | int | float):
        text = repr(value)
        return f"{text if len(text) <= _LONGEST else text[:_LONGEST] + '…'} ({kind})"
    if isinstance(value, list | tuple | set | dict):
        return f"a {kind} of {len(value)}"
    return f"a value of type {kind}"


def to_path(name: str, value: object) -> Path:
    """Returns the value of the argument `name` as a `Path`; it must be a `str` or `Path` and not empty."""
    if isinstance(value, str | os.PathLike) and (path := os.fspath(value)) and isinstance(path, str):
        return Path(path)
    raise ConfigError(f"a path as str or Path for '{name}'", described(value), "pass the path of a file or folder")


def to_optional_path(name: str, value: object) -> Path | None:
    """Returns the value of the argument `name` as a `Path`, and None for None; see `to_path`."""
    return None if value is None else to_path(name, value)


def require_whole(name: str, value: object, *, at_least: int) -> None:
    """Checks that a value is a whole number (Python's or numpy's) and not smaller than `at_least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < at_least:
        raise ConfigError(f"a whole number of at least {at_least} for '{name}'", described(value), "correct it")


def require_threads(value: object) -> None:
    """Checks that a number of threads is at least 0 and at most 4 for each core; with more, the system may hang."""
    require_whole("threads", value, at_least=0)
    most = _THREADS_ON_A_CORE * (os.cpu_count() or 1)
    if int(value) > most:  # type: ignore[call-overload]
        expected = f"at most {most} threads ({_THREADS_ON_A_CORE} for each core), or 0 for one thread for each core"
        raise ConfigError(expected, described(value), "use fewer threads")


def require_number(name: str, value: object, *, high: float) -> None:
    """Checks that a value is a number from 0 to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise ConfigError(f"a number from 0 to {high:g} for '{name}'", described(value), "correct it")


def require_flag(name: str, value: object) -> None:
    """Checks that a value is True or False; a text such as "no" is refused, because Python would take it as True."""
    if not isinstance(value, bool):
        raise ConfigError(f"True or False for '{name}'", described(value), "correct it")


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Checks that a value is one of the `choices`; the error suggests the most similar one."""
    if not isinstance(value, str):
        raise ConfigError(f"a name for '{name}'", described(value), f"pass one of {', '.join(choices)}")
    if value not in choices:
        raise ConfigError(f"a known name for '{name}'", f"'{value}'", nearest(value, choices))


def require_callable(name: str, value: Any) -> None:
    """Checks that a value can be called."""
    if not callable(value):
        raise ConfigError(f"a function for '{name}'", described(value), "pass a function, or leave it out")

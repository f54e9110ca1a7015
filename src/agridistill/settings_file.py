"""TOML files -> typed, strict settings: one reader for recipes, the agent and maps of class names.

A group of settings is a frozen dataclass; a field of another one is a table of the file. An unknown key is an error
that names the nearest known one.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from agridistill.errors import AgriDistillError, ConfigError, nearest

Settings = TypeVar("Settings")


def read_toml(
    path: Path,
    expected: str,
    *,
    absent: str = "check the path",
    damaged: str = "correct the file",
    error_type: type[AgriDistillError] = ConfigError,
) -> dict[str, Any]:
    """Reads a TOML file.

    Args:
        path: of the file.
        expected: what it should be, for errors ("a recipe").
        absent: remedy where there is no file.
        damaged: remedy where it is no TOML.
        error_type: of the errors.

    Raises:
        AgriDistillError: of `error_type`: no file, or not readable as TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise error_type(expected, f"'{path}', which does not exist", absent) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise error_type(f"{expected} in TOML", f"'{path}' ({error})", damaged) from None


def setting_names(kind: type[Any]) -> list[str]:
    """The keys of a group of settings."""
    return [field.name for field in fields(kind)]


def require_known_keys(kind: type[Any], table: Any, where: str, section: str = "") -> None:
    """Checks the keys of a table, and of all tables and lists of tables in it.

    Args:
        kind: dataclass of the settings.
        table: as read; values that are no tables pass, their type is checked by `build_settings`.
        where: it comes from, for errors ("in 'watch.toml'").
        section: dotted name of the table; "" at the top of the file.

    Raises:
        ConfigError: an unknown key.
    """
    if not isinstance(table, dict):
        return
    hints = get_type_hints(kind)
    for key, value in table.items():
        require_known_key(kind, key, where, section)
        inner = next((part for part in (hints[key], *get_args(hints[key])) if is_dataclass(part)), None)
        if not isinstance(inner, type):
            continue
        name = f"{section}.{key}".removeprefix(".")
        named_tables = get_origin(hints[key]) is dict and isinstance(value, dict)
        found = {f"{name}.{each}": row for each, row in value.items()} if named_tables else {name: value}
        for below, rows in found.items():
            for row in rows if isinstance(rows, list | tuple) else (rows,):
                require_known_keys(inner, row, where, below)


def require_known_key(kind: type[Any], key: str, where: str, section: str = "") -> None:
    """Checks one key of a table.

    Raises:
        ConfigError: an unknown key.
    """
    known = setting_names(kind)
    if key not in known:
        expected = f"a known key of [{section}]" if section else "a known key"
        raise ConfigError(expected, f"'{key}' {where}".strip(), nearest(key, known))


def build_settings(
    kind: type[Settings],
    table: Mapping[str, Any],
    where: str = "",
    section: str = "",
    *,
    remedy: str = "correct it",
    secret: Collection[str] = (),
) -> Settings:
    """One table as its settings. Types are strict: text is no number, but a whole number is one with a fraction.

    Args:
        kind: dataclass of the settings.
        table: plain values, as read from TOML.
        where: it comes from, for errors ("in 'watch.toml'"); "" where that is known.
        section: dotted name of the table; "" at the top of the file.
        remedy: for a wrong value.
        secret: keys whose values may hold a password: they never stand in an error.

    Raises:
        ConfigError: an unknown key, or a value of a wrong type or range.
    """
    require_known_keys(kind, table, where, section)
    for key, value in table.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            name = f"{section}.{key}".removeprefix(".")
            expected = f"{name}: text, a finite number, true, false or a list of these"
            raise ConfigError(expected, f"{value} {where}".strip(), remedy) from None
    try:
        # Strict JSON takes a list for a tuple, a text for a path and a whole number for a float, and nothing else.
        return TypeAdapter(kind).validate_json(json.dumps(table), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (section, *first["loc"])).removeprefix(".")
        message = first["msg"][:1].lower() + first["msg"][1:]
        is_hidden = bool(set(first["loc"]) & set(secret)) or (bool(secret) and isinstance(first["input"], dict))
        got = "something else" if is_hidden else repr(first["input"])
        raise ConfigError(f"{key}: {message}", f"{got} {where}".strip(), remedy) from None

"""Reads settings files: one reader for recipes, the settings of the agent and maps of class names.

A group of settings is a frozen dataclass. A field whose type is another dataclass is a table in the file. The types
of the fields contain their ranges; `__post_init__` checks rules that concern several fields::

    @dataclass(frozen=True)
    class BrokerSettings:
        url: str
        inflight: Annotated[int, Field(ge=1, le=1000)] = 20

`build_settings` checks all of them. An error is one line; for an unknown key it suggests a known one::

    expected broker.inflight from 1 to 1,000; got 0 in 'watch.toml'; correct it
    expected a known key of [broker]; got 'inflght' in 'watch.toml'; did you mean 'inflight'?
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from agridistill.errors import AgriDistillError, ConfigError, nearest

Settings = TypeVar("Settings")

# The words for a range, by the bounds that it has, in pydantic's names.
_RANGES = {
    ("ge", "le"): "from {} to {}",
    ("ge", "lt"): "from {} to below {}",
    ("gt", "le"): "above {} and up to {}",
    ("gt", "lt"): "above {} and below {}",
    ("ge",): "of at least {}",
    ("gt",): "above {}",
    ("le",): "of at most {}",
    ("lt",): "below {}",
}
_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def read_toml(
    path: Path,
    expected: str,
    *,
    absent: str = "check the path",
    damaged: str = "correct the file",
    error_type: type[AgriDistillError] = ConfigError,
) -> dict[str, Any]:
    """Reads a TOML file in UTF-8 into plain Python values.

    An error of type `error_type` says what the file should be (`expected`, such as "a recipe"), with the remedy
    `absent` if it does not exist, and `damaged` if it cannot be read as TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise error_type(expected, f"'{path}', which does not exist", absent) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise error_type(f"{expected} in TOML", f"'{path}' ({error})", damaged) from None


def setting_names(kind: type[Any]) -> list[str]:
    """Returns the keys that a group of settings may have: the field names of its dataclass."""
    return [field.name for field in fields(kind)]


def require_known_keys(
    kind: type[Any],
    table: Any,
    where: str,
    section: str = "",
) -> None:
    """Raises a ConfigError unless all keys of a table, and of tables and lists of tables in it, are known.

    `where` says where the table comes from ("in 'watch.toml'"); `section` is its dotted name, "" at the top of a file.
    """
    if not isinstance(table, dict):
        return
    hints = get_type_hints(kind)
    for key, value in table.items():
        require_known_key(kind, key, where, section)
        inner = _dataclass_in(hints[key])
        if inner is None:
            continue
        name = f"{section}.{key}".removeprefix(".")
        named_tables = get_origin(hints[key]) is dict and isinstance(value, dict)
        found = {f"{name}.{each}": row for each, row in value.items()} if named_tables else {name: value}
        for below, rows in found.items():
            for row in rows if isinstance(rows, list | tuple) else (rows,):
                require_known_keys(inner, row, where, below)


def require_known_key(kind: type[Any], key: str, where: str, section: str = "") -> None:
    """Raises a ConfigError unless `kind` has a field `key`; `where` and `section` are those of `require_known_keys`."""
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
    """Builds typed settings from one table, after checking its keys, types and ranges.

    Types are strict: a text such as "3" is not accepted as a number. A whole number is accepted for a float. `where`
    and `section` are those of `require_known_keys`. A ConfigError gives the `remedy`, and never shows the values of
    keys in `secret`, which may contain a password.
    """
    require_known_keys(kind, table, where, section)
    for key, value in table.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            name = f"{section}.{key}".removeprefix(".")
            expected = f"{name}: text, a finite number, true, false or a list of these"
            raise ConfigError(expected, f"{value} {where}".strip(), remedy) from None
    adapter = TypeAdapter(kind)
    try:
        # In strict JSON mode pydantic accepts a list for a tuple, a text for a path and a whole number for a float, and
        # no other conversion. JSON cannot hold names that are not UTF-8: the settings are built from the table itself.
        adapter.validate_json(json.dumps(table, ensure_ascii=False).encode("utf-8", "replace"), strict=True)
        return adapter.validate_python(table)
    except ValidationError as error:
        first = error.errors()[0]
        place = first["loc"]
        key = ".".join(str(part) for part in (section, *place)).removeprefix(".")
        got = repr(first["input"])
        if set(place) & set(secret) or (secret and isinstance(first["input"], dict)):
            got = "something else"
        if first["type"] == "missing":
            expected, got = f"a value for {key}", "none"
        elif first["type"] in _OUT_OF_RANGE:
            expected = f"{key} {_range(kind, place)}"
        else:
            expected = f"{key}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise ConfigError(expected, f"{got} {where}".strip(), remedy) from None


def _range(kind: type[Any], place: tuple[int | str, ...]) -> str:
    """Returns the allowed range of one number of the settings in words, such as "from 1 to 1,000"."""
    hint: Any = kind
    for part in place:
        owner = _dataclass_in(hint)
        if owner is not None:
            # An index of a list or the name of a table is not a field: keep the type of the field that contains it.
            hint = get_type_hints(owner, include_extras=True).get(str(part), hint)
    bounds = {
        name: getattr(part, name)
        for name in ("ge", "gt", "le", "lt")
        for part in _types_in(hint)
        if getattr(part, name, None) is not None  # an Interval has None for the bounds that it lacks
    }
    numbers = (f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" for bound in bounds.values())
    return _RANGES[tuple(bounds)].format(*numbers)


def _dataclass_in(hint: Any) -> type[Any] | None:
    return next((part for part in _types_in(hint) if isinstance(part, type) and is_dataclass(part)), None)


def _types_in(hint: Any) -> Iterator[Any]:
    """Yields a type, then all types and constraints inside it, such as those of `list[Annotated[int, Field(ge=1)]]`."""
    yield hint
    for part in hint.metadata if isinstance(hint, FieldInfo) else get_args(hint):
        yield from _types_in(part)

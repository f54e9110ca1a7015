"""Reads the words of a model: for each language, how the page names a class and what it advises.

The words are in a TOML file beside the model, `NAME.words.toml`, with a table for each language::

    [en]
    note = "These texts were not written by an agronomist."

    [en.classes."Tomato___Late_blight"]
    name = "Late blight"
    look = "Look for a white fringe below the leaf in the morning."
    warning = "It spreads within days."

For a class without words, the page shows its plain label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from agridistill.errors import ConfigError, nearest
from agridistill.manifest import ModelManifest, composed
from agridistill.runtime.verdict import plain_label
from agridistill.settings_file import build_settings, read_toml

WORDS_FORMAT = 1
# A language as in BCP 47: "en", "pt-BR", "zh-Hant".
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_RIGHT_TO_LEFT = frozenset({"ar", "ckb", "dv", "fa", "he", "ps", "sd", "ug", "ur", "yi"})

# A text must fit the screen of a phone.
_Name = Annotated[str, Field(min_length=1, max_length=80)]
_Text = Annotated[str, Field(max_length=600)]


@dataclass(frozen=True)
class ClassWords:
    """What the page shows for one class in one language."""

    name: _Name | None = None  # None shows the plain label
    look: _Text = ""  # what to look at next, to be sure
    warning: _Text = ""


@dataclass(frozen=True)
class LanguageWords:
    """A language's table in a file of words."""

    note: _Text = ""  # where the texts come from
    classes: dict[str, ClassWords] = field(default_factory=dict)


def words_file(model: Path, manifest: ModelManifest) -> Path | None:
    """Finds the file of words beside a model file, by the model's name; None if there is none.

    `leaf.words.toml` belongs to `leaf.onnx`, and also to `leaf-int8.onnx` and `leaf-tflite-int8.tflite` if these have
    no file of words of their own.
    """
    without_precision = model.stem.removesuffix(f"-{manifest.precision}")
    names = (model.stem, without_precision, without_precision.removesuffix(f"-{model.suffix[1:]}"))
    files = (model.with_name(f"{name}.words.toml") for name in names)
    return next((file for file in files if file.is_file()), None)


def read_words(path: Path | None, classes: Sequence[str]) -> dict[str, Any]:
    """Reads a file of words for a model with these classes; returns the page's `words.json`, for None without words.

    A ConfigError names an unknown key or class, or a text that is too long.
    """
    if path is None:
        return {"format": WORDS_FORMAT, "languages": {}}
    table = read_toml(path, "a file of words")
    if not table:
        raise ConfigError("a table for each language, such as [en]", f"none in '{path}'", "add one, or use no file")
    return {
        "format": WORDS_FORMAT,
        "languages": {code: _language(code, given, classes, path) for code, given in table.items()},
    }


def _language(code: str, table: Any, classes: Sequence[str], path: Path) -> dict[str, Any]:
    where = f"in '{path}'"
    if not (_LANGUAGE.fullmatch(code) and isinstance(table, Mapping)):
        expected = "a table for each language, with its code as name, such as [en] or [pt-BR]"
        raise ConfigError(expected, f"'{code}' {where}", "correct it")
    words = build_settings(LanguageWords, table, where, code)
    known = {composed(name): name for name in classes}
    for name in words.classes:
        if composed(name) not in known:
            raise ConfigError(f"a class of the model in [{code}.classes]", f"'{name}' {where}", nearest(name, classes))
    return {
        "direction": "rtl" if code.split("-")[0] in _RIGHT_TO_LEFT else "ltr",
        "note": words.note,
        "classes": {
            known[composed(name)]: {"name": each.name or plain_label(name), "look": each.look, "warning": each.warning}
            for name, each in words.classes.items()
        },
    }

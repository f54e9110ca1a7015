"""Options that several commands share, and a decorator that passes a group of options as one object."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from typer import Argument, Option

if TYPE_CHECKING:
    from agridistill.data.labels import Layout

Data = Annotated[
    Path,
    Argument(
        metavar="DATA",
        help="Read photos from this folder. It has a folder for each class, or train/val/test folders with those.",
    ),
]
Model = Annotated[
    Path, Argument(metavar="MODEL", help="Use this model: a run folder, an exported file or the shipped model tomato.")
]
Set = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe; repeatable.")
]
Splits = Annotated[Path | None, Option("--splits", help="Use this split file, made by `data split`.")]
Json = Annotated[bool, Option("--json", help="Print the result on stdout as one JSON document.")]
SplitName = Literal["test", "val", "train", "all"]


@dataclass
class LabelOptions:
    """The command-line options that say where the labels of the photos come from."""

    labels: Annotated[
        Path | None,
        Option(metavar="FILE", help="Read the label of each photo from this CSV or TSV, not from class folders."),
    ] = None
    label_columns: Annotated[
        str | None,
        Option(
            metavar="IMAGE,LABEL",
            help="Name the columns of --labels: photo, label and (optionally) split; by default they are detected.",
        ),
    ] = None
    nested: Annotated[
        bool | None,
        Option(
            "--nested/--flat",
            help="Treat each folder inside a class folder as a separate class (--nested: Tomato/Late blight), or its "
            "photos as photos of the outer class (--flat).",
            show_default=False,
        ),
    ] = None

    def layout(self) -> Layout | None:
        """Returns the layout of the options, None if none was given; a ConfigError if they contradict each other."""
        from agridistill.data.labels import Layout

        if self.labels is None and self.label_columns is None and self.nested is None:
            return None
        columns = tuple(name.strip() for name in self.label_columns.split(",")) if self.label_columns else ()
        return Layout(self.nested, self.labels, columns)

    def words(self) -> tuple[str | Path, ...]:
        """Returns the options as words of a command line, for the suggestion of the next command."""
        layout = self.layout()
        return layout.words() if layout else ()


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command for Typer, so that a parameter can be a dataclass, each field of which becomes an option."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind) and isinstance(kind, type)}
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        defaults = {field.name: field.default for field in fields(groups[name])} if name in groups else {}
        kinds = get_type_hints(groups[name], include_extras=True) if name in groups else {name: hints[name]}
        parameters += [
            parameter.replace(name=each, default=defaults.get(each, parameter.default), annotation=kind)
            for each, kind in kinds.items()
        ]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run

"""Defines the subcommands of `agridistill` and their parser."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer
from typer import Option

from agridistill import __version__
from agridistill.cli.output import show_logs

# The commands in the order of the help, each with its module in `agridistill.cli`; "data" is a group of commands.
_MODULES = {
    "demo": "demo",
    "train": "train",
    "distill": "train",
    "compare": "compare",
    "evaluate": "evaluate",
    "export": "export",
    "predict": "evaluate",
    "review": "review",
    "models": "evaluate",
    "benchmark": "benchmark",
    "report": "compare",
    "watch": "watch",
    "status": "status",
    "publish": "watch",
    "app": "app",
    "data": "data",
}


def parser(command: str) -> typer.Typer:
    """Creates the parser for one command and imports only its module; an unknown name gives a parser for all."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        # All subcommands inherit these settings.
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Train a small model from a large vision model, to recognise crop diseases on a device in the field.",
    )
    app.callback()(_root)
    for name in [command] if command in _MODULES else _MODULES:
        module = import_module(f"agridistill.cli.{_MODULES[name]}")
        if name == "data":
            app.add_typer(module.app, name=name)
        else:
            app.command()(getattr(module, name))
    return app


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"agridistill {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, Option("--debug", help="Print the traceback of an error.")] = False,
) -> None:
    show_logs(debug=debug)

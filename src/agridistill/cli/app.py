"""The command `agridistill app`, which writes the phone page of a model."""

from __future__ import annotations

import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from agridistill.cli import options, output
from agridistill.cli.output import printable, stderr

if TYPE_CHECKING:
    from agridistill.app import Site


def app(
    model: Annotated[
        Path,
        Argument(
            metavar="MODEL", help="Use this model: an exported file (.onnx or .tflite) or the shipped model tomato."
        ),
    ],
    out: Annotated[
        Path | None,
        Option(
            metavar="DIR",
            help="Write the page into this folder, or update the page there. With --serve it may be left out.",
        ),
    ] = None,
    words: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Read names and advice for the classes from this TOML file.",
            show_default="MODEL's .words.toml, if it exists",
        ),
    ] = None,
    name: Annotated[
        str | None, Option(metavar="TEXT", help="Set the name of the icon.", show_default="the crop")
    ] = None,
    runtime: Annotated[
        Path | None,
        Option(
            metavar="DIR",
            help="Take the engine's files from this folder or npm archive, without a network.",
            show_default="fetched once from the npm registry",
        ),
    ] = None,
    serve: Annotated[bool, Option("--serve", help="Serve the page on this machine until Ctrl-C, to try it.")] = False,
    port: Annotated[int, Option(min=0, max=65_535, help="Serve at this port; 0 chooses a free one.")] = 8572,
    host: Annotated[str, Option(help="Serve at this address.")] = "127.0.0.1",
    force: Annotated[bool, Option("--force", help="Write into a folder that has other files; they stay.")] = False,
    json: options.Json = False,
) -> None:
    """Write a page for phones that classifies photos with a model, offline after the first visit.

    The page is a folder of static files for any web server with https. It sends no photo anywhere.
    """
    if out is None and not serve:
        raise typer.BadParameter("pass --out DIR to write the page, or --serve to try it")
    with TemporaryDirectory(prefix="agridistill-") as temporary:
        folder = out or Path(temporary) / "site"
        with output.progress_bar("preparing the page"):
            from agridistill.app import write_site

            site = write_site(model, folder, words=words, name=name, runtime=runtime, force=force)
        if json:
            output.print_json(site.to_json())
        else:
            stderr.print(_summary(site))
        if not site.languages:
            stderr.print("The page shows the labels of the classes, because there is no file of words (docs/phone.md).")
        if serve:
            _serve(folder, host, port)
    if out is not None and not serve:
        output.next_command("app", model, "--out", out, "--serve")


def _summary(site: Site) -> str:
    state = "is written" if site.changed else "has not changed"
    languages = f", words in {', '.join(site.languages)}" if site.languages else ""
    return (
        f"{printable(str(site.out))}: the page '{printable(site.name)}' with the model {printable(site.model)}, "
        f"release {site.release}, {state}: a first visit fetches {site.files} files with "
        f"{site.first_visit_bytes / 1e6:.2f} MB{languages}"
    )


def _serve(folder: Path, host: str, port: int) -> None:
    from agridistill.app.server import serving_site
    from agridistill.local_page import is_loopback

    with contextlib.suppress(KeyboardInterrupt), serving_site(folder, host, port) as address:
        stderr.print(f"page: {address} (Ctrl-C ends it)")
        if not is_loopback(host):
            stderr.print("Browsers install a page and open the camera only over https (docs/phone.md).", style="yellow")
        output.wait_for_ctrl_c()
    stderr.print("The page is no longer served.")

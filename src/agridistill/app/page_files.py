"""Reads the built page, and fills its placeholders with the paths, the name and the list of files of a release."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from agridistill.app.engine_files import PinnedPackage, read_pinned
from agridistill.errors import RunError

PAGE = Path(__file__).parent / "page"
"""Where `make web` builds the page to; a wheel carries it there."""
TEMPLATES = ("index.html", "sw.js", "app.webmanifest")
RELEASE_NAME = "release.json"
"""The list of a release's files, in the folder of a page."""
_PINNED = "runtime.json"
_NEEDED = (*TEMPLATES, "app.js", "app.css", _PINNED)
_FILE = re.compile("__FILES_(.+?)__")
_RELEASE, _NAME = '"__RELEASE__"', "__NAME__"
_REMEDY = "run make web in a checkout of AgriDistill (needs Node 20), or install a wheel that has it"


class BuiltPage(NamedTuple):
    """The page as `make web` built it."""

    templates: dict[str, bytes]  # by their names in `TEMPLATES`
    files: dict[str, bytes]  # all others, by their paths in the page
    engines: dict[str, PinnedPackage]  # what runs a model, by engine; no part of the built page


def read_page(folder: Path) -> BuiltPage:
    """Reads the built page.

    Raises:
        RunError: the page is not built, or not completely.
        ConfigError: its `runtime.json` has another form.
    """
    missing = next((name for name in _NEEDED if not (folder / name).is_file()), None)
    if missing is not None:
        raise RunError("the built phone page", f"no '{missing}' in '{folder}'", _REMEDY)
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
    engines = read_pinned(json.loads(files.pop(_PINNED)))
    return BuiltPage({name: files.pop(name) for name in TEMPLATES}, files, engines)


def filled(
    template: str, content: bytes, paths: Mapping[str, str], name: str, release: Mapping[str, Any] | None = None
) -> bytes:
    """Fills the placeholders of a template.

    Args:
        template: the template's name, which says how the name is escaped.
        content: the template.
        paths: logical name -> path of the files of the release, for `__FILES_<logical>__`.
        name: for `__NAME__`.
        release: the content of `release.json`, for the text `"__RELEASE__"`.

    Raises:
        RunError: the template asks for a file that the release does not have.
    """

    def path_of(found: re.Match[str]) -> str:
        if found[1] not in paths:
            raise RunError("a page whose files are all there", f"no '{found[1]}' for '{template}'", _REMEDY)
        return paths[found[1]]

    text = _FILE.sub(path_of, content.decode())
    escape: Callable[[str], str] = html.escape if template.endswith(".html") else _in_json
    text = text.replace(_NAME, escape(name))
    if release is not None:
        # "<" would end a script element; JSON's escape for it is one of JavaScript as well.
        text = text.replace(_RELEASE, json.dumps(release).replace("<", "\\u003c"))
    return text.encode()


def _in_json(text: str) -> str:
    return json.dumps(text)[1:-1]

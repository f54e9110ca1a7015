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
"""The folder into which `make web` builds the page; a wheel contains it, too."""
TEMPLATES = ("index.html", "sw.js", "app.webmanifest")
RELEASE_NAME = "release.json"
"""Name of the file in a page's folder that lists the files of its release."""
_PINNED = "runtime.json"
_NEEDED = (*TEMPLATES, "app.js", "app.css", _PINNED)
_FILE = re.compile("__FILES_(.+?)__")
_RELEASE, _NAME = '"__RELEASE__"', "__NAME__"
_REMEDY = "run make web in a checkout of AgriDistill (needs Node 20), or install a wheel that contains the page"


class BuiltPage(NamedTuple):
    """The page as `make web` built it."""

    templates: dict[str, bytes]  # by their names in `TEMPLATES`
    files: dict[str, bytes]  # all others, by their paths in the page
    engines: dict[str, PinnedPackage]  # the packages that run models, by engine; the built page does not contain them


def read_page(folder: Path) -> BuiltPage:
    """Reads the built page.

    Raises:
        RunError: the page is not built, or one of its files is missing.
        ConfigError: a key or value in its `runtime.json` is wrong.
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
        template: the template's file name; its suffix decides how `name` is escaped.
        content: the template.
        paths: logical name -> path of the files of the release, for `__FILES_<logical>__`.
        name: the name of the page, for `__NAME__`.
        release: the content of `release.json`, for the text `"__RELEASE__"`.

    Raises:
        RunError: the template needs a file that the release does not have.
    """

    def path_of(found: re.Match[str]) -> str:
        if found[1] not in paths:
            raise RunError("a phone page with all its files", f"no '{found[1]}' for '{template}'", _REMEDY)
        return paths[found[1]]

    text = _FILE.sub(path_of, content.decode())
    escape: Callable[[str], str] = html.escape if template.endswith(".html") else _in_json
    text = text.replace(_NAME, escape(name))
    if release is not None:
        # "</script" in a text would end the script element. JSON's escape for "<" is also valid in JavaScript.
        text = text.replace(_RELEASE, json.dumps(release).replace("<", "\\u003c"))
    return text.encode()


def _in_json(text: str) -> str:
    return json.dumps(text)[1:-1]

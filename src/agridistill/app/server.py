"""Serves a phone page on this machine, to try it; for growers, any static web server can serve it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from agridistill.local_page import Access, Answer, PageHandler, page_url, serving_page

# A server sends compressed files as they are, and the page decompresses them: this works with any server.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".gz": "application/gzip",
}
# What `write_site` writes. The folder may have other files, also private ones (`app --force`); they are not sent.
_FILE = re.compile(r"index\.html|sw\.js|release\.json|app\.webmanifest|files/[0-9a-f]{16}-[\w.-]+")


def page_answer(folder: Path, path: str) -> Answer:
    """Answers a request for a file that `write_site` wrote to `folder`, by its path in the page ("" is the start)."""
    name = path or "index.html"
    file = folder / name
    if not _FILE.fullmatch(name) or not file.is_file():
        return Answer.text(HTTPStatus.NOT_FOUND, "not found")
    headers = {
        # Both allow several threads.
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
        "Cache-Control": "max-age=31536000, immutable" if name.startswith("files/") else "no-cache",
        # The page brings a policy for what it loads.
        "Content-Security-Policy": "frame-ancestors 'none'",
    }
    content_type = _TYPES.get(file.suffix, "application/octet-stream")
    return Answer(HTTPStatus.OK, content_type, file.read_bytes(), headers)


class _Handler(PageHandler):
    any_host = True

    def answer(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        return page_answer(self.server.page, path.removeprefix("/"))  # type: ignore[attr-defined]


@contextlib.contextmanager
def serving_site(folder: Path, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serves a folder of `write_site` while the block runs; yields its address. Port 0 chooses a free one.

    Browsers install a page over http only from this machine itself. An address that is in use, or does not belong to
    this machine, is a RunError.
    """
    with serving_page(folder, Access(token=None), _Handler, host, port) as address:
        # Browsers treat a page from "localhost" as secure, like a page with https.
        yield page_url("localhost", urlsplit(address).port or port) if host in ("127.0.0.1", "::1") else address

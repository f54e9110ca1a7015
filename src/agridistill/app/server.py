"""Serves a phone page on this machine, to try it; for growers, any static web server can serve it."""

from __future__ import annotations

import contextlib
import functools
import re
import socket
from collections.abc import Iterator
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from socketserver import TCPServer
from typing import Any

from agridistill.errors import RunError

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
    "": "application/octet-stream",
}
# What `write_site` writes. The folder may have other files, also private ones (`app --force`); they are not sent.
_FILE = re.compile(r"index\.html|sw\.js|release\.json|app\.webmanifest|files/[0-9a-f]{16}-[\w.-]+")


def content_type(path: str) -> str:
    """Returns the content type of a page's file, by its suffix."""
    return _TYPES.get(PurePosixPath(path).suffix, _TYPES[""])


def page_headers(path: str) -> dict[str, str]:
    """Returns HTTP headers for a page's file: they allow several threads, and caching of files that never change."""
    is_addressed = path.split("?")[0].rpartition("/")[0].endswith("files")
    return {
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "max-age=31536000, immutable" if is_addressed else "no-cache",
    }


def page_file(folder: Path, path: str) -> Path | None:
    """Returns the file of a page that `write_site` wrote, by its path in the page; None if it has no such file."""
    name = path or "index.html"
    return folder / name if _FILE.fullmatch(name) and (folder / name).is_file() else None


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = _TYPES

    def end_headers(self) -> None:
        """Adds the headers of a page."""
        for name, value in page_headers(self.path).items():
            self.send_header(name, value)
        super().end_headers()

    def send_head(self) -> Any:
        """Answers with status 404 unless the path is of a page's file."""
        if page_file(Path(self.directory), self.path.split("?")[0].removeprefix("/")) is None:
            return self.send_error(HTTPStatus.NOT_FOUND)
        return super().send_head()

    def version_string(self) -> str:
        """Returns the `Server` header without version numbers."""
        return "AgriDistill"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Logs nothing, unlike the base class."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), functools.partial(_Handler, directory=str(folder)))

    def server_bind(self) -> None:
        """Binds without looking up this machine's name, which takes seconds if no name server answers."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores browsers that close a connection early."""


@contextlib.contextmanager
def site_server(folder: Path, host: str = "127.0.0.1", port: int = 0) -> Iterator[tuple[_Server, str]]:
    """Opens a server for a folder of `write_site`; yields it, with its address. Its `serve_forever` answers requests.

    Browsers install a page over http only from this machine itself. Port 0 chooses a free one. An address that is in
    use, or does not belong to this machine, is a RunError.
    """
    try:
        server = _Server(folder, host, port)
    except OSError as error:
        got = f"host '{host}' and port {port} ({error.strerror or error})"
        expected = "a free address of this machine for the page"
        raise RunError(expected, got, "pass another --host or --port") from None
    # Browsers treat a page from "localhost" as secure, like a page with https.
    name = "localhost" if host in ("127.0.0.1", "::1") else f"[{host}]" if ":" in host else host
    with server:
        yield server, f"http://{name}:{server.server_port}/"

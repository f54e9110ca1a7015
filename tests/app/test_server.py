"""The server that tries a page: it sends the page's files, and no other file of the folder."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from tests.app.conftest import WriteSite

from agridistill.app import Site
from agridistill.app.server import serving_site
from agridistill.local_page import server

OTHERS = (".env", "notes.txt", "photos/leaf.jpg", "files/.token", "files/notes.txt", "files/sub/index.html")


@pytest.fixture
def site(write: WriteSite, tmp_path: Path) -> Site:
    """A page that `--force` has written into a folder with other files."""
    for name in OTHERS:
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    (tmp_path / "outside.txt").write_text("secret")
    return write(force=True)


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    with serving_site(site.out) as found:
        yield found


def ask(url: str, method: str = "GET") -> tuple[int, bytes]:
    try:
        with urlopen(Request(url, method=method)) as answer:  # noqa: S310 - our own
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, b""


def test_every_file_of_the_page_is_sent(site: Site, address: str) -> None:
    written = {path.relative_to(site.out).as_posix() for path in site.out.rglob("*") if path.is_file()} - set(OTHERS)
    assert len(written) == site.files + 1  # release.json is not fetched on a visit
    for name in written:
        assert ask(address + name) == (200, (site.out / name).read_bytes()), name
    page = (site.out / "index.html").read_bytes()
    assert ask(address) == ask(f"{address}?from=icon") == (200, page)
    assert ask(address, "HEAD") == (200, b"")


def test_browsers_may_run_threads_and_keep_what_never_changes(site: Site, address: str) -> None:
    file = next(path.name for path in site.out.glob("files/*.wasm*"))
    for name, lasting, kind in (
        ("", False, "text/html"),
        ("sw.js", False, "text/javascript"),
        (f"files/{file}", True, ""),
    ):
        with urlopen(address + name) as answer:  # noqa: S310 - our own
            headers = answer.headers
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert headers["Content-Type"].startswith(kind)
        assert ("immutable" in headers["Cache-Control"]) == lasting
        assert "default-src" not in headers["Content-Security-Policy"]


def test_a_proxy_may_give_the_page_any_name(address: str) -> None:
    with urlopen(Request(address, headers={"Host": "leaf.example.org"})) as answer:  # noqa: S310 - our own
        assert answer.status == 200


def test_a_slow_network_gets_the_whole_file(
    site: Site, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(8_000_000)
    (site.out / "files" / f"{'0' * 16}-model.onnx").write_bytes(content)
    monkeypatch.setattr(server, "_LONGEST_CONNECTION_S", 0.3)
    port = urlsplit(address).port
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.sendall(f"GET /files/{'0' * 16}-model.onnx HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        received, begin = 0, time.monotonic()
        while piece := client.recv(1 << 20):
            received += len(piece)
            time.sleep(0.02 if time.monotonic() - begin < 0.6 else 0)  # twice as long as a connection may last
    assert received > len(content)


@pytest.mark.parametrize("name", [*OTHERS, "%2eenv", "files", "files/", "../outside.txt", "%2e%2e/outside.txt"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_other_file_of_the_folder_is_sent(address: str, name: str, method: str) -> None:
    assert ask(address + name, method) == (404, b"")

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from agridistill.data import fetch as module
from agridistill.data.fetch import download
from agridistill.errors import FetchError

CONTENT = bytes((number * 31 + number // 257) % 256 for number in range(3_000_000))


@dataclass
class _Behaviour:
    """What the server does, and how many requests it got."""

    announces_length: bool = True
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    requests: int = 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    behaviour: _Behaviour

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up early is meant in these tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version: ClassVar[str] = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        how = self.server.behaviour
        how.requests += 1
        self.close_connection = True
        if how.statuses:
            self.send_error(how.statuses.pop(0))
            return
        self.send_response(200)
        if how.announces_length:
            self.send_header("Content-Length", str(len(CONTENT)))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        cut = how.cuts.pop(0) if how.cuts else None
        part = CONTENT if cut is None else CONTENT[:cut]
        if how.announces_length:
            self.wfile.write(part)
            return
        for place in range(0, len(part), 100_000):
            piece = part[place : place + 100_000]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if cut is None:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads give up after three tries within milliseconds."""
    for name, value in {"ATTEMPTS": 3, "PAUSE_S": 0.01, "TIMEOUT_S": 5}.items():
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as running:
        running.behaviour = _Behaviour()
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def _url(server: _Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/photos.zip"


def test_a_whole_file_arrives_and_progress_reaches_its_size(server: _Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    download(
        _url(server),
        tmp_path / "x.part",
        sha256=hashlib.sha256(CONTENT).hexdigest().upper(),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (tmp_path / "x.part").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert server.behaviour.requests == 1


@pytest.mark.parametrize("announces_length", [True, False])
def test_an_interrupted_download_starts_again(server: _Server, tmp_path: Path, announces_length: bool) -> None:
    server.behaviour.announces_length = announces_length
    server.behaviour.cuts = [2_500_000, 0]
    download(_url(server), tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT
    assert server.behaviour.requests == 3


def test_a_file_that_never_comes_whole_is_told(server: _Server, tmp_path: Path) -> None:
    server.behaviour.cuts = [1_000] * 20
    with pytest.raises(FetchError) as raised:
        download(_url(server), tmp_path / "x.part")
    assert str(raised.value) == (
        f"expected the complete file '{_url(server)}'; got only 1,000 of 3,000,000 bytes; "
        "try again later or pass another --source"
    )
    assert server.behaviour.requests == 3


def test_a_busy_server_is_asked_again(server: _Server, tmp_path: Path) -> None:
    server.behaviour.statuses = [503, 429]
    download(_url(server), tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT


def test_a_missing_file_is_told_at_once(server: _Server, tmp_path: Path) -> None:
    server.behaviour.statuses = [404]
    with pytest.raises(FetchError, match=r"got status 404 Not Found from 'http://127.0.0.1:\d+/photos.zip'; check the"):
        download(_url(server), tmp_path / "x.part")
    assert server.behaviour.requests == 1


def test_a_server_that_is_not_there_is_told(server: _Server, tmp_path: Path) -> None:
    url = _url(server)
    server.server_close()
    with pytest.raises(FetchError, match=r"the complete file .*; got no answer from the server \(.*refused"):
        download(url, tmp_path / "x.part")


def test_another_sha256_is_refused(server: _Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"an archive with the sha256 000000000000…; got the sha256 [0-9a-f]{12}…"):
        download(_url(server), tmp_path / "x.part", sha256="0" * 64)


@pytest.mark.parametrize("announces_length", [True, False])
def test_a_file_above_the_limit_is_refused(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announces_length: bool
) -> None:
    monkeypatch.setattr(module, "MAX_DOWNLOAD_BYTES", 2_000_000)
    server.behaviour.announces_length = announces_length
    with pytest.raises(FetchError, match="at most 2,000,000 bytes"):
        download(_url(server), tmp_path / "x.part")


@pytest.mark.parametrize(
    "url", ["ftp://host/x.zip", "file:///etc/passwd", "http://", "http://host:port/x", "http://[x/"]
)
def test_other_addresses_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(FetchError, match="an http or https address"):
        download(url, tmp_path / "x.part")


def test_no_message_holds_a_token(server: _Server, tmp_path: Path) -> None:
    server.behaviour.cuts = [1_000, 0, 0]
    with pytest.raises(FetchError) as raised:
        download(_url(server) + "?token=hush", tmp_path / "x.part")
    assert "hush" not in str(raised.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full disk to write to")
def test_a_full_disk_is_not_taken_for_a_bad_network(server: _Server) -> None:
    with pytest.raises(OSError, match="No space left"):
        download(_url(server), Path("/dev/full"))
    assert server.behaviour.requests == 1

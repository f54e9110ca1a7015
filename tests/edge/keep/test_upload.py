"""Kept photos reach an HTTP server whole and in order, whatever it answers; nothing secret reaches a log."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.edge.conftest import free_port, running, wait_for
from tests.edge.keep.test_store import keep, name

from agridistill.edge.delivery import outputs
from agridistill.edge.delivery.outputs import Deliverer
from agridistill.edge.keep.store import KeptPhotos
from agridistill.edge.keep.upload import Upload
from agridistill.edge.network import basic_login
from agridistill.edge.store.history import History

AT_S, DAY = 1_780_300_800.0, "2026-06-01"


class Server:
    """Takes PUT and MKCOL; `answers` may give another status to a request, by method and path."""

    def __init__(self, port: int = 0) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.logins: set[str | None] = set()
        self.answers: Callable[[str, str], int | None] = lambda method, path: None
        self.location, self.body = "", b""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append((self.command, self.path))
                outer.logins.add(self.headers.get("Authorization"))
                code = outer.answers(self.command, self.path) or 201
                if self.command == "PUT" and code < 300:
                    outer.files[self.path] = body
                self.send_response(code)
                if 300 <= code < 400:
                    self.send_header("Location", outer.location + self.path)
                self.end_headers()
                self.wfile.write(outer.body if self.command == "PUT" else b"")

            do_PUT = do_MKCOL = do_GET = _answer  # noqa: N815 - http.server's names

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        self.address = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[KeptPhotos]:
    with History(tmp_path / "history.sqlite") as history:
        found = KeptPhotos(history, tmp_path / "kept", 10**6)
        keep(found, history, 1, 2, at_s=AT_S)
        yield found


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(outputs, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(outputs, "_POLL_S", 0.02)


def uploading(kept: KeptPhotos, address: str, login: str | None = None) -> AbstractContextManager[None]:
    upload = Upload(kept, address, login)
    return running(Deliverer(kept, upload, upload.name, ("a photo", "photos")).run)


def paths(*numbers: int, before: str = f"/photos/{DAY}/") -> list[str]:
    return [f"{before}{name(number)}.{suffix}" for number in numbers for suffix in ("jpg", "json")]


def test_a_photo_is_followed_by_its_sidecar(kept: KeptPhotos, server: Server) -> None:
    with uploading(kept, f"{server.address}/photos", basic_login("me", "pa:ss")):
        wait_for(lambda: not kept.pending())
    assert server.asked == [("PUT", path) for path in paths(1, 2)]
    assert server.logins == {"Basic bWU6cGE6c3M="}
    document = json.loads(server.files[paths(1)[1]])
    assert hashlib.sha256(server.files[paths(1)[0]]).hexdigest() == document["photo_sha256"]
    assert kept.counts().delivered == 2


@pytest.mark.parametrize("missing", [404, 409])
def test_collections_are_created_only_where_they_are_missing(kept: KeptPhotos, server: Server, missing: int) -> None:
    made: set[str] = set()

    def answers(method: str, path: str) -> int | None:
        parent = path.rstrip("/").rpartition("/")[0] + "/"
        if parent not in made | {"/"}:
            return missing
        made.update({path} if method == "MKCOL" else ())
        return None

    server.answers = answers
    with uploading(kept, f"{server.address}/farm/photos/"):
        wait_for(lambda: not kept.pending())
    assert sorted(made) == ["/farm/", "/farm/photos/", f"/farm/photos/{DAY}/"]
    assert [method for method, path in server.asked if method == "MKCOL"] == ["MKCOL"] * 5
    assert sorted(server.files) == paths(1, 2, before=f"/farm/photos/{DAY}/")


def test_an_address_with_a_name_may_have_a_signature(kept: KeptPhotos, server: Server) -> None:
    with uploading(kept, f"{server.address}/bucket/{{name}}?sig=s3cr3t"):
        wait_for(lambda: not kept.pending())
    assert sorted(server.files) == [f"{path}?sig=s3cr3t" for path in paths(1, 2, before="/bucket/")]


@pytest.mark.parametrize("status", [307, 308])
def test_a_service_may_send_each_put_to_a_presigned_address(kept: KeptPhotos, server: Server, status: int) -> None:
    store = Server()
    server.answers, server.location = lambda method, path: status, f"{store.address}/bucket"
    with uploading(kept, f"{server.address}/{{name}}", "Bearer s3cr3t"):
        wait_for(lambda: not kept.pending())
    store.close()
    assert sorted(store.files) == paths(1, 2, before="/bucket/")
    # Another host gets no login: it would be somebody else's, and object stores refuse a second one.
    assert (server.logins, store.logins) == ({"Bearer s3cr3t"}, {None})


def test_a_redirect_that_drops_the_photo_is_no_success(
    kept: KeptPhotos, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = lambda method, path: 302 if method == "PUT" else 200
    server.location = f"{server.address}/login"
    with uploading(kept, f"{server.address}/{{name}}"):
        wait_for(lambda: len(server.asked) >= 4)
    assert "HTTP status 302, a redirect that drops the photo" in caplog.text
    assert len(kept.pending()) == 2


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "HTTP status 401: check user, password_file and token_file in [keep]"),
        (403, "the permissions on the server"),
        (404, "check upload in [keep]"),
        (500, "HTTP status 500"),
        (507, "HTTP status 507: the server's disk is full"),
    ],
)
def test_trouble_is_reported_once_without_secrets_and_ends_by_itself(
    kept: KeptPhotos, server: Server, status: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = lambda method, path: status if len(server.asked) < 12 else None
    with uploading(kept, f"{server.address}/s3cr3t-path/", "Bearer s3cr3t"):
        wait_for(lambda: not kept.pending())
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith(f"the upload server 127.0.0.1:{server.port} does not accept photos (HTTP status")
    assert words in lines[0]
    assert lines[1].endswith("accepts photos again")
    assert "s3cr3t" not in caplog.text


def test_a_refused_login_is_tried_again_only_after_the_longest_pause(
    kept: KeptPhotos, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    stop = threading.Event()

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) > 1 and not stop.set()

    monkeypatch.setattr(outputs, "_LONGEST_PAUSE_S", 300.0)
    monkeypatch.setattr(stop, "wait", pause)
    server.answers = lambda method, path: 401
    Deliverer(kept, Upload(kept, server.address), "it").run(stop)
    assert min(pauses) >= 150


def test_a_photo_that_the_server_refuses_does_not_stop_the_others(
    kept: KeptPhotos, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = lambda method, path: 413 if name(1) in path else None
    with uploading(kept, f"{server.address}/photos/"):
        wait_for(lambda: kept.counts().delivered == 1)
    assert sorted(server.files) == paths(2)
    assert "refuses a photo (HTTP status 413: raise the server's limit, in nginx client_max_body_size)" in caplog.text


def test_an_absent_server_is_waited_for(kept: KeptPhotos, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with uploading(kept, f"http://127.0.0.1:{port}/photos/"):
        wait_for(lambda: "does not accept photos" in caplog.text)
        assert len(kept.pending()) == 2
        server = Server(port)
        wait_for(lambda: not kept.pending())
    server.close()
    assert sorted(server.files) == paths(1, 2)
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    "page",
    [
        b"\n<!DOCTYPE HTML><title>Welcome to the camp site</title>",
        b'<?xml version="1.0"?>\n<!-- portal -->\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN">',
        b"<meta http-equiv=refresh content='0; url=/login'>",
    ],
)
def test_the_page_of_a_networks_login_is_no_success(
    kept: KeptPhotos, server: Server, page: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = lambda method, path: 200
    server.body = page
    with uploading(kept, server.address):
        wait_for(lambda: len(server.asked) > 2, 10, "another try")
        assert kept.counts().waiting == {"photo": 2}
        assert "a web page instead of an answer: log in to the network" in caplog.text
        server.body = b"taken"
        wait_for(lambda: kept.counts().waiting == {"photo": 0}, 10, "the uploads")


def test_what_was_removed_meanwhile_is_not_waited_for(kept: KeptPhotos, server: Server) -> None:
    (kept.folder / f"{name(1)}.jpg").unlink()
    with uploading(kept, f"{server.address}/photos/"):
        wait_for(lambda: not kept.pending())
    assert sorted(server.files) == paths(2)
    assert kept.counts().delivered == 1

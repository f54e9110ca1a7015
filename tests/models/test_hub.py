from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from agridistill.errors import ModelError
from agridistill.models import hub
from agridistill.models.factory import create_model
from agridistill.models.hub import hub_access, hub_reachable

STUDENT = "mobilenetv3_small_050"
PATIENCE_S = 0.3
# What a loaded machine may add to it; the client's own retries take 47 s.
AT_MOST_S = 5.0


@pytest.fixture(autouse=True)
def own_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A client that has seen neither this machine's proxies nor its weights."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_silent_since", {})
    close_session()
    yield
    close_session()


@contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """The address of a server that gives each connection one answer, or none and keeps it open."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        held = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                held.append(connection)
                if answer is not None:
                    connection.recv(4096)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()
        thread.join(5)


def response(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def test_a_hub_that_answers_is_asked_for_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(response("404 Not Found")) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with hub_access(patience_s=10):
            assert not constants.is_offline_mode()


def test_a_refused_connection_leaves_the_cache_alone_and_the_client_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens on port 9 of this machine.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with hub_access(patience_s=10):
        assert constants.is_offline_mode()
        assert socket.getdefaulttimeout() == 10
    assert not constants.is_offline_mode()
    assert socket.getdefaulttimeout() is None


def test_weights_of_a_hub_that_never_answers_are_given_up_in_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(None) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr("agridistill.models.factory.hub_access", partial(hub_access, patience_s=PATIENCE_S))
        start = time.monotonic()
        with pytest.raises(ModelError, match=r"pretrained weights of .* --no-pretrained .* --weights FILE"):
            create_model(STUDENT, 3, pretrained=True)
        assert time.monotonic() - start < AT_MOST_S


@pytest.mark.parametrize("answer", [None, response("407 Proxy Authentication Required"), response("502 Bad Gateway")])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_behind_a_proxy_that_does_not_reach_it_the_hub_is_given_up(
    monkeypatch: pytest.MonkeyPatch, scheme: str, answer: bytes | None
) -> None:
    with server(answer) as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", proxy)
        monkeypatch.setattr(constants, "ENDPOINT", f"{scheme}://hub.invalid")
        start = time.monotonic()
        assert not hub_reachable(patience_s=PATIENCE_S)
        assert time.monotonic() - start < AT_MOST_S


def test_a_proxy_that_reaches_the_hub_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(response("200 OK")) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
        assert hub_reachable(patience_s=10)


def test_a_name_lookup_without_an_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def never(*words: object, **options: object) -> object:
        release.wait(30)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", never)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    start = time.monotonic()
    assert not hub_reachable(patience_s=PATIENCE_S)
    assert time.monotonic() - start < AT_MOST_S
    release.set()


def test_a_silent_hub_is_not_waited_for_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not hub_reachable(patience_s=10)
    with server(response("200 OK")) as address:
        # The same address answers a minute later.
        monkeypatch.setattr(hub, "_silent_since", {address: time.monotonic()})
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert not hub_reachable(patience_s=10)
        monkeypatch.setattr(hub, "_silent_since", {address: time.monotonic() - 61})
        assert hub_reachable(patience_s=10)


def test_offline_mode_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(response("200 OK")) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not hub_reachable(patience_s=10)

"""A server that never gets to an end: it sends a beginning, and then one byte after the other."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator

HEADER = b"HTTP/1.1 200 OK\r\nX-A: "
BODY = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n"


@contextlib.contextmanager
def dripping(beginning: bytes = HEADER, *, tls: ssl.SSLContext | None = None, pause_s: float = 0.02) -> Iterator[int]:
    """Its port on 127.0.0.1.

    Args:
        beginning: sent at once, to whoever connects.
        tls: None sends it as it is.
        pause_s: before each byte that follows.
    """
    stop = threading.Event()

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            client.settimeout(10)
            with tls.wrap_socket(client, server_side=True) if tls else client as spoken:
                if beginning.startswith(b"HTTP"):
                    spoken.recv(10_000)
                spoken.sendall(beginning)
                while not stop.wait(pause_s):
                    spoken.sendall(b"a")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            stop.set()
            # Or `accept` would keep waiting on a closed socket.
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def soon(limit_s: float = 3.0) -> Iterator[None]:
    """What is done in it must not take long."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < limit_s

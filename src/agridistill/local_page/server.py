"""An HTTP server for a page of this machine, which limits the number of connections and the time of each."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any

from agridistill.errors import RunError
from agridistill.local_page.requests import Access, PageHandler

logger = logging.getLogger(__name__)

_MAX_CONNECTIONS = 8
_WAIT_FOR_PLACE_S = 1.0
# Needed in addition to the socket's timeout, which a client avoids by sending a byte now and then.
_LONGEST_CONNECTION_S = 30.0
# Longest delay of `shutdown`, and of the end of a connection that reached its limit.
_POLL_S = 0.1
_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 5\r\n\r\ntoo many connections\n"


class LocalServer(ThreadingHTTPServer):
    """An HTTP server that limits the number of connections and the time of each, and that knows its host names.

    `handler` answers the requests; it reads `page` as `self.server.page`. `access` decides who may read the page. Port
    0 chooses a free one. An address that is in use, or does not belong to this machine, is an OSError.
    """

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, host: str, port: int, page: Any, access: Access, handler: type[PageHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.page, self.access = page, access
        # Values of the Host header that are answered; None for all.
        self.names = {"localhost", "127.0.0.1", "::1", host.lower()} if is_loopback(host) else None
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._since: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        """Binds to the address without looking up this machine's name, as HTTPServer would."""
        # The name is not used, and without a name server the lookup would delay the start by many seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers a connection in a thread, or with status 503 if too many are open for a second.

        It waits because a page with many pictures opens more connections than are allowed.
        """
        if not self._places.acquire(timeout=_WAIT_FOR_PLACE_S):
            with contextlib.suppress(OSError):
                request.setblocking(False)
                request.send(_BUSY)
            self.shutdown_request(request)
            return
        with self._lock:
            self._since[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._release(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers one connection in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release(request)

    def service_actions(self) -> None:
        """Ends connections that have taken nothing for 30 s or longer."""
        self._end_connections(older_than_s=_LONGEST_CONNECTION_S)

    def server_close(self) -> None:
        """Ends all connections, and waits up to 2 s for their threads, because what they read may be closed next."""
        super().server_close()
        self._end_connections(older_than_s=0)
        deadline = time.monotonic() + 2
        while self._since and time.monotonic() < deadline:
            time.sleep(0.01)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs an error of a connection, except if the client only disconnected."""
        if not isinstance(sys.exception(), OSError):
            logger.exception("the page failed to answer a request")

    def prolong(self, connection: socket.socket) -> None:
        """Gives a connection its full time again, because its client has taken a piece of the answer."""
        with self._lock:
            if connection in self._since:
                self._since[connection] = time.monotonic()

    def _end_connections(self, older_than_s: float) -> None:
        with self._lock:
            old = [one for one, since in self._since.items() if time.monotonic() - since >= older_than_s]
            for connection in old:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _release(self, request: socket.socket) -> None:
        with self._lock:
            self._since.pop(request, None)
        self._places.release()


@contextlib.contextmanager
def serving_page(page: Any, access: Access, handler: type[PageHandler], host: str, port: int) -> Iterator[str]:
    """Runs a `LocalServer` in threads while the block runs; yields the page's address.

    Raises:
        RunError: the address is in use, or does not belong to this machine.
    """
    try:
        server = LocalServer(host, port, page, access, handler)
    except OSError as error:
        got = f"host '{host}' and port {port} ({error.strerror or error})"
        raise RunError("a free address of this machine for the page", got, "pass another --host or --port") from None
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="page", daemon=True)
    thread.start()
    try:
        yield page_url(host, server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def page_url(host: str, port: int) -> str:
    """Returns the URL of a page; an IPv6 address gets brackets."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def is_loopback(host: str) -> bool:
    """Returns whether `host` is a loopback address or "localhost", which only this machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"

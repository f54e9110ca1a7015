"""Serves the agent's local web page, its data as JSON, and metrics for Prometheus, inside a `with PageServer(…)`."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from typing import Any

from agridistill.app.site import RELEASE_NAME
from agridistill.edge.network import is_loopback
from agridistill.edge.page.requests import Access, Handler
from agridistill.edge.page.view import Page
from agridistill.errors import EdgeError

__all__ = ["Page", "PageServer", "page_address"]

logger = logging.getLogger(__name__)

# An address of a network for documentation (RFC 5737): the route there is this device's default route.
_ELSEWHERE = ("192.0.2.1", 9)
_MAX_CONNECTIONS = 8
_WAIT_FOR_PLACE_S = 1.0
# Needed in addition to the socket's timeout, which a client avoids by sending a byte now and then.
_LONGEST_CONNECTION_S = 30.0
# Longest delay of `shutdown`, and of the end of a connection that reached its limit.
_POLL_S = 0.1
_MIN_TOKEN = 16
_TOKEN = re.compile(f"[!-~]{{{_MIN_TOKEN},}}")  # printable ASCII without blanks
_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 5\r\n\r\ntoo many connections\n"


class PageServer:
    """Serves the agent's page, its JSON and its metrics over HTTP, in its own threads, inside a `with` block.

    Args:
        page: the data to serve.
        token: secret that clients must send; at least 16 printable ASCII characters. None, which needs no login, is
            only allowed if `host` is loopback.
        host: address to bind to.
        port: port to bind to; 0 chooses a free one.

    Raises:
        EdgeError: the token is too short, has other characters, or is missing; or `page.app` is no phone page.
            Entering the `with` block raises it if the address is in use or does not belong to this device.
    """

    def __init__(self, page: Page, token: str | None = None, host: str = "127.0.0.1", port: int = 8571) -> None:
        if token is not None and not _TOKEN.fullmatch(token):
            raise EdgeError(
                f"a token for the page of {_MIN_TOKEN} or more printable ASCII characters without spaces",
                f"a token of {len(token)} characters"
                + (", some of them not allowed" if len(token) >= _MIN_TOKEN else ""),
                "change it (AGRIDISTILL_PAGE_TOKEN, or token_file in [page])",
            )
        if token is None and not is_loopback(host):
            raise EdgeError(
                "a token for a page that other devices can reach",
                f"host = '{host}' without a token",
                "set AGRIDISTILL_PAGE_TOKEN, or token_file in [page]",
            )
        if page.app is not None and not (page.app / RELEASE_NAME).is_file():
            raise EdgeError(
                "the folder of a phone page",
                f"no '{RELEASE_NAME}' in '{page.app}'",
                "run agridistill app MODEL --out DIR",
            )
        self._page, self._access, self._host, self._port = page, Access(token), host, port

    @property
    def address(self) -> str:
        """The page's URL, such as `http://127.0.0.1:8571/`; only available inside the `with` block."""
        return _url(self._host, int(self._server.server_address[1]))

    def __enter__(self) -> PageServer:
        try:
            self._server = _Server(self._host, self._port, self._page, self._access)
        except OSError as error:
            raise EdgeError(
                "a free address of this device for the page",
                f"host '{self._host}' and port {self._port} ({error.strerror or error})",
                "choose another host or port",
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="page", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Ends all connections and frees the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """An HTTP server that limits the number of connections and the time of each."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, host: str, port: int, page: Page, access: Access) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.page, self.access = page, access
        # Values of the Host header that are answered; None for all.
        self.names = {"localhost", "127.0.0.1", "::1", host.lower()} if is_loopback(host) else None
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._since: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        """Binds to the address without looking up this device's name, as HTTPServer would."""
        # The name is not used, and without a name server the lookup would delay the agent's start by many seconds.
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
        """Ends connections that have been open for 30 s or longer."""
        self._end_connections(older_than_s=_LONGEST_CONNECTION_S)

    def server_close(self) -> None:
        """Ends all connections, and waits up to 2 s for their threads, because the history may be closed next."""
        super().server_close()
        self._end_connections(older_than_s=0)
        deadline = time.monotonic() + 2
        while self._since and time.monotonic() < deadline:
            time.sleep(0.01)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs an error of a connection, except if the client only disconnected."""
        if not isinstance(sys.exception(), OSError):
            logger.exception("the page failed to answer a request")

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


def page_address(host: str, port: int, broker: tuple[str, int]) -> Callable[[], str | None]:
    """Returns a function that returns the URL at which other devices reach the page.

    The function returns None if the page is bound to loopback or to a random port (0), and while there is no network.

    Args:
        host: address that the page is bound to. If it is "0.0.0.0" or "::", the URL has this device's address on the
            route to the broker.
        port: port that the page is bound to.
        broker: host and port of the broker.
    """
    if not port or is_loopback(host):
        return lambda: None
    if host not in ("0.0.0.0", "::", ""):  # noqa: S104 - compared
        return lambda: _url(host, port)

    known: list[str] = []

    def address() -> str | None:
        if not known:
            # The address towards a broker on this machine is loopback: take the one of the default route instead.
            own = (_own_address(*peer) for peer in (broker, _ELSEWHERE))
            known.extend(_url(each, port) for each in own if each is not None and not _is_local(each))
        return known[0] if known else None

    return address


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _own_address(host: str, port: int) -> str | None:
    """Returns this device's own address on the route to a host, without sending anything; None without a route."""
    try:
        family, kind, proto, _, peer = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.connect(peer)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _is_local(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return found.is_loopback or found.is_link_local

"""A small local page with its JSON and Prometheus's metrics. On loopback without a token, elsewhere only with one."""

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

from agridistill.edge.network import is_loopback
from agridistill.edge.page.requests import Access, Handler
from agridistill.edge.page.view import Page
from agridistill.errors import EdgeError

logger = logging.getLogger(__name__)

# Of a network for documentation (RFC 5737): the route there is the route to all others.
_ELSEWHERE = ("192.0.2.1", 9)
_MAX_CONNECTIONS = 8
_WAIT_FOR_PLACE_S = 1.0
# A client that sends a byte now and then never reaches the socket's own timeout.
_LONGEST_CONNECTION_S = 30.0
# Longest delay of a stop, and of the end of a connection at its limit.
_POLL_S = 0.1
_MIN_TOKEN = 16
_TOKEN = re.compile(f"[!-~]{{{_MIN_TOKEN},}}")  # printable ASCII without blanks
_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 5\r\n\r\ntoo many connections\n"


class PageServer:
    """Serves the agent's page, JSON and metrics, in its own threads.

    Args:
        page: what is served.
        token: required of clients, at least 16 characters; None only on loopback.
        host: address to bind to.
        port: 0 takes any that is free.

    Raises:
        EdgeError: a host that is not loopback without a token, or an unusable token; on entry, an address that is taken
            or not this machine's.
    """

    def __init__(self, page: Page, token: str | None = None, host: str = "127.0.0.1", port: int = 8571) -> None:
        if token is not None and not _TOKEN.fullmatch(token):
            raise EdgeError(
                f"a token of the page of {_MIN_TOKEN} or more ASCII characters without blanks",
                f"one of {len(token)} characters",
                "choose another (AGRIDISTILL_PAGE_TOKEN, or token_file in [page])",
            )
        if token is None and not is_loopback(host):
            raise EdgeError(
                "a token where others can reach the page",
                f"the address '{host}' without one",
                "set AGRIDISTILL_PAGE_TOKEN, or token_file in [page]",
            )
        self._page, self._access, self._host, self._port = page, Access(token), host, port

    @property
    def address(self) -> str:
        """Where a browser finds the page, such as `http://127.0.0.1:8571/`."""
        return _url(self._host, int(self._server.server_address[1]))

    def __enter__(self) -> PageServer:
        try:
            self._server = _Server(self._host, self._port, self._page, self._access)
        except OSError as error:
            raise EdgeError(
                "an address to listen on",
                f"'{self._host}', port {self._port} ({error.strerror or error})",
                "choose another port or host",
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="page", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Ends all connections and gives the port back."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """Answers a bounded number of connections, each for a bounded time."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, host: str, port: int, page: Page, access: Access) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.page, self.access = page, access
        # Names under which it answers; None for any.
        self.names = {"localhost", "127.0.0.1", "::1", host.lower()} if is_loopback(host) else None
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._since: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        """Binds without asking the network for the machine's name, as HTTPServer would."""
        # Its fields are not used; a name server that is away would hold the agent's start for many seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Waits a little for a free connection: a page with many pictures opens more than there are."""
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
        """Answers one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release(request)

    def service_actions(self) -> None:
        """Ends connections that have been open for too long."""
        self._end_connections(older_than_s=_LONGEST_CONNECTION_S)

    def server_close(self) -> None:
        """Ends all connections, and waits a little for their threads: the history may be closed next."""
        super().server_close()
        self._end_connections(older_than_s=0)
        deadline = time.monotonic() + 2
        while self._since and time.monotonic() < deadline:
            time.sleep(0.01)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs our defects; a client that disconnects, also in the middle, is none."""
        if not isinstance(sys.exception(), OSError):
            logger.exception("the page could not answer")

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
    """Gives the address of a page bound to host and port for other machines, once it is known; None on loopback."""
    if not port or is_loopback(host):
        return lambda: None
    if host not in ("0.0.0.0", "::", ""):  # noqa: S104 - compared
        return lambda: _url(host, port)

    known: list[str] = []

    def address() -> str | None:
        if not known:
            # A broker on this machine is reached by an address that no other machine can open.
            own = (_own_address(*peer) for peer in (broker, _ELSEWHERE))
            known.extend(_url(each, port) for each in own if each is not None and not _is_local(each))
        return known[0] if known else None

    return address


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _own_address(host: str, port: int) -> str | None:
    """Address by which this device reaches another one; nothing is sent."""
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

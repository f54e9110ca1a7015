"""HTTP with one time limit for a whole exchange: names, connections, TLS, redirects, header and body.

A socket's timeout holds for each piece only: a server that sends its header byte by byte would hold us for ever.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agridistill.errors import EdgeError


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """TLS that checks certificates.

    Args:
        ca_file: certificates of the authorities to trust; None takes the system's.

    Raises:
        EdgeError: the file cannot be read, or holds none.
    """
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise EdgeError("certificates that can be read", f"'{ca_file}' ({error})", "check the file") from None


class LateError(OSError):
    """An exchange was not through in its time, and was cut off."""


class HttpClient:
    """Speaks HTTP(S) alone: the usual opener would follow an address to a file or to FTP. For one thread at a time.

    Args:
        handlers: of redirects, passwords and refusals; no redirect is followed without one.
        context: of TLS; None takes the system's authorities.
    """

    def __init__(self, *handlers: urllib.request.BaseHandler, context: ssl.SSLContext | None = None) -> None:
        self._http, self._https = _Http(), _Https(context)
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.UnknownHandler(),
            self._http,
            self._https,
            urllib.request.HTTPDefaultErrorHandler(),
            *handlers,
            urllib.request.HTTPErrorProcessor(),
        ):
            self._opener.add_handler(handler)

    @contextlib.contextmanager
    def whole(self, request: urllib.request.Request | str, limit_s: float) -> Iterator[http.client.HTTPResponse]:
        """An answer whose body has to be read within the time, too.

        Args:
            request: http or https; whoever calls has checked that.
            limit_s: seconds for all until the context ends.

        Raises:
            LateError: not through in time.
            OSError: no answer (`urllib.error.URLError`), or a status that is an error (`urllib.error.HTTPError`).
            http.client.HTTPException: what came is no HTTP.
            ValueError: an address, also of a redirect, that cannot be read.
        """
        with _Exchange(limit_s) as exchange, self._opened(request, exchange) as answer:
            yield answer
            exchange.require_time()

    def header(self, request: urllib.request.Request | str, limit_s: float) -> http.client.HTTPResponse:
        """An answer whose header came within the time; the limit then holds for each read of its body, which is open.

        Args:
            request: as for `whole`.
            limit_s: seconds until the header is there.

        Raises:
            LateError: as `whole`, and the rest.
        """
        with _Exchange(limit_s) as exchange, contextlib.ExitStack() as stack:
            answer = stack.enter_context(self._opened(request, exchange))
            exchange.require_time()
            stack.pop_all()  # it stays open
            return answer

    def _opened(self, request: urllib.request.Request | str, exchange: _Exchange) -> http.client.HTTPResponse:
        self._http.connect = self._https.connect = exchange.connect
        answer: http.client.HTTPResponse = self._opener.open(request, timeout=exchange.limit_s)
        return answer


class _Exchange:
    """Cuts off the connections that were made in it when its time is over.

    Args:
        limit_s: seconds from its beginning on.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._deadline = time.monotonic() + limit_s
        self._lock = threading.Lock()
        self._watched: list[socket.socket] = []
        self._timer = threading.Timer(limit_s, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            for connection in self._watched:
                connection.close()
            self._watched.clear()
        if isinstance(error, Exception) and not isinstance(error, LateError) and self._left_s() <= 0:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            raise self._late() from None

    def require_time(self) -> None:
        """What was cut off, a header or a body of unknown length, looks whole: only the time tells.

        Raises:
            LateError: the time is over.
        """
        if self._left_s() <= 0:
            raise self._late()

    def connect(self, address: tuple[str, int], timeout: object, source_address: object) -> socket.socket:
        """As `socket.create_connection`, in the time that is left, which all addresses of a host share.

        The resolver of names cannot be cut off; it has limits of its own.

        Raises:
            OSError: no address, or none that answers.
        """
        places = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
        failure = OSError("no address")
        for index, (family, kind, protocol, _, place) in enumerate(places):
            self.require_time()
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(max(0.001, self._left_s() / (len(places) - index)))
                connection.connect(place)
                self._watch(connection)
            except OSError as error:
                connection.close()
                failure = error
            else:
                connection.settimeout(self.limit_s)
                return connection
        raise failure

    def _watch(self, connection: socket.socket) -> None:
        with self._lock:
            # A second descriptor: TLS takes the first one over, and whoever reads the answer closes it.
            self._watched.append(connection.dup())

    def _cut(self) -> None:
        with self._lock:
            for connection in self._watched:
                # Unlike closing, this also wakes a thread that waits for the other end.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _left_s(self) -> float:
        return self._deadline - time.monotonic()

    def _late(self) -> LateError:
        return LateError(f"no whole answer in {self.limit_s:g} s")


_Connect = Callable[[tuple[str, int], object, object], socket.socket]


class _Http(urllib.request.HTTPHandler):
    connect: _Connect

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_connecting(http.client.HTTPConnection, self.connect), req)


class _Https(urllib.request.HTTPSHandler):
    connect: _Connect

    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__(context=context)
        self._tls = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_connecting(http.client.HTTPSConnection, self.connect), req, context=self._tls)


def _connecting(
    kind: Callable[..., http.client.HTTPConnection], connect: _Connect
) -> Callable[..., http.client.HTTPConnection]:
    def made(host: str, **settings: Any) -> http.client.HTTPConnection:
        connection = kind(host, **settings)
        # The one place between the connection and what is read from it first: a proxy's answer, or TLS.
        connection._create_connection = connect  # type: ignore[attr-defined]
        return connection

    return made

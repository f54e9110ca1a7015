"""HTTP with one time limit for a whole exchange: connections, TLS, redirects, header and body.

httpx limits each read only; a server that sends its header byte by byte would hold the agent forever.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from agridistill.errors import EdgeError

_HEADERS = {"User-Agent": "agridistill", "Accept-Encoding": "identity", "Connection": "close"}
_HTTPX_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)


class HttpError(OSError):
    """No usable answer. The text never holds the address.

    `status` is the status of an answer that is not 2xx; `certificate` says why the certificate is not trusted.
    """

    def __init__(self, text: str, *, status: int | None = None, certificate: str | None = None) -> None:
        super().__init__(text)
        self.status, self.certificate = status, certificate


class LateError(HttpError):
    """The exchange did not end in time, and was cut off."""


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """TLS that verifies certificates, by those in `ca_file`, else by the system's authorities.

    Raises:
        EdgeError: the file cannot be read, or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise EdgeError("certificates that can be read", f"'{ca_file}' ({error})", "check the file") from None


class HttpClient:
    """Opens http(s) addresses; a redirect from https to http is refused.

    Args:
        auth: answers a 401.
        context: of TLS; None trusts the system's authorities.
        follow_redirects: False treats a redirect as an error.
    """

    def __init__(
        self,
        *,
        auth: httpx.Auth | None = None,
        context: ssl.SSLContext | None = None,
        follow_redirects: bool = False,
    ) -> None:
        self._auth = auth
        self._client = httpx.Client(
            verify=context or tls_context(None),
            headers=_HEADERS,
            follow_redirects=follow_redirects,
            limits=httpx.Limits(max_keepalive_connections=0),
            event_hooks={"response": [_refuse_downgrade]},
        )

    @contextlib.contextmanager
    def whole(self, url: str, limit_s: float, *, method: str = "GET", **request: Any) -> Iterator[httpx.Response]:
        """A 2xx answer, whose body has to be read inside the context: `limit_s` covers all of it.

        `request` takes `headers` and `content` of httpx.

        Raises:
            LateError: not done in time.
            HttpError: no answer, or another status.
        """
        with _Exchange(limit_s) as exchange, contextlib.closing(self._send(exchange, method, url, request)) as answer:
            yield answer

    def header(self, url: str, limit_s: float, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """A 2xx answer whose header arrived in time; `limit_s` then covers each read of its body, which stays open.

        Raises:
            LateError, HttpError: as in `whole`. Reading the body raises errors for `http_errors`.
        """
        with _Exchange(limit_s) as exchange:
            return self._send(exchange, "GET", url, {"headers": headers})

    def _send(self, exchange: _Exchange, method: str, url: str, request: Mapping[str, Any]) -> httpx.Response:
        timeout = httpx.Timeout(exchange.limit_s, connect=exchange.limit_s / 2)  # a host often has two addresses
        made = self._client.build_request(method, url, timeout=timeout, extensions={"trace": exchange.trace}, **request)
        answer = self._client.send(made, auth=self._auth, stream=True)
        if not answer.is_success:
            answer.close()
            raise HttpError(f"HTTP status {answer.status_code}", status=answer.status_code)
        exchange.require_time()
        return answer


@contextlib.contextmanager
def http_errors() -> Iterator[None]:
    """Turns what httpx raises into HttpError."""
    try:
        yield
    except _HTTPX_ERRORS as error:
        raise _as_http_error(error) from None


def _as_http_error(error: Exception) -> HttpError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return HttpError("a certificate that is not trusted", certificate=cause.verify_message)
        cause = cause.__cause__ or cause.__context__
    # The text of other errors may repeat the address.
    is_public = isinstance(error, httpx.NetworkError | httpx.UnsupportedProtocol | httpx.TooManyRedirects)
    is_public = is_public or "incomplete" in str(error) or "complete message" in str(error)
    return HttpError(str(error) if is_public and str(error) else type(error).__name__)


def _refuse_downgrade(answer: httpx.Response) -> None:
    is_secure = answer.url.scheme == "https"
    if is_secure and answer.has_redirect_location and answer.url.join(answer.headers["Location"]).scheme != "https":
        raise httpx.UnsupportedProtocol("a redirect from https to something else")


class _Exchange:
    """Shuts down the connections that were made inside it when its time is over."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._deadline = time.monotonic() + limit_s
        self._lock = threading.Lock()
        self._timer = threading.Timer(limit_s, self._cut)
        self._timer.daemon = True
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Called by httpcore around each step of a request."""
        if event.endswith("connect_tcp.started"):
            self.require_time()
        elif event.endswith("connect_tcp.complete"):
            with self._lock:
                # A second descriptor: TLS takes over the first one, and the reader of the answer closes it.
                self._sockets.append(info["return_value"].get_extra_info("socket").dup())

    def require_time(self) -> None:
        """Raises LateError when the time is over: a body of unknown length looks complete when it is cut off."""
        if time.monotonic() >= self._deadline:
            raise self._late() from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            for connection in self._sockets:
                connection.close()
            self._sockets.clear()
        if isinstance(error, httpx.TimeoutException):
            raise self._late() from None
        if error is None or isinstance(error, _HTTPX_ERRORS):
            self.require_time()
        if isinstance(error, _HTTPX_ERRORS):
            raise _as_http_error(error) from None

    def _late(self) -> LateError:
        return LateError(f"no whole answer in {self.limit_s:g} s")

    def _cut(self) -> None:
        with self._lock:
            for connection in self._sockets:
                # Unlike closing, this also wakes a thread that waits for the other end.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

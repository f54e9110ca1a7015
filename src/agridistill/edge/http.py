"""HTTP requests with one time limit for the whole exchange: connections, TLS, redirects, header and body.

httpx only limits each single read: a server that sends its header byte by byte would block the agent forever.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from agridistill.errors import EdgeError

_HEADERS = {"User-Agent": "agridistill", "Accept-Encoding": "identity", "Connection": "close"}
# The resolver of names and the encoding of headers raise a UnicodeError.
_HTTPX_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError)


class HttpError(OSError):
    """An HTTP request failed. The text never contains the URL, which may contain a password.

    Attributes:
        status: the HTTP status if the server answered with one that is not 2xx, else None.
        certificate: why the server's certificate is not trusted, else None.
    """

    def __init__(self, text: str, *, status: int | None = None, certificate: str | None = None) -> None:
        super().__init__(text)
        self.status, self.certificate = status, certificate


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Returns a context that trusts the authorities in a PEM file, or the system's; raises EdgeError if it has none."""
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise EdgeError("a PEM file with certificates", f"'{ca_file}' ({error})", "correct ca_file") from None


class HttpClient:
    """Sends HTTP requests with a time limit for the whole exchange.

    Without `follow_redirects`, a redirect raises HttpError; one from https to http always does. An invalid proxy
    variable in the environment, such as HTTPS_PROXY, raises EdgeError.
    """

    def __init__(
        self, *, auth: httpx.Auth | None = None, context: ssl.SSLContext | None = None, follow_redirects: bool = False
    ) -> None:
        self._auth = auth
        context = context or tls_context(None)
        try:
            self._client = httpx.Client(
                verify=context,
                headers=_HEADERS,
                follow_redirects=follow_redirects,
                limits=httpx.Limits(max_keepalive_connections=0),
                event_hooks={"response": [_refuse_downgrade]},
            )
        except (ImportError, ValueError, httpx.InvalidURL):
            # The text of the error may hold the proxy's password.
            remedy = "correct or unset ALL_PROXY, HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
            expected = "proxy variables with http:// addresses, and no IPv6 network in NO_PROXY"
            raise EdgeError(expected, "a variable with another value", remedy) from None

    @contextmanager
    def whole(self, url: str, limit_s: float, *, method: str = "GET", **request: Any) -> Iterator[httpx.Response]:
        """Sends a request and yields the response, whose body must be read inside the `with` block.

        Args:
            limit_s: time limit in seconds for everything from connecting to the end of the `with` block.
            request: further arguments of `httpx.Client.build_request`, such as `headers` and `content`.

        Raises:
            HttpError: the server does not respond in time, or its status is not 2xx.
        """
        with _exchange(limit_s) as trace, closing(self._send(trace, limit_s, method, url, request)) as answer:
            yield answer

    def header(self, url: str, limit_s: float, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Sends a GET request and returns the response as soon as its header is complete.

        The caller reads the body, inside `http_errors`, and closes the response. `limit_s` is the time limit in seconds
        up to the end of the header, and then for each read of the body.

        Raises:
            HttpError: the server does not respond in time, or its status is not 2xx.
        """
        with _exchange(limit_s) as trace:
            return self._send(trace, limit_s, "GET", url, {"headers": headers})

    def _send(
        self, trace: Callable[..., None], limit_s: float, method: str, url: str, request: Mapping[str, Any]
    ) -> httpx.Response:
        timeout = httpx.Timeout(limit_s, connect=limit_s / 2)  # leaves time to try a host's second address
        made = self._client.build_request(method, url, timeout=timeout, extensions={"trace": trace}, **request)
        answer = self._client.send(made, auth=self._auth, stream=True)
        if not answer.is_success:
            answer.close()
            raise HttpError(f"HTTP status {answer.status_code}", status=answer.status_code)
        return answer


@contextmanager
def http_errors() -> Iterator[None]:
    """Converts httpx's exceptions in the `with` block to HttpError."""
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
    # The texts of all other errors are omitted: they may contain the URL.
    is_public = isinstance(error, httpx.NetworkError | httpx.UnsupportedProtocol | httpx.TooManyRedirects)
    is_public = is_public or "incomplete" in str(error) or "complete message" in str(error)
    return HttpError(str(error) if is_public and str(error) else type(error).__name__)


def _refuse_downgrade(answer: httpx.Response) -> None:
    is_secure = answer.url.scheme == "https"
    if is_secure and answer.has_redirect_location and answer.url.join(answer.headers["Location"]).scheme != "https":
        raise httpx.UnsupportedProtocol("a redirect from https to an unencrypted address")


@contextmanager
def _exchange(limit_s: float) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """Closes all connections made inside the `with` block once `limit_s` is over; yields a `trace` for httpcore."""
    deadline, late = time.monotonic() + limit_s, HttpError(f"no complete answer within {limit_s:g} s")
    lock, sockets = threading.Lock(), list[socket.socket]()

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("connect_tcp.started") and time.monotonic() >= deadline:
            raise late
        if event.endswith("connect_tcp.complete"):
            with lock:
                # Keep a second descriptor: TLS takes over the first one, and the reader of the answer closes it.
                sockets.append(info["return_value"].get_extra_info("socket").dup())

    def cut() -> None:
        with lock:
            for connection in sockets:
                # Unlike closing, this also wakes a thread that waits for the other end.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(limit_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield trace
    except _HTTPX_ERRORS as error:
        is_late = isinstance(error, httpx.TimeoutException) or time.monotonic() >= deadline
        raise (late if is_late else _as_http_error(error)) from None
    else:
        if time.monotonic() >= deadline:  # a body of unknown length that `cut` ended looks complete
            raise late
    finally:
        timer.cancel()
        with lock:
            for connection in sockets:
                connection.close()
            sockets.clear()

"""HTTP with one time limit for a whole exchange: connections, TLS, redirects, header and body.

httpx limits each read only; a server that sends its header byte by byte would hold the agent forever.
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
    """No usable answer. The text never holds the address.

    `status` is the status of an answer that is not 2xx; `certificate` says why the certificate is not trusted.
    """

    def __init__(self, text: str, *, status: int | None = None, certificate: str | None = None) -> None:
        super().__init__(text)
        self.status, self.certificate = status, certificate


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
    """Opens http(s) addresses; a redirect from https to http is refused, and all are without `follow_redirects`.

    `auth` answers a 401; without a `context` of TLS the system's authorities are trusted. Raises EdgeError where the
    environment names a proxy that cannot be used.
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
            raise EdgeError("http:// proxies in the environment", "one of another kind", remedy) from None

    @contextmanager
    def whole(self, url: str, limit_s: float, *, method: str = "GET", **request: Any) -> Iterator[httpx.Response]:
        """A 2xx answer, whose body has to be read inside the context: `limit_s` covers all of it.

        `request` takes `headers` and `content` of httpx.

        Raises:
            HttpError: no answer, another status, or not done in time.
        """
        with _exchange(limit_s) as trace, closing(self._send(trace, limit_s, method, url, request)) as answer:
            yield answer

    def header(self, url: str, limit_s: float, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """A 2xx answer whose header arrived in time; `limit_s` then covers each read of its body, which stays open.

        Raises:
            HttpError: as in `whole`. Reading the body raises errors for `http_errors`.
        """
        with _exchange(limit_s) as trace:
            return self._send(trace, limit_s, "GET", url, {"headers": headers})

    def _send(
        self, trace: Callable[..., None], limit_s: float, method: str, url: str, request: Mapping[str, Any]
    ) -> httpx.Response:
        timeout = httpx.Timeout(limit_s, connect=limit_s / 2)  # a host often has two addresses
        made = self._client.build_request(method, url, timeout=timeout, extensions={"trace": trace}, **request)
        answer = self._client.send(made, auth=self._auth, stream=True)
        if not answer.is_success:
            answer.close()
            raise HttpError(f"HTTP status {answer.status_code}", status=answer.status_code)
        return answer


@contextmanager
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


@contextmanager
def _exchange(limit_s: float) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """Shuts down the connections that are made inside it when its time is over; yields httpcore's `trace`."""
    deadline, late = time.monotonic() + limit_s, HttpError(f"no whole answer in {limit_s:g} s")
    lock, sockets = threading.Lock(), list[socket.socket]()

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("connect_tcp.started") and time.monotonic() >= deadline:
            raise late
        if event.endswith("connect_tcp.complete"):
            with lock:
                # A second descriptor: TLS takes over the first one, and the reader of the answer closes it.
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
        if time.monotonic() >= deadline:  # a body of unknown length looks complete when it is cut off
            raise late
    finally:
        timer.cancel()
        with lock:
            for connection in sockets:
                connection.close()
            sockets.clear()

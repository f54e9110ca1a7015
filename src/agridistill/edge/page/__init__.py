"""Serves the agent's local web page, its data as JSON, and metrics for Prometheus, inside a `with PageServer(…)`."""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus

from agridistill.app.server import page_answer
from agridistill.app.site import RELEASE_NAME
from agridistill.edge.page.view import Page, content_html, login_html, page_html
from agridistill.edge.state import METRICS_TYPE, metrics_text
from agridistill.errors import AgriDistillError, EdgeError
from agridistill.local_page import (
    HTML,
    Access,
    Answer,
    LocalServer,
    PageHandler,
    is_loopback,
    page_url,
    to_bytes,
    to_json,
)

__all__ = ["Page", "PageServer", "page_address"]

# An address of a network for documentation (RFC 5737): the route there is this device's default route.
_ELSEWHERE = ("192.0.2.1", 9)
# Longest delay of `shutdown`.
_POLL_S = 0.1
_MIN_TOKEN = 16
_APP = "/app/"
_MAX_LISTED = 500
_PICTURE = re.compile(r"/detections/([0-9a-f]{32})\.jpg")
_TOKEN = re.compile(f"[!-~]{{{_MIN_TOKEN},}}")  # printable ASCII without blanks


class PageServer:
    """Serves the agent's page, its JSON and its metrics over HTTP, in its own threads, inside a `with` block.

    Without a `token`, which clients must send, `host` must be loopback. A `port` of 0 chooses a free one.

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
        return page_url(self._host, int(self._server.server_address[1]))

    def __enter__(self) -> PageServer:
        try:
            self._server = LocalServer(self._host, self._port, self._page, self._access, _Handler)
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


def page_address(host: str, port: int, broker: tuple[str, int]) -> Callable[[], str | None]:
    """Returns a function that returns the URL at which other devices reach the page.

    It returns None if the page is bound to loopback or to a random port (0), and while there is no network. If the page
    is bound to "0.0.0.0" or "::", the URL has this device's address on the route to the broker.
    """
    if not port or is_loopback(host):
        return lambda: None
    if host not in ("0.0.0.0", "::", ""):  # noqa: S104 - compared
        return lambda: page_url(host, port)

    known: list[str] = []

    def address() -> str | None:
        if not known:
            # The address towards a broker on this machine is loopback: take the one of the default route instead.
            own = (_own_address(*peer) for peer in (broker, _ELSEWHERE))
            known.extend(page_url(each, port) for each in own if each is not None and not _is_local(each))
        return known[0] if known else None

    return address


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


class _Handler(PageHandler):
    """Answers the HTTP requests of a `PageServer`."""

    def answer(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        """Answers a GET request for the page, its JSON, a picture or the metrics."""
        return _answer(self.server.page, path, query)  # type: ignore[attr-defined]

    def failure(self, error: AgriDistillError) -> Answer:
        """Answers a request for which the history cannot be read."""
        line = "the agent's history cannot be read now, try again"
        return Answer.text(HTTPStatus.SERVICE_UNAVAILABLE, line, Retry_After="5")

    def login_html(self, nonce: str, *, refused: bool) -> str:
        """Renders the login form."""
        return login_html(nonce, refused=refused)


def _answer(page: Page, path: str, query: Mapping[str, list[str]]) -> Answer:
    if path == "/":
        nonce = secrets.token_urlsafe(16)
        return Answer(HTTPStatus.OK, HTML, to_bytes(page_html(page, nonce)), nonce=nonce)
    if path == "/content":
        return Answer(HTTPStatus.OK, HTML, to_bytes(content_html(page)))
    if path == "/metrics":
        return Answer(HTTPStatus.OK, METRICS_TYPE, to_bytes(metrics_text(page.state())))
    if path == "/api/state":
        return to_json(page.state().to_json())
    if path in ("/api/detections", "/api/alerts"):
        given = query.get("limit", ["50"])[-1]
        if not (given.isascii() and given.isdigit() and len(given) < 5 and 1 <= int(given) <= _MAX_LISTED):
            line = f"expected a limit from 1 to {_MAX_LISTED}, for example {path}?limit=50"
            return Answer.text(HTTPStatus.BAD_REQUEST, line)
        is_of_alerts, limit = path == "/api/alerts", int(given)
        listed = page.history.alerts(limit=limit) if is_of_alerts else page.history.recent(limit)
        return to_json([one.to_json() for one in listed])
    if page.app is not None and path == "/app":
        return Answer.text(HTTPStatus.MOVED_PERMANENTLY, _APP, Location=_APP)
    if page.app is not None and path.startswith(_APP):
        return page_answer(page.app, path.removeprefix(_APP))
    picture = _PICTURE.fullmatch(path)
    jpeg = page.history.thumbnail(picture[1]) if picture else None
    if jpeg is None:
        return Answer.text(HTTPStatus.NOT_FOUND, "not found")
    # The picture of a detection never changes.
    return Answer(HTTPStatus.OK, "image/jpeg", jpeg, {"Cache-Control": "private, max-age=86400, immutable"})

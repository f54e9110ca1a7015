"""Handles requests to the local page: checks the token, and answers each path."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

from agridistill.app.server import content_type, page_file, page_headers
from agridistill.edge.page.view import Page, content_html, login_html, page_html
from agridistill.edge.state import METRICS_TYPE, metrics_text
from agridistill.errors import AgriDistillError
from agridistill.storage import json_text

logger = logging.getLogger(__name__)

_APP = "/app/"
_COOKIE = "agridistill"
_COOKIE_AGE_S = 30 * 86400
_MAX_BODY_BYTES = 4096
_MAX_LISTED = 500
_PICTURE = re.compile(r"/detections/([0-9a-f]{32})\.jpg")
_TEXT, _HTML, _JSON = (f"{kind}; charset=utf-8" for kind in ("text/plain", "text/html", "application/json"))
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True)
class Answer:
    """An HTTP response of the page."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)  # further headers
    nonce: str = ""  # allows the style and the script of this answer; "" allows none

    @classmethod
    def text(cls, status: int, line: str, **headers: str) -> Answer:
        """Creates a response with a line of plain text; an underscore in a header's name stands for a hyphen."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, _TEXT, f"{line}\n".encode(), named)


@dataclass(frozen=True)
class Access:
    """Checks whether a client may read the page: it sends the token, or the cookie that a login has set."""

    token: str | None  # the token that clients must send; None lets all clients in

    @property
    def _session(self) -> str:
        # The cookie does not contain the token, stays valid over a restart, and becomes invalid with a new token.
        return hmac.new((self.token or "").encode(), b"agridistill page", hashlib.sha256).hexdigest()

    def knows(self, authorization: str, cookies: str) -> bool:
        """Returns whether the headers of a request prove that it may read the page; True if no token is set.

        Args:
            authorization: value of its `Authorization` header, for example "Bearer TOKEN".
            cookies: value of its `Cookie` header.
        """
        if self.token is None:
            return True
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() == "bearer" and self.is_token(credentials.strip()):
            return True
        try:
            cookie = SimpleCookie(cookies).get(_COOKIE)
        except CookieError:
            return False
        return cookie is not None and _same(cookie.value, self._session)

    def is_token(self, given: str) -> bool:
        """Returns whether `given` is the token, comparing in constant time; False if no token is set."""
        return self.token is not None and _same(given, self.token)

    def logged_in(self) -> Answer:
        """Returns the response to a correct token: it sets the login cookie and redirects the browser to the page."""
        cookie = f"{_COOKIE}={self._session}; Path=/; Max-Age={_COOKIE_AGE_S}; HttpOnly; SameSite=Strict"
        return Answer.text(HTTPStatus.SEE_OTHER, "welcome", Location="/", Set_Cookie=cookie)


def _answer(page: Page, path: str, query: Mapping[str, list[str]]) -> Answer:
    if path == "/":
        nonce = secrets.token_urlsafe(16)
        return Answer(HTTPStatus.OK, _HTML, _bytes(page_html(page, nonce)), nonce=nonce)
    if path == "/content":
        return Answer(HTTPStatus.OK, _HTML, _bytes(content_html(page)))
    if path == "/metrics":
        return Answer(HTTPStatus.OK, METRICS_TYPE, _bytes(metrics_text(page.state())))
    if path == "/api/state":
        return _json(page.state().to_json())
    if path in ("/api/detections", "/api/alerts"):
        given = query.get("limit", ["50"])[-1]
        if not (given.isascii() and given.isdigit() and len(given) < 5 and 1 <= int(given) <= _MAX_LISTED):
            line = f"expected a limit from 1 to {_MAX_LISTED}, for example {path}?limit=50"
            return Answer.text(HTTPStatus.BAD_REQUEST, line)
        is_of_alerts, limit = path == "/api/alerts", int(given)
        listed = page.history.alerts(limit=limit) if is_of_alerts else page.history.recent(limit)
        return _json([one.to_json() for one in listed])
    if page.app is not None and (path == "/app" or path.startswith(_APP)):
        return _app_answer(page.app, path)
    picture = _PICTURE.fullmatch(path)
    jpeg = page.history.thumbnail(picture[1]) if picture else None
    if jpeg is None:
        return Answer.text(HTTPStatus.NOT_FOUND, "not found")
    # The picture of a detection never changes.
    return Answer(HTTPStatus.OK, "image/jpeg", jpeg, {"Cache-Control": "private, max-age=86400, immutable"})


def _app_answer(folder: Path, path: str) -> Answer:
    if path == "/app":
        return Answer.text(HTTPStatus.MOVED_PERMANENTLY, _APP, Location=_APP)
    file = page_file(folder, path.removeprefix(_APP))
    if file is None:
        return Answer.text(HTTPStatus.NOT_FOUND, "not found")
    # The phone page brings a policy for what it loads.
    headers = {**page_headers(path), "Content-Security-Policy": "frame-ancestors 'none'"}
    return Answer(HTTPStatus.OK, content_type(file.name), file.read_bytes(), headers)


class Handler(BaseHTTPRequestHandler):
    """Answers the HTTP requests of a `PageServer`, one request per connection."""

    timeout = 10

    def do_GET(self) -> None:
        """Answers a GET request for the page, its JSON, a picture or the metrics."""
        self._send(self._answered(self._looked))

    def do_HEAD(self) -> None:
        """Answers a HEAD request like GET, but without the body."""
        self.do_GET()

    def do_POST(self) -> None:
        """Answers the login form: sets the login cookie if the entered token is correct."""
        self._send(self._answered(self._logged_in))

    def version_string(self) -> str:
        """Returns the `Server` header without version numbers, which would help an attacker."""
        return "AgriDistill"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Logs nothing, unlike the base class: URLs of requests may contain tokens."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers a malformed request with a line of plain text; the base class calls it."""
        is_other_method = code == HTTPStatus.NOT_IMPLEMENTED
        self._send(_not_allowed() if is_other_method else Answer.text(code, HTTPStatus(code).phrase.lower()))

    @property
    def _access(self) -> Access:
        return self.server.access  # type: ignore[attr-defined,no-any-return]

    def _has_known_host(self) -> bool:
        """Whether the Host header names this page; another name means an attack by DNS rebinding."""
        given, names = self.headers.get_all("Host") or [], self.server.names  # type: ignore[attr-defined]
        try:
            return names is None or (len(given) == 1 and urlsplit(f"//{given[0]}").hostname in names)
        except ValueError:
            return False

    def _answered(self, inner: Callable[[], Answer]) -> Answer:
        if not self._has_known_host():
            line = "this page can only be opened on this device, as http://localhost:PORT/"
            return Answer.text(HTTPStatus.MISDIRECTED_REQUEST, line)
        try:
            return inner()
        except AgriDistillError as error:
            logger.info("the page cannot read the history: %s", error)
            line = "the agent's history cannot be read now, try again"
            return Answer.text(HTTPStatus.SERVICE_UNAVAILABLE, line, Retry_After="5")
        except OSError:
            raise
        except Exception:
            logger.exception("the page failed to answer a request")
            return Answer.text(HTTPStatus.INTERNAL_SERVER_ERROR, "the page failed: see the agent's log")

    def _looked(self) -> Answer:
        try:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query, max_num_fields=10)
        except ValueError:
            return Answer.text(HTTPStatus.BAD_REQUEST, "the address of the request is invalid")
        if not self._access.knows(self.headers.get("Authorization", ""), self.headers.get("Cookie", "")):
            return self._unknown(refused=False)
        return _answer(self.server.page, parts.path, query)  # type: ignore[attr-defined]

    def _logged_in(self) -> Answer:
        if self.path != "/login" or self._access.token is None:
            return _not_allowed()
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return Answer.text(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length header")
        if len(length) > 5 or int(length) > _MAX_BODY_BYTES:
            line = f"expected a body of at most {_MAX_BODY_BYTES} bytes"
            return Answer.text(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, line)
        form = self.rfile.read(int(length)).decode("utf-8", "replace")
        given = dict(parse_qsl(form)).get("token", "")
        return self._access.logged_in() if self._access.is_token(given) else self._unknown(refused=True)

    def _unknown(self, *, refused: bool) -> Answer:
        asks = {"WWW-Authenticate": 'Bearer realm="AgriDistill"'}
        if "text/html" not in self.headers.get("Accept", ""):
            line = b"this page needs the agent's token: send it as Authorization: Bearer TOKEN\n"
            return Answer(HTTPStatus.UNAUTHORIZED, _TEXT, line, asks)
        nonce = secrets.token_urlsafe(16)
        return Answer(HTTPStatus.UNAUTHORIZED, _HTML, _bytes(login_html(nonce, refused=refused)), asks, nonce)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        policy = _policy(answer.nonce)
        headers = {"Cache-Control": "no-store", **_HEADERS, "Content-Security-Policy": policy, **answer.headers}
        headers |= {"Content-Type": answer.content_type, "Content-Length": str(len(answer.body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)


def _policy(nonce: str) -> str:
    base = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action "
    if not nonce:
        return base + "'none'"
    own = f"'nonce-{nonce}'"
    return f"{base}'self'; style-src {own}; script-src {own}; img-src 'self' data:; connect-src 'self'"


def _json(document: Any) -> Answer:
    return Answer(HTTPStatus.OK, _JSON, _bytes(json_text(document)))


def _not_allowed() -> Answer:
    return Answer.text(HTTPStatus.METHOD_NOT_ALLOWED, "this page only answers GET and HEAD", Allow="GET, HEAD")


def _bytes(text: str) -> bytes:
    # File names that are not UTF-8 contain lone surrogates, which UTF-8 cannot encode.
    return text.encode("utf-8", "backslashreplace")


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "backslashreplace"), wanted.encode())

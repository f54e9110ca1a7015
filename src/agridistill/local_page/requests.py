"""Answers requests to a page of this machine: checks host name, token and origin, and adds security headers."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

from agridistill.errors import AgriDistillError
from agridistill.storage import json_text

logger = logging.getLogger(__name__)

TEXT, HTML, JSON = (f"{kind}; charset=utf-8" for kind in ("text/plain", "text/html", "application/json"))
_COOKIE_AGE_S = 30 * 86400
_MAX_BODY_BYTES = 4096
_PIECE_BYTES = 1 << 16
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
        return cls(status, TEXT, f"{line}\n".encode(), named)


@dataclass(frozen=True)
class Access:
    """Checks whether a client may read the page: it sends the token, or the cookie that a login has set."""

    token: str | None  # the token that clients must send; None lets all clients in
    # Browsers send cookies to all ports of a host, so two pages on one machine need different names.
    cookie: str = "agridistill"

    @property
    def _session(self) -> str:
        # The cookie does not contain the token, stays valid over a restart, and becomes invalid with a new token.
        return hmac.new((self.token or "").encode(), b"agridistill page", hashlib.sha256).hexdigest()

    def knows(self, authorization: str, cookies: str) -> bool:
        """Returns whether the headers `Authorization` and `Cookie` prove that a client may read the page."""
        if self.token is None:
            return True
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() == "bearer" and self.is_token(credentials.strip()):
            return True
        try:
            cookie = SimpleCookie(cookies).get(self.cookie)
        except CookieError:
            return False
        return cookie is not None and _same(cookie.value, self._session)

    def is_token(self, given: str) -> bool:
        """Returns whether `given` is the token, comparing in constant time; False if no token is set."""
        return self.token is not None and _same(given, self.token)

    def logged_in(self) -> Answer:
        """Returns the response to a correct token: it sets the login cookie and redirects the browser to the page."""
        cookie = f"{self.cookie}={self._session}; Path=/; Max-Age={_COOKIE_AGE_S}; HttpOnly; SameSite=Strict"
        return Answer.text(HTTPStatus.SEE_OTHER, "welcome", Location="/", Set_Cookie=cookie)


class PageHandler(BaseHTTPRequestHandler):
    """Answers the HTTP requests of a `LocalServer`, one request per connection; a page overrides its first methods."""

    timeout = 10  # seconds for each read and each piece of a body
    any_host = False  # whether the page has no secrets, so that a proxy may give it any name
    posts = False  # whether the page sends requests to `act`

    def answer(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        """Answers a GET request of a client that may read the page."""
        raise NotImplementedError

    def act(self, path: str, document: Any) -> Answer:
        """Answers a POST request with a JSON document, sent by the page itself to a client that may read the page."""
        return self.not_allowed()

    def failure(self, error: AgriDistillError) -> Answer:
        """Answers a request that failed with an error that a user can fix."""
        return Answer.text(HTTPStatus.SERVICE_UNAVAILABLE, str(error), Retry_After="5")

    def login_html(self, nonce: str, *, refused: bool) -> str:
        """Renders the login form for the token; `refused` says that the entered token was wrong."""
        raise NotImplementedError

    def not_allowed(self) -> Answer:
        """Answers a request with a method that the page does not have."""
        return Answer.text(HTTPStatus.METHOD_NOT_ALLOWED, "this page only answers GET and HEAD", Allow="GET, HEAD")

    def do_GET(self) -> None:
        """Answers a GET request."""
        self._send(self._answered(self._looked))

    def do_HEAD(self) -> None:
        """Answers a HEAD request like GET, but without the body."""
        self.do_GET()

    def do_POST(self) -> None:
        """Answers the login form, which sets the login cookie if the token is correct, and the page's own requests."""
        self._send(self._answered(self._logged_in if self.path == "/login" else self._acted))

    def version_string(self) -> str:
        """Returns the `Server` header without version numbers, which would help an attacker."""
        return "AgriDistill"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Logs nothing, unlike the base class: URLs of requests may contain tokens."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers a malformed request with a line of plain text; the base class calls it."""
        is_other_method = code == HTTPStatus.NOT_IMPLEMENTED
        self._send(self.not_allowed() if is_other_method else Answer.text(code, HTTPStatus(code).phrase.lower()))

    @property
    def _access(self) -> Access:
        return self.server.access  # type: ignore[attr-defined,no-any-return]

    def _is_known(self) -> bool:
        return self._access.knows(self.headers.get("Authorization", ""), self.headers.get("Cookie", ""))

    def _has_known_host(self) -> bool:
        """Whether the Host header names this page; another name means an attack by DNS rebinding."""
        if self.any_host:
            return True
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
            logger.info("the page cannot answer: %s", error)
            return self.failure(error)
        except OSError:
            raise
        except Exception:
            logger.exception("the page failed to answer a request")
            return Answer.text(HTTPStatus.INTERNAL_SERVER_ERROR, "the page failed: see its log")

    def _looked(self) -> Answer:
        try:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query, max_num_fields=10)
        except ValueError:
            return Answer.text(HTTPStatus.BAD_REQUEST, "the address of the request is invalid")
        if not self._is_known():
            return self._unknown(refused=False)
        return self.answer(parts.path, query)

    def _logged_in(self) -> Answer:
        if self._access.token is None:
            return self.not_allowed()
        body = self._body()
        if isinstance(body, Answer):
            return body
        given = dict(parse_qsl(body)).get("token", "")
        return self._access.logged_in() if self._access.is_token(given) else self._unknown(refused=True)

    def _acted(self) -> Answer:
        if not self.posts:
            return self.not_allowed()
        if not self._is_known():
            return self._unknown(refused=False)
        # A form or a script of another page cannot send JSON without asking first, and its Origin differs.
        origin = self.headers.get("Origin")
        is_own = origin is None or origin.partition("://")[2] == self.headers.get("Host")
        if not is_own or self.headers.get_content_type() != "application/json":
            return Answer.text(HTTPStatus.FORBIDDEN, "expected a JSON document that this page itself sends")
        body = self._body()
        if isinstance(body, Answer):
            return body
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return Answer.text(HTTPStatus.BAD_REQUEST, "expected a JSON document")
        return self.act(self.path, document)

    def _body(self) -> str | Answer:
        """Reads the body of a request; returns an answer if its length is missing or too large."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return Answer.text(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length header")
        if len(length) > 5 or int(length) > _MAX_BODY_BYTES:
            line = f"expected a body of at most {_MAX_BODY_BYTES} bytes"
            return Answer.text(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, line)
        return self.rfile.read(int(length)).decode("utf-8", "replace")

    def _unknown(self, *, refused: bool) -> Answer:
        asks = {"WWW-Authenticate": 'Bearer realm="AgriDistill"'}
        if "text/html" not in self.headers.get("Accept", ""):
            line = b"this page needs its token: send it as Authorization: Bearer TOKEN\n"
            return Answer(HTTPStatus.UNAUTHORIZED, TEXT, line, asks)
        nonce = secrets.token_urlsafe(16)
        return Answer(HTTPStatus.UNAUTHORIZED, HTML, to_bytes(self.login_html(nonce, refused=refused)), asks, nonce)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        policy = _policy(answer.nonce)
        headers = {"Cache-Control": "no-store", **_HEADERS, "Content-Security-Policy": policy, **answer.headers}
        headers |= {"Content-Type": answer.content_type, "Content-Length": str(len(answer.body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            for begin in range(0, len(answer.body), _PIECE_BYTES):
                self.wfile.write(answer.body[begin : begin + _PIECE_BYTES])
                # A slow network may take minutes for a file of megabytes.
                self.server.prolong(self.connection)  # type: ignore[attr-defined]


def _policy(nonce: str) -> str:
    base = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action "
    if not nonce:
        return base + "'none'"
    own = f"'nonce-{nonce}'"
    return f"{base}'self'; style-src {own}; script-src {own}; img-src 'self' data:; connect-src 'self'"


def to_json(document: Any) -> Answer:
    """Creates a response with a JSON document."""
    return Answer(HTTPStatus.OK, JSON, to_bytes(json_text(document)))


def to_bytes(text: str) -> bytes:
    """Encodes text for a response; file names that are not UTF-8 contain lone surrogates, which it escapes."""
    return text.encode("utf-8", "backslashreplace")


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "backslashreplace"), wanted.encode())

"""Answers requests to the agent's page by their paths."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from http import HTTPStatus

from agridistill.app.server import page_answer
from agridistill.edge.page.view import Page, content_html, login_html, page_html
from agridistill.edge.state import METRICS_TYPE, metrics_text
from agridistill.errors import AgriDistillError
from agridistill.local_page import HTML, Answer, PageHandler, to_bytes, to_json

_APP = "/app/"
_MAX_LISTED = 500
_PICTURE = re.compile(r"/detections/([0-9a-f]{32})\.jpg")


class Handler(PageHandler):
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

"""Serves the page of a review to a browser on this machine, or to browsers that send its token."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from html import escape
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

from agridistill.errors import AgriDistillError, DataError, RunError
from agridistill.local_page import HTML, Access, Answer, PageHandler, is_loopback, serving_page, to_bytes, to_json
from agridistill.review.site import Review

_PICTURE = re.compile(r"/photos/([0-9a-f]{16})(/looked)?\.jpg")


class _Handler(PageHandler):
    posts = True

    @property
    def _review(self) -> Review:
        return self.server.page  # type: ignore[attr-defined,no-any-return]

    def answer(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        if path == "/":
            nonce = secrets.token_urlsafe(16)
            return Answer(HTTPStatus.OK, HTML, to_bytes(_page(nonce, "index.html")), nonce=nonce)
        if path == "/api/state":
            return to_json(self._review.state())
        if path == "/api/queue":
            return to_json(self._review.queue(query.get("held", [""])[-1].split(",")))
        picture = _PICTURE.fullmatch(path)
        if picture is None:
            return Answer.text(HTTPStatus.NOT_FOUND, "not found")
        headers = {"Cache-Control": "private, max-age=3600"}
        if picture[2] is None:
            return Answer(HTTPStatus.OK, "image/jpeg", self._review.jpeg(picture[1]), headers)
        found = self._review.explanation(picture[1])
        if found is None:
            return Answer.text(HTTPStatus.NOT_FOUND, "no model")
        return Answer(HTTPStatus.OK, "image/jpeg", found[0], {**headers, "X-Caption": quote(found[1])})

    def act(self, path: str, document: Any) -> Answer:
        """Answers a POST request: records a choice, or takes back the last one."""
        if path not in ("/api/choice", "/api/undo") or not isinstance(document, dict):
            return Answer.text(HTTPStatus.NOT_FOUND, "not found")
        photo, verdict, label = (document.get(key, "") for key in ("photo", "verdict", "label"))
        if not all(isinstance(value, str) for value in (photo, verdict, label)):
            return Answer.text(HTTPStatus.BAD_REQUEST, "expected texts")
        try:
            if path == "/api/undo":
                return to_json({"photo": self._review.undo(photo or None)})
            self._review.choose(photo, verdict, label)
        except OSError as error:
            return Answer.text(HTTPStatus.INSUFFICIENT_STORAGE, f"the record cannot be written: {error.strerror}")
        return to_json({})

    def failure(self, error: AgriDistillError) -> Answer:
        status = HTTPStatus.NOT_FOUND if isinstance(error, DataError) else HTTPStatus.INTERNAL_SERVER_ERROR
        return Answer.text(status, str(error))

    def login_html(self, nonce: str, *, refused: bool) -> str:
        return _page(nonce, "login.html").replace("__REFUSED__", "" if refused else "hidden")


def _page(nonce: str, name: str) -> str:
    text = _asset(name).replace("__NONCE__", escape(nonce))
    return text.replace("/*__CSS__*/", _asset("review.css")).replace("/*__JS__*/", _asset("review.js"))


@cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / "page" / name).read_text(encoding="utf-8")


def serving(
    review: Review, host: str = "127.0.0.1", port: int = 0, token: str | None = None
) -> AbstractContextManager[str]:
    """Serves the page in threads while the block runs; yields its address.

    Browsers must send the `token`, which is needed unless `host` is loopback. Port 0 chooses a free one.

    Raises:
        RunError: the address is in use or is not of this machine, or the token is missing.
    """
    if token is None and not is_loopback(host):
        raise RunError("a token for a page that other machines can reach", f"--host {host}", "pass a token")
    access = Access(token, cookie="agridistill-review")
    return serving_page(review, access, _Handler, host, port)
